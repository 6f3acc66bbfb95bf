"""The job: to its end, taken up again, logged, and refused where it cannot be honoured."""

import signal
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from tests.jobs import RECIPE, TOML, final, lines, same, signalled, start, with_dropout

from isobatch import cli, installed
from isobatch.errors import InputError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import job


@pytest.fixture(autouse=True)
def dropout(monkeypatch):
    """A task that needs its random numbers."""
    monkeypatch.setattr(job, "make_run", with_dropout)


def test_a_run_goes_to_its_end_and_logs_on_the_samples_axis(tmp_path):
    calls = []
    outcome = start(tmp_path, on_step=lambda step, seen, length: calls.append((step.batch, seen, length)))
    assert (outcome.seen, outcome.steps, outcome.skipped, outcome.exit_code) == (481, 21, 0, 0)
    assert calls[-1] == (1, 481, 481)
    log = lines(tmp_path)
    steps = [line for line in log if "loss" in line]
    assert [line["seen"] for line in steps] == [*range(24, 481, 24), 481]
    assert all(line["loss"] > 0 and line["lr"] > 0 and line["batch"] in (24, 1) for line in steps)
    held_out = [line for line in log if "raw/loss" in line]
    assert [line["seen"] for line in held_out] == [72, 120, 192, 240, 312, 360, 432, 480, 481]
    assert log[-1]["average/accuracy"] == outcome.metrics["average"]["accuracy"]


def test_a_schedule_of_the_batch_is_followed_and_resumed(tmp_path):
    made = RECIPE.model_copy(
        update={"batch": RECIPE.batch.model_copy(update={"schedule": (("0 samples", 24), ("200 samples", 48))})}
    )
    start(tmp_path / "whole", made=made)
    sizes = [line["batch"] for line in lines(tmp_path / "whole") if "loss" in line]
    assert sizes == [24] * 9 + [48] * 5 + [25]
    for at in (8, 9, 10):
        out = tmp_path / f"{at}"
        assert start(out, made=made, on_step=signalled(signal.SIGTERM, at)).exit_code == 143
        start(out, made=made, resume=True)
        same(out, final(tmp_path / "whole"))


def test_another_batch_may_resume_a_run(tmp_path):
    start(tmp_path, on_step=signalled(signal.SIGTERM, 5))
    outcome = start(tmp_path, resume=True, batch_size=96)
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["batch"] for line in steps] == [24] * 5 + [96] * 3 + [73]
    assert outcome.seen == steps[-1]["seen"] == 481
    assert steps[5]["lr"] > 1.5 * steps[4]["lr"]
    again = start(tmp_path, resume=True)
    assert (again.seen, again.steps, again.finished) == (481, 9, True)
    assert again.metrics == outcome.metrics


def test_what_is_not_this_run_is_refused(tmp_path, capsys):
    file, other, out = tmp_path / "recipe.toml", tmp_path / "other.toml", str(tmp_path / "out")
    file.write_text(TOML)
    other.write_text(TOML.replace("0.02", "0.03"))
    words = ["train", str(file), "--out", out]
    assert cli.run([*words, "--resume"]) == 2
    assert "no checkpoint to resume" in capsys.readouterr().err
    assert cli.run(words) == 0
    before = final(tmp_path / "out")
    assert "nothing was trained" not in capsys.readouterr().out
    assert cli.run([*words, "--resume"]) == 0
    assert "had ended before, so that nothing was trained" in capsys.readouterr().out
    for command, message in (
        (words, "holds a run already; give --resume"),
        (["train", str(other), "--out", out, "--resume"], "recipe.optimizer.lr is 0.02 in its checkpoint"),
        ([*words, "--resume", "--seed", "1"], "seed is 0 in its checkpoint and 1 here"),
        ([*words, "--resume", "--order-seed", "1"], "order"),
        ([*words, "--resume", "--patience", "-1"], "--patience -1 must be at least 0"),
        ([*words, "--resume", "--batch-size", "0"], "batch_size=0"),
        ([*words, "--resume", "--every", "0 samples"], "every"),
    ):
        assert cli.run(command) == 2, command
        error = capsys.readouterr().err
        assert message in error, error
        assert "accept=" not in error
        same(tmp_path / "out", before)
    assert cli.run([*words, "--resume"]) == 0


