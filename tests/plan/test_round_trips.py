"""A plan of a plan: there and back gives the old numbers, and 4x is 2x then 2x, wherever no floor was hit."""

import pytest
from tests.recipes import recipe

from isobatch import Recipe
from isobatch.plan import base, scaled

RECIPES = {
    "sgd": {},
    "heavy ball": {"optimizer": {"momentum": 0.9, "weight_decay": 1e-4}},
    "heavy ball, mu kept": {"optimizer": {"momentum": 0.9}, "rules": {"momentum": "keep"}},
    "adam, coupled decay": {"optimizer": {"name": "adam", "weight_decay": 0.01}},
    "adamw": {"optimizer": {"name": "adamw", "weight_decay": 0.01}},
    "adamw, linear betas": {"optimizer": {"name": "adamw", "betas": [0.9, 0.99]}, "rules": {"betas": "linear"}},
    "adamw, linear lr": {"optimizer": {"name": "adamw", "weight_decay": 0.01}, "rules": {"lr": "linear"}},
    "adamw, noise-aware": {
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "rules": {"lr": "noise-aware", "noise_share": 0.6},
    },
    "invariant adamw": {"optimizer": {"name": "invariant-adamw", "weight_decay": 0.01, "reference_batch": 8}},
    "adamw, independent decay": {"optimizer": {"name": "adamw", "weight_decay": 1e-4, "decay": "independent"}},
    "rmsprop": {"optimizer": {"name": "rmsprop", "alpha": 0.99, "momentum": 0.5}},
    "lars": {"optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 0.1}},
    "lamb": {"optimizer": {"name": "lamb", "weight_decay": 0.1}},
    "lion": {"optimizer": {"name": "lion", "betas": [0.9, 0.99]}},
    "muon": {"optimizer": {"name": "muon", "momentum": 0.95}},
    "everything kept": {"optimizer": {"name": "adamw"}, "rules": {"lr": "keep", "betas": "keep"}},
    "half-life and batch norm": {"ema": {"decay": None, "half_life": "3 epochs"}, "batch_norm": {"momentum": 0.1}},
    "cadence and cosine decay": {"ema": {"every": 3, "final": 1.0}, "schedule": {"length": "500 steps"}},
    "no schedule, no average": {"schedule": None, "ema": None},
}
rows = pytest.mark.parametrize("parts", RECIPES.values(), ids=RECIPES)


def numbers(one):
    """Every number of a recipe that a plan may touch, on the clock of samples."""
    s = base(one)
    found = [s.batch, s.lr, s.momentum, *s.betas, s.alpha, s.eps, s.weight_decay, s.half_life, s.batch_norm or 0.0]
    stairs = one.staircase() if one.schedule else None
    found += [stairs.length, stairs.warmup, stairs.stair, stairs.final] if stairs else []
    average = one.average_schedule()
    found += [average.start, average.final, average.stair] if average else []
    return [*found, one.rules.noise_share or 0.0]


@rows
def test_four_times_and_back(parts):
    one = recipe(**parts)
    there = one.at(32).recipe
    assert numbers(there.at(8).recipe) == pytest.approx(numbers(one), rel=1e-10)


@rows
def test_four_times_is_twice_two_times(parts):
    one = recipe(**parts)
    assert numbers(one.at(16).recipe.at(32).recipe) == pytest.approx(numbers(one.at(32).recipe), rel=1e-10)


@rows
def test_the_same_batch_changes_nothing(parts):
    one = recipe(**parts)
    plan = one.at(8)
    assert plan.kappa == 1
    assert not plan.warnings
    assert numbers(plan.recipe) == numbers(one)
    assert scaled(one, 8) == base(one)


@rows
def test_the_scaled_recipe_survives_json(parts):
    plan = recipe(**parts).at(32)
    assert Recipe.parse(plan.to_dict()["recipe"]) == plan.recipe


def test_a_floor_is_the_exception():
    one = recipe(optimizer={"name": "adamw"})
    there = one.at(8 * 64).recipe
    assert there.optimizer.betas == (0.5, 0.95)
    back = there.at(8).recipe.optimizer.betas
    assert back[0] == pytest.approx(0.5 ** (1 / 64))
    assert back[0] > 0.9


def test_the_reference_staircase_is_kept_in_the_scaled_recipe():
    one = recipe(schedule={"length": "500 steps", "warmup": "50 steps"})
    plan = one.at(128)
    assert plan.recipe.staircase() == one.staircase()
    assert plan.recipe.schedule.length == "4000 samples"
    assert plan.recipe.at(1024).recipe.staircase() == one.staircase()
    assert plan.recipe.staircase().mean(0, 128) == pytest.approx(sum(range(1, 17)) / 16 / 50)


def test_the_stairs_of_an_average_schedule_are_kept_too():
    one = recipe(ema={"final": 1.0})
    other = one.at(128).recipe.average_schedule()
    mine = one.average_schedule()
    assert other.stair == mine.stair == 8
    for seen in (0, 1280, 5120, 9600):
        assert other.half_life(seen, seen + 128) == pytest.approx(mine.half_life(seen, seen + 128), rel=1e-9)
