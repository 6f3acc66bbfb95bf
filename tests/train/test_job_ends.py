"""A job that is ended from outside, by a signal or a kill, goes on as if it had not been."""

import json
import os
import random
import signal
import time

import pytest
import torch
from tests.crash import fork, kill_me, on_call, run, wait
from tests.jobs import TOML, final, lines, same, signalled, start, with_dropout

from isobatch import cli
from isobatch.checkpoint import Checkpoints
from isobatch.train import job


@pytest.fixture(autouse=True)
def dropout(monkeypatch):
    """A task that needs its random numbers."""
    monkeypatch.setattr(job, "make_run", with_dropout)


@pytest.fixture
def whole(tmp_path):
    """The final state of the run that nothing interrupted."""
    assert start(tmp_path / "whole").finished
    return final(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_signal_saves_at_the_step_boundary_and_the_resumed_run_is_the_whole_one(
    number, code, asynchronous, tmp_path, whole
):
    out, resume = tmp_path / "cut", False
    for at in (7, 1, 4):
        outcome = start(out, resume=resume, on_step=signalled(number, at), asynchronous=asynchronous)
        assert (outcome.exit_code, outcome.finished) == (code, False)
        assert final(out)["/clock/seen"] == outcome.seen
        resume = True
    assert outcome.seen == 12 * 24
    torch.manual_seed(1)
    assert start(out, resume=True, asynchronous=asynchronous).finished
    same(out, whole)


def test_a_signal_from_outside_ends_the_command_with_143(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TOML)
    words = ["train", str(file), "--every", "60 samples", "--out"]
    assert run(lambda: exits(cli.run([*words, str(tmp_path / "whole"), "--json"]), 0)) == 0
    out, slow = tmp_path / "cut", job.Trainer.step
    job_step = lambda self, *given: (time.sleep(0.05), slow(self, *given))[1]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.Trainer, "step", job_step)
        pid = fork(lambda: exits(cli.run([*words, str(out), "--json"]), 143))
        deadline = time.monotonic() + 30
        while not (out / "log.jsonl").exists() or len(lines(out)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
        assert wait(pid) == 0
    result = json.loads((out / "result.json").read_text())
    assert not result["finished"]
    assert final(out)["/clock/seen"] == result["seen"] < 481
    assert cli.run([*words, str(out), "--json", "--resume"]) == 0
    same(out, final(tmp_path / "whole"))


def exits(found, wanted):
    assert found == wanted


def killed(out, chance, span):
    """Train in a child that is killed at a random call into the file system, or after a random time."""
    resume = bool(Checkpoints(out / "checkpoints").list())
    calls = chance.randint(1, 900) if chance.random() < 0.5 else 0

    def child():
        on_call(calls, kill_me)
        start(out, resume=resume)

    pid = fork(child)
    if not calls:
        time.sleep(chance.uniform(0, span))
        os.kill(pid, signal.SIGKILL)
    return wait(pid)


@pytest.mark.parametrize("points", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_points_nothing_is_lost_or_mixed(points, tmp_path, whole):
    chance, deaths, runs, before = random.Random(0), 0, 0, time.perf_counter()
    assert run(lambda: start(tmp_path / "timed")) == 0
    span = time.perf_counter() - before
    out, seen = tmp_path / "run-0", 0
    while deaths < points:
        code = killed(out, chance, span)
        assert code in (0, -signal.SIGKILL)
        newest = Checkpoints(out / "checkpoints").latest()
        assert (newest.seen if newest else 0) >= seen
        seen = newest.seen if newest else 0
        deaths += code != 0
        if code == 0:
            same(out, whole)
            runs, seen = runs + 1, 0
            out = tmp_path / f"run-{runs}"
    start(out, resume=seen > 0)
    same(out, whole)
    for run_ in range(runs + 1):
        assert steps(tmp_path / f"run-{run_}") == steps(tmp_path / "whole")


def steps(out):
    return [line for line in lines(out) if "batch" in line]


def test_a_signal_in_a_skipped_step_saves_the_position_too(tmp_path, monkeypatch):
    """Two checkpoints of one moment on the clock: the newer one has drawn further."""
    judge = job.Guard.judge
    steps = 0

    def third(self, *arguments):
        nonlocal steps
        steps += 1
        return self.refuse("spoiled", 0) if steps == 4 else judge(self, *arguments)

    monkeypatch.setattr(job.Guard, "judge", third)
    outcome = start(tmp_path, on_step=signalled(signal.SIGTERM, 4))
    assert (outcome.seen, outcome.skipped, outcome.exit_code) == (72, 1, 143)
    assert final(tmp_path)["/clock/drawn"] == 96
    assert [step.seen for step in Checkpoints(tmp_path / "checkpoints").list()] == [72, 72]
