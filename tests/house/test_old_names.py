"""Old public names of rules, curves, optimizers and control answer with the new one, and a warning that names it."""

import importlib

import pytest

MOVED = {
    "isobatch.rules.FAMILIES": "isobatch.rules.OPTIMIZERS",
    "isobatch.rules.Family": "isobatch.rules.OptimizerRow",
    "isobatch.rules.family": "isobatch.rules.optimizer_row",
    "isobatch.optimizers.CATALOGUE": "isobatch.rules.OPTIMIZERS",
    "isobatch.optimizers.Row": "isobatch.rules.OptimizerRow",
    "isobatch.optimizers.ready": "isobatch.optimizers.prepare_settings",
    "isobatch.optimizers.put": "isobatch.optimizers.write_prepared",
    "isobatch.schedules.SHAPES": "isobatch.curves.SHAPES",
    "isobatch.schedules.AutoWU": "isobatch.curves.AutoWU",
    "isobatch.schedules.DecaySchedule": "isobatch.curves.DecaySchedule",
    "isobatch.schedules.Growth": "isobatch.curves.Growth",
    "isobatch.schedules.Look": "isobatch.curves.Look",
    "isobatch.schedules.Staircase": "isobatch.curves.Staircase",
    "isobatch.schedules.interval_for": "isobatch.curves.interval_for",
    "isobatch.schedules.AdaScale": "isobatch.control.AdaScale",
    "isobatch.control.Split": "isobatch.data.Split",
    "isobatch.control.nearest_splits": "isobatch.data.nearest_splits",
}
GONE = {
    "isobatch.schedules.Legw": r'rules\.lr = "legw"',
    "isobatch.control.change_world": "split_batch",
    "isobatch.control.even_split": "split_batch",
    "isobatch.control.after_out_of_memory": "split_batch",
    "isobatch.control.WorldChange": "split_batch",
    "isobatch.control.Fallback": "split_batch",
}


def look(dotted):
    home, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_new_object_and_says_so(old):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        found = look(old)
    assert found is look(MOVED[old])


@pytest.mark.parametrize("old", GONE)
def test_what_is_gone_says_what_to_use(old):
    with pytest.raises(AttributeError, match=f"is gone; use .*{GONE[old]}"):
        look(old)


@pytest.mark.parametrize("home", ["rules", "optimizers", "schedules", "control"])
def test_other_names_are_not_there(home):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        look(f"isobatch.{home}.nothing")
