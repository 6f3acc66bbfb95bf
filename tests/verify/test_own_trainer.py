"""A user's own trainer in a comparison: its runs are those of this package's loop, and its verdicts too."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.recipes import recipe

from isobatch.cli import run as command
from isobatch.errors import InputError
from isobatch.split.own_trainer import Patience
from isobatch.verify import run
from isobatch.verify.workers import Job, probe, train_curve

STOPS = (0, 64, 128, 192, 256)
ADAMW = {"name": "adamw", "lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3, "clip": 0.4}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.8, "clip": 0.3}
FRAMEWORKS = {"subject": "torch", "loop": "torch", "accelerated": "accelerate", "lit": "lightning",
              "hugging": "transformers"}  # fmt: skip
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verify.md").read_text()
FILES = dict(re.findall(r"^```(?:py|toml)\n# (\w+\.\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
QUICK = [("subject", "sgd"), ("subject", "adamw"), ("lit", "sgd"), ("hugging", "adamw")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOBATCH_CACHE", str(tmp_path / "cache"))


def asked(task, **parts):
    made = {
        "task": f"tests.verify.own_tasks:{task}",
        "data_size": 128,
        "batch": {"size": 4},
        "optimizer": SGD,
        "schedule": {"length": "256 samples", "warmup": "48 samples", "shape": "cosine"},
        "ema": {"decay": 0.9},
    }
    return recipe(**{**made, **parts})


def curve(task, batch, micro=None, **parts):
    plan = asked(task, **parts).at(batch).recipe
    if micro:
        plan = plan.model_copy(update={"batch": plan.batch.model_copy(update={"micro": micro})})
    return train_curve(Job("plan", plan, 3, 1, STOPS))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("task", "optimizer"),
    [pytest.param(task, optimizer, id=f"{task}-{optimizer['name']}",
                  marks=[] if (task, optimizer["name"]) in QUICK else pytest.mark.slow)
     for task in FRAMEWORKS for optimizer in (SGD, ADAMW)],
)  # fmt: skip
def test_its_run_is_that_of_this_package(task, optimizer):
    pytest.importorskip(FRAMEWORKS[task], exc_type=ImportError)
    for batch, micro in ((4, None), (16, 4)):
        wanted, found = (curve(name, batch, micro, optimizer=optimizer) for name in ("run", task))
        assert found.steps == wanted.steps == 256 // batch
        assert not found.stopped
        for model in ("raw", "average"):
            assert found.values[model]["loss"] == pytest.approx(wanted.values[model]["loss"], rel=2e-4), (model, batch)
    assert "learning rate" in found.facts["numbers"]


def test_a_comparison_of_it_is_judged_and_taken_up_again(tmp_path):
    asking = asked("subject", ema=None, optimizer={"name": "sgd", "lr": 0.02},
                   schedule={"length": "640 samples", "warmup": "0 samples"})  # fmt: skip
    found = run(asking, 16, seeds=8, workers=1, out=tmp_path / "out")
    assert found.verdicts["unscaled"] == "DIFFERENT"
    assert found.curves["plan"][0].facts["trainer"].startswith("Subject on torch")
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(cells) == 24
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    again = run(asking, 16, seeds=8, workers=1, out=tmp_path / "out")
    assert again.verdicts == found.verdicts
    assert [path for path in cells if path.stat().st_mtime_ns != before[path]] == [cells[0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_trainer_of_transformers_evaluates_itself():
    pytest.importorskip("transformers")
    made = asked("sentences", data_size=64, optimizer=ADAMW)
    found = train_curve(Job("reference", made, 0, 0, STOPS))
    assert found.values["raw"]["loss"][-1] < found.values["raw"]["loss"][0]
    assert set(found.values) == {"raw", "average"}
    known = probe(Job("reference", made, 0, 0, STOPS, limit=3))
    assert known.step > 0
    assert known.first["raw"]["loss"] == found.values["raw"]["loss"][0]


REFUSED = [
    ("two_steps", {}, "made 2 optimizer steps where one is wanted"),
    ("no_metrics", {}, "has no held-out metrics"),
    ("subject", {"optimizer": {"name": "lion", "lr": 1e-3}}, "optimizer is AdamW, the recipe's 'lion'"),
    ("subject", {"optimizer": {**SGD, "nesterov": True}}, "nesterov"),
    ("subject", {"data_size": 100}, "data_size=100 but task"),
    ("subject", {"noise": {}}, r"\[noise\] is not followed by a trainer of your own"),
    ("subject", {"groups": [{"name": "biases", "dims": "vectors", "lr": 0.01}]}, r"\[\[groups\]\] is not followed"),
]


@pytest.mark.parametrize(("task", "parts", "said"), REFUSED)
def test_what_it_cannot_follow_is_refused(task, parts, said):
    with pytest.raises(InputError, match=said):
        train_curve(Job("reference", asked(task, **parts), 0, 0, STOPS))


def test_a_batch_that_does_not_fit_the_stops_is_refused():
    with pytest.raises(InputError, match="no whole number of updates of 24"):
        curve("subject", 24)


def test_a_loss_that_is_not_finite_is_a_failed_run():
    found = curve("explodes", 4)
    assert "the reported loss is nan" in found.stopped
    assert len(found.values["raw"]["loss"]) == len(STOPS)


def test_the_command_says_what_is_missing(tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'task = "tests.verify.own_tasks:no_metrics"\n[batch]\nsize = 4\n[optimizer]\nname = "sgd"\nlr = 0.1\n'
        '[schedule]\nlength = "256 samples"\n'
    )
    assert command(["verify", "run", str(path), "--batch-size", "8", "--workers", "1", "--seeds", "8"]) == 2
    assert "metrics=(model)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["loop", "lightning", "hugging_face", "accelerate"])
def test_the_examples_of_the_page_are_compared(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip({"loop": "torch", "hugging_face": "transformers"}.get(name, name), exc_type=ImportError)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text.replace("lightning_task:make", f"{name}_task:make"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        code = command(["verify", "run", "mine.toml", "--batch-size", "16", "--seeds", "8", "--workers", "1", "--json"])
    finally:
        for file in FILES:
            sys.modules.pop(file.partition(".")[0], None)
    found = json.loads(capsys.readouterr().out)
    assert code in (0, 3, 4)
    assert found["facts"]["trainer"]
    assert len(found["seeds"]) == 8


def test_a_trainer_that_hangs_is_ended_and_the_line_named(tmp_path, capsys):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(
        InputError, match=r"hangs: no update .* within 0\.3 s; it stands in .*own_tasks\.py, line \d+, in waits"
    ):
        train_curve(Job("reference", asked("hangs"), 0, 0, STOPS, timeout=0.3))
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    found = curve("subject", 4)  # no time limit where none is given, none left behind
    assert not found.stopped
    path = tmp_path / "recipe.toml"
    path.write_text(
        'task = "tests.verify.own_tasks:hangs"\n[batch]\nsize = 4\n[optimizer]\nname = "sgd"\nlr = 0.1\n'
        '[schedule]\nlength = "256 samples"\n'
    )
    asking = ["verify", "run", str(path), "--batch-size", "8", "--workers", "1", "--seeds", "8", "--timeout", "0.5"]
    assert command(asking) == 2
    assert "in waits" in capsys.readouterr().err.replace("\n", " ")
    assert command([*asking[:-1], "0"]) == 2
    assert "timeout" in capsys.readouterr().err


def test_only_time_without_an_update_counts():
    patience = Patience(0.4)
    with patience:
        for _ in range(4):
            time.sleep(0.15)
            patience.news()
    with pytest.raises(InputError, match="hangs"), patience:
        time.sleep(5)