def test_a_sample_that_is_always_bad_does_not_end_a_run(tmp_path, monkeypatch):
    def spoiled(made, seed):
        one = make_run(made, seed)
        assert isinstance(one.samples, TensorSamples)
        x, y = one.samples.tensors
        x = x.clone()
        x[job.Trainer(make_run(made, seed), made).order.indices(100, 1)] = float("nan")
        return replace(one, samples=TensorSamples(x, y))

    monkeypatch.setattr(job, "make_run", spoiled)
    outcome = start(tmp_path)
    assert (outcome.seen, outcome.skipped, outcome.finished) == (481, 1, True)
    skipped = [line for line in lines(tmp_path) if "reason" in line]
    assert [(line["seen"], line["drawn"]) for line in skipped] == [(96, 120)]
    assert "loss is nan" in skipped[0]["reason"]


def test_tensorboard_gets_samples_as_its_steps_and_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "_found", lambda module: module != "tensorboard")
    with pytest.raises(InputError, match=r'pip install "isobatch\[tensorboard\]"'):
        start(tmp_path, log="tensorboard")
    monkeypatch.setattr(installed, "_found", lambda module: True)
    found = []

    class SummaryWriter:
        def __init__(self, folder):
            assert Path(folder).parent == tmp_path

        def add_scalar(self, name, value, global_step):
            found.append((name, global_step))

        def close(self):
            found.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert start(tmp_path, log="tensorboard").finished
    assert [step for name, step in found[:-1] if name == "loss"] == [*range(24, 481, 24), 481]
    assert {"lr", "batch", "raw/accuracy", "average/loss"} <= {name for name, _ in found[:-1]}
    assert found[-1] == "closed"


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_loggers_get_samples_on_their_axis_and_stay_offline(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"{name} is not installed; pip install {name}"):
        start(tmp_path, log=name)
    told = []
    module = types.SimpleNamespace(
        init=lambda **options: told.append(options),
        log=lambda values, step: told.append((step, values)),
        finish=lambda: told.append("finished"),
    )
    monkeypatch.setitem(sys.modules, name, module)
    assert start(tmp_path, log=name).finished
    assert told[0]["project"] == "isobatch"
    assert told[0].get("mode") == ("offline" if name == "wandb" else None)
    assert told[-1] == "finished"
    steps = [step for step, values in told[1:-1] if "lr" in values]
    assert steps == [*range(24, 481, 24), 481]
    assert all(values["samples"] == step for step, values in told[1:-1])


def test_a_real_tensorboard_reads_the_samples_back(tmp_path):
    pytest.importorskip("tensorboard", reason='pip install "isobatch[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start(tmp_path, log="tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [*range(24, 481, 24), 481]


def test_the_log_of_a_killed_run_goes_on_where_its_checkpoint_stands(tmp_path):
    start(tmp_path / "whole")
    wanted = lines(tmp_path / "whole")
    out = tmp_path / "cut"

    def stop(at):
        def on_step(step, seen, length):
            if seen >= at:
                raise KeyboardInterrupt

        return on_step

    for resume, at in ((False, 24), (False, 96), (True, 168), (True, 168)):  # first before any checkpoint
        with pytest.raises(KeyboardInterrupt):
            start(out, resume=resume, on_step=stop(at))
        with (out / "log.jsonl").open("a") as file:
            file.write('{"seen": 99, "bat')  # killed while it wrote
    start(out, resume=True)
    assert lines(out) == wanted
    (out / "log.jsonl").write_text('{"seen": 24, "batch": 24}\n{"se')
    start(out, resume=True)
    assert lines(out) == [{"seen": 24, "batch": 24}]
    (out / "log.jsonl").unlink()
    assert start(out, resume=True).finished
