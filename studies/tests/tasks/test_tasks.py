"""Every task that the studies bring: found by its entry point, and through the battery of all tasks."""

import pytest
import torch
from studies.tests.tasks.speech import small
from tests.tasks.battery import BATTERY

from isobatch.errors import InputError
from isobatch.installed import announced
from isobatch.plan import Recipe
from isobatch.tasks import find, make_run
from isobatch.train import Trainer
from isobatch_studies.tasks.frames import fold_of
from isobatch_studies.tasks.speech import pools

GLYPHS = {"data": "glyphs", "side": 8, "frames": 124, "width": 8, "stages": 2, "hidden": 8}
TASKS = {
    "a2c-atari": (500, {"pool": 2, "width": 2}),
    "a2c-cartpole": (500, {}),
    "autoencoder": (1437, {}),
    "byol": (124, GLYPHS),
    "dino": (124, GLYPHS),
    "image-cnn": (124, {"data": "glyphs", "side": 8, "frames": 124, "width": 4, "hidden": 8}),
    "polyak": (124, {key: value for key, value in GLYPHS.items() if key != "hidden"}),
    "pseudo-label": (small.SLOTS, small.OPTIONS),
    "vae": (1437, {}),
}


@pytest.fixture(autouse=True)
def noise_for_speech(monkeypatch):
    monkeypatch.setattr(pools, "corpus", small.corpus)


FRAMES = {"data": "glyphs", "side": 8, "frames": 124, "fold": 1, "width": 4}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("check", BATTERY, ids=lambda check: check.__name__)
def test_every_task(check, name):
    check(name, *TASKS[name])


def test_every_entry_point_is_tested_and_leads_to_a_function():
    mine = {name: point for name, point in announced("isobatch.tasks").items() if point.value.startswith("isobatch_st")}
    assert mine.keys() == TASKS.keys()
    assert all(find(name) is point.load() for name, point in mine.items())


@pytest.mark.parametrize("kind", ["lstm", "cnn", "mlp"])
def test_frames_leave_a_fold_of_the_training_part_for_choosing(kind):
    recipe = Recipe.parse({
        "task": f"isobatch_studies.tasks.frames:make_{kind}", "batch": {"size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"length": "64 samples"}, "options": FRAMES,
    })  # fmt: skip
    whole = recipe.model_copy(update={"options": {k: v for k, v in FRAMES.items() if k != "fold"}})
    run, every = (make_run(one, 0) for one in (recipe, whole))
    taken = [fold_of(every.samples[range(124)][1], fold) for fold in range(5)]
    assert torch.stack(taken).sum(0).eq(1).all()
    assert len(run.samples) == 124 - int(taken[1].sum())
    found = run.evaluate()
    assert found.keys() == {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    assert every.evaluate()["loss"] == pytest.approx(found["loss"])
    Trainer(run, recipe).train_to(64)
    assert run.evaluate()["loss"] < found["loss"]


def test_a_fold_that_is_not_there_is_refused():
    options = {**FRAMES, "fold": 5}
    values = {"task": "isobatch_studies.tasks.frames:make_mlp", "batch": {"size": 8}, "options": options}
    recipe = Recipe.parse({**values, "optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"length": "64 samples"}})
    with pytest.raises(InputError, match=r"options.fold=5 must be in \[0, 4\]"):
        make_run(recipe, 0)
