import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.control import BatchSchedule
from isobatch.errors import InputError
from isobatch.plan import Recipe, scaled

OPTIMIZER = {"name": "sgd", "lr": 0.02}


def recipe(schedule, **batch):
    values = {"size": 8, "schedule": schedule} | batch
    return Recipe.parse(
        {"data_size": 1437, "batch": values, "optimizer": OPTIMIZER, "schedule": {"length": "30 epochs"}}
    )


def test_a_recipe_spells_its_schedule_in_quantities(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(
        "data_size = 1437\n[batch]\nsize = 8\n"
        'schedule = [["0 epochs", 8], ["2.5 epochs", 64], ["20_000 samples", 128]]\n'
        '[optimizer]\nname = "sgd"\nlr = 0.02\n'
    )
    # 2.5 epochs are 3592.5 samples; the stage holds from the next whole one.
    assert BatchSchedule.from_recipe(Recipe.load(file)).stages == ((0, 8), (3593, 64), (20_000, 128))
    assert BatchSchedule.from_recipe(recipe(None)).stages == ((0, 8),)


def test_the_first_batch_need_not_be_the_one_at_which_the_settings_hold():
    late = recipe([["0 epochs", 32], ["1 epoch", 8]])
    assert BatchSchedule.from_recipe(late).at(0) == 32
    assert scaled(late, 32).lr == pytest.approx(0.08)


def test_a_plan_multiplies_every_stage_and_keeps_its_start():
    plan = recipe([["0 epochs", 8], ["10 epochs", 128]]).at(batch_size=32)
    assert plan.recipe.batch.schedule == (("0 samples", 32), ("14370 samples", 512))
    row = plan.row("batch.schedule")
    assert row.was == (("0 epochs", 8), ("10 epochs", 128))
    assert row.becomes == (("0 samples", 32), ("14370 samples", 512))
    assert "32 from 0 samples, 512 from 14370 samples" in plan.to_markdown()
    assert plan.recipe.at(batch_size=8).recipe.batch.schedule == (("0 samples", 8), ("14370 samples", 128))
    assert Recipe.parse(json.loads(plan.to_json())["recipe"]) == plan.recipe
    assert all(row.key != "batch.schedule" for row in recipe(None).at(batch_size=32).rows)


def test_stages_are_rounded_to_micro_times_devices():
    plan = recipe([["0 epochs", 8], ["1 epoch", 24]], size=16, micro=8).at(batch_size=40, micro=4, devices=2)
    assert [batch for _, batch in plan.recipe.batch.schedule] == [24, 64]  # 20 and 60; halves round up
    tiny = recipe([["0 epochs", 8], ["1 epoch", 128]], size=128).at(batch_size=4)
    assert [batch for _, batch in tiny.recipe.batch.schedule] == [1, 4]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4), kappa=st.integers(1, 32))
def test_settings_of_a_stage_do_not_depend_on_the_reference_of_the_recipe(sizes, kappa):
    own = recipe([[f"{i} epochs", size] for i, size in enumerate(sizes)])
    plan = own.at(batch_size=8 * kappa)
    for (_, small), (_, large) in zip(own.batch.schedule, plan.recipe.batch.schedule, strict=True):
        assert large == small * kappa
        assert scaled(plan.recipe, large).lr == pytest.approx(scaled(own, large).lr, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], r"batch.schedule=\[\] has no stage; give"),
        ([["0 epochs", 0]], 'batch.schedule from "0 epochs": 0 must be a whole number of at least 1'),
        ([["0 epochs", -8]], "-8 must be a whole number of at least 1"),
        ([["0 epochs", 8.5]], r"batch.schedule.0.1=8.5"),
        ([["0 epochs", True]], r"batch.schedule.0.1=True"),
        ([["0 epochs"]], "batch.schedule.0.1 is missing"),
        ([["1 epochs", 8]], 'must start at 0, not at "1 epochs"; add'),
        ([["0 epochs", 8], ["0 samples", 16]], '"0 samples" must start after "0 epochs"'),
        ([["0 epochs", 8], ["2 epochs", 16], ["1 epoch", 32]], '"1 epoch" must start after "2 epochs"'),
        ([["0 steps", 8]], '"0 steps" is in steps, whose size it changes; use epochs or samples'),
        ([["0 epochs", 8], ["nan epochs", 16]], "is not a quantity"),
        ([["0 tokens", 8]], "is in tokens, but the clock counts samples"),
    ],
)
def test_bad_schedules_are_refused_with_the_value(schedule, message):
    with pytest.raises(InputError, match=message):
        recipe(schedule)


def test_every_stage_must_be_a_multiple_of_micro_times_devices():
    with pytest.raises(InputError, match=r'"1 epoch"=20 is not a multiple of micro x devices = 8; nearest: 16 or 24'):
        recipe([["0 epochs", 8], ["1 epoch", 20]], micro=4, devices=2)


def test_a_stage_beyond_a_rule_is_refused_before_the_first_step():
    values = {
        "batch": {"size": 8, "schedule": [["0 samples", 8], ["800 samples", 8000]]},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "rules": {"betas": "linear"},
    }
    with pytest.raises(InputError, match="kappa=1000"):
        Recipe.parse(values)
