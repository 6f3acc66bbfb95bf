"""A Dask scheduler and two workers as processes of their own, over TCP."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.executors.engines import dask_cluster, environment, task_of_users
from tests.executors.tasks_of_users import Found, Once, work
from tests.recipes import recipe

from isobatch.errors import EngineError, InputError
from isobatch.executors import Session, map_jobs, opened, width
from isobatch.plan import Recipe
from isobatch.verify import cells
from isobatch.verify.workers import Job, train_curve

pytest.importorskip("distributed")
QUADRATIC = {"task": "quadratic", "optimizer": {"lr": 0.1}, "schedule": {"length": "64 samples", "warmup": "0 samples"}}


def test_dask_trains_the_same_bits_over_a_killed_worker_and_its_end_is_resumed(tmp_path):
    """One cluster for all, which takes seconds to start."""
    (tmp_path / "tries").mkdir()
    made = [Job("a", recipe(**QUADRATIC), seed, 0, (0, 32, 64)) for seed in range(4)]
    plain = [train_curve(job).values for job in made]
    kept = {"name": lambda job: f"{job.number}.json", "read": lambda values: Found(**values)}
    todo = [Once(n, n, str(tmp_path / "tries"), int(n == 2)) for n in range(4)]
    gone = []
    with dask_cluster(tmp_path) as (scheduler, on), opened(on) as executor:
        assert width(executor, None) == 2
        assert [one.values for one in map_jobs(train_curve, made, executor=executor)] == plain
        found = map_jobs(work, todo, executor=executor)
        assert [one.number for one in found] == [0, 1, 4, 9]
        assert len(list((tmp_path / "tries").glob("2-*"))) == 2
        assert os.getpid() not in {one.process for one in found}

        def kill(one):
            if not gone:
                os.kill(scheduler.pid, signal.SIGKILL)
            gone.append(one)

        more = [Once(n, n, str(tmp_path / "tries")) for n in range(10, 40)]
        with pytest.raises(EngineError, match="same command trains only what is missing"):
            cells.run_all(work, more, tmp_path, executor=executor, on_done=kill, **kept)
    stored = len(list((tmp_path / "cells").iterdir()))
    assert 1 <= stored < 30
    fresh = []
    again = cells.run_all(work, more, tmp_path, workers=1, on_done=fresh.append, **kept)
    assert [one.number for one in again] == [n**2 for n in range(10, 40)]
    assert sum(one.process == os.getpid() for one in fresh) == 30 - stored


def words(recipe, on, out, *more):
    """A comparison of 24 runs."""
    found = ["verify", "run", recipe.name, "--batch-size", "16", "--seeds", "8", "--ablate", "unscaled", "--on", on]
    return [sys.executable, "-m", "isobatch", *found, "--out", str(out), *more]


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_a_run_changes_no_bit(tmp_path, monkeypatch):
    """A task in a folder of the user's own, and a command called there."""
    recipe, marks = task_of_users(tmp_path), tmp_path / "marks"
    marks.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    made = [Job("a", Recipe.load(recipe), seed, 0, (0, 256, 512)) for seed in range(3)]
    plain = [train_curve(job).values for job in made]
    (tmp_path / "elsewhere").mkdir()
    with dask_cluster(tmp_path / "elsewhere", MARKS=str(marks)) as (_, on), opened(on) as executor:
        assert [one.values for one in map_jobs(train_curve, made, executor=executor)] == plain
    assert (marks / "1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_command_ends_when_its_scheduler_does_or_by_ctrl_c_and_the_same_command_goes_on(tmp_path, how):
    recipe, out = task_of_users(tmp_path), tmp_path / "out"
    options = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    with dask_cluster(tmp_path) as (scheduler, on):
        first = subprocess.Popen(words(recipe, on, out), **options)
        until = time.monotonic() + 200
        while len(list(out.glob("cells/*.json"))) < 3 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        if how == "killed":
            os.kill(scheduler.pid, signal.SIGKILL)
        else:
            first.send_signal(signal.SIGINT)
        said = first.communicate(timeout=200)[1]
        assert first.returncode == {"killed": 1, "interrupted": 130}[how], said
        assert "Traceback" not in said, said
        if how == "interrupted":
            with opened(on) as executor:
                left = executor._client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
                assert left == 0  # what was queued is cancelled
        kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
        assert 3 <= len(kept) < 24
    found = subprocess.run(words(recipe, "local", out, "--workers", "2"), **options, timeout=300, check=False)
    assert found.returncode in (0, 3), found.stderr
    assert len(list(out.glob("cells/*.json"))) == 24
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.slow
def test_what_a_run_takes_is_asked_of_workers_and_a_budget_cuts_what_waits(tmp_path):
    made = [Once(n, n, str(tmp_path), 0) for n in range(40)]
    with dask_cluster(tmp_path, "--resources", "GPU=0.5,MEMORY_GB=8") as (_, on):
        with opened(f"{on}?gpus=0.5&memory_gb=4") as executor:
            assert [one.number for one in map_jobs(work, made[:3], executor=executor)] == [0, 1, 4]
            future = executor.submit(time.sleep, 3)
            time.sleep(1)
            asked = executor._client.run_on_scheduler(
                lambda dask_scheduler: [task.resource_restrictions for task in dask_scheduler.tasks.values()]
            )
            assert asked == [{"GPU": 0.5, "MEMORY_GB": 4.0}]
            future.result(30)
            session = Session(executor, ends=time.monotonic() + 3)
            for index in range(30):
                session.add(index, time.sleep, 1.0)
            began = time.monotonic()
            found = list(session.done(range(30)))
            session.close()
            assert 2 <= len(found) <= 12
            assert time.monotonic() - began < 10
        with (
            pytest.raises(InputError, match=r"no worker has GPU=1.*dask worker.*--resources"),
            opened(on, device="cuda"),
        ):
            raise AssertionError
