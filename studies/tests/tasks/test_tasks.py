"""Every task that the studies bring: found by its entry point, and through the battery of all tasks."""

import pytest
from studies.tests.tasks.speech import small
from tests.tasks.battery import BATTERY

from isobatch.installed import announced
from isobatch.tasks import find
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


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("check", BATTERY, ids=lambda check: check.__name__)
def test_every_task(check, name):
    check(name, *TASKS[name])


def test_every_entry_point_is_tested_and_leads_to_a_function():
    mine = {name: point for name, point in announced("isobatch.tasks").items() if point.value.startswith("isobatch_st")}
    assert mine.keys() == TASKS.keys()
    assert all(find(name) is point.load() for name, point in mine.items())
