"""A plan of a plan: there and back gives the old numbers, and 4x is 2x then 2x, also where a floor was hit."""

import tomllib

import pytest
from tests.recipes import recipe

from isobatch import Recipe
from isobatch.errors import InputError
from isobatch.export import plan_toml
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


def owned(one):
    """The same without RMSProp's moment, which no optimizer below has."""
    found = numbers(one)
    return found[:5] + found[6:]


FLOORED = {
    "adamw": ({"optimizer": {"name": "adamw"}}, (0.9, 0.999), (0.5, 0.95)),
    "only the first": (
        {"optimizer": {"name": "adamw", "betas": [0.9, 0.9999999]}}, (0.9, 0.9999999), (0.5, 0.99996416),
    ),
    "already at the floor": ({"optimizer": {"name": "adamw", "betas": [0.5, 0.95]}}, (0.5, 0.95), (0.5, 0.95)),
    "below the floor": ({"optimizer": {"name": "adamw", "betas": [0.3, 0.9]}}, (0.3, 0.9), (0.3, 0.9)),
    "floors of its own": (
        {"optimizer": {"name": "adamw"}, "rules": {"floors": [0.2, 0.6]}}, (0.9, 0.999), (0.2, 0.6987),
    ),
    "lion's share": ({"optimizer": {"name": "lion", "betas": [0.9, 0.99]}}, (0.9, 0.99), (0.0, 0.027378)),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "before", "held"), FLOORED.values(), ids=FLOORED)
def test_a_floor_does_not_lose_what_it_holds(parts, before, held):
    one = recipe(**parts)
    there = one.at(8 * 358).recipe
    assert there.optimizer.betas == pytest.approx(held, rel=1e-3)
    assert there.at(8).recipe.optimizer.betas == pytest.approx(before, rel=1e-12)
    for way in ((64,), (8192,), (16, 8192), (8192, 4, 64)):
        batch = way[-1]
        found = there
        for size in way:
            found = found.at(size).recipe
        assert owned(found) == pytest.approx(owned(one.at(batch).recipe), rel=1e-9), way
    assert owned(one.at(2).recipe.at(8192).recipe.at(8).recipe) == pytest.approx(owned(one), rel=1e-9)
    assert Recipe.parse(there.model_dump(mode="json", exclude_none=True)) == there


def test_rmsprops_moment_comes_back_from_its_floor():
    one = recipe(optimizer={"name": "rmsprop", "alpha": 0.99})
    there = one.at(8 * 64).recipe
    assert there.optimizer.alpha == 0.95
    assert there.planned.held == {"optimizer.alpha": 0.99}
    assert there.at(8).recipe.optimizer.alpha == pytest.approx(0.99)


def test_a_group_has_floors_of_its_own():
    groups = [{"name": "head", "match": "head", "betas": [0.8, 0.99]}, {"name": "norms", "dims": "vectors", "lr": 0.1}]
    one = recipe(optimizer={"name": "adamw", "betas": [0.9, 0.999]}, groups=groups)
    there = one.at(8 * 64).recipe
    back = there.at(8).recipe
    assert [there.optimizer.betas, there.groups[0].betas, there.groups[1].betas] == [(0.5, 0.95), (0.5, 0.95), None]
    assert back.optimizer.betas == pytest.approx((0.9, 0.999))
    assert back.groups[0].betas == pytest.approx((0.8, 0.99))


def test_another_optimizer_of_a_group_is_written_whole():
    """Its numbers start from that optimizer's defaults, which hold at the first batch alone."""
    group = {"name": "hidden", "match": "hidden", "optimizer": "adamw", "lr": 1e-3}
    plan = recipe(groups=[group]).at(32)
    assert plan.recipe.groups[0].betas == pytest.approx((0.9**4, 0.999**4))
    assert plan.recipe.groups[0].betas[0] == plan.row("groups.hidden.betas[0]").becomes
    assert plan.recipe.groups[0].eps == plan.row("groups.hidden.eps").becomes == pytest.approx(0.5e-8)
    assert plan.recipe.groups[0].momentum is None


def test_a_held_beta_that_was_edited_since_counts_as_it_stands():
    there = recipe(optimizer={"name": "adamw"}).at(8 * 64).recipe
    values = there.model_dump(mode="json", exclude_none=True)
    values["optimizer"]["betas"] = [0.6, 0.95]
    back = Recipe.parse(values).at(8).recipe.optimizer.betas
    assert back == pytest.approx((0.6 ** (1 / 64), 0.999))


STAGED = {
    "a third": ((12, 100), (4,), (4, 33)),
    "halves go up": ((8, 101), (4,), (4, 51)),
    "nothing is left of it": ((8, 9), (2,), (2, 2)),
    "all at one": ((512, 8, 16), (16,), (16, 1, 1)),
    "exact": ((8, 96), (16,), (16, 192)),
    "a way round": ((8, 100), (16, 3, 7), (7, 88)),
    "on a micro-batch": ((8, 100), (24,), (24, 300)),
}


@pytest.mark.parametrize(("stages", "way", "there"), STAGED.values(), ids=STAGED)
@pytest.mark.parametrize("file", [False, True])
def test_rounding_does_not_lose_the_stages_of_the_batch(stages, way, there, file):
    schedule = [[f"{index} epochs", batch] for index, batch in enumerate(stages)]
    one = recipe(batch={"size": stages[0], "schedule": schedule})
    found = one
    for size in (*way, *way):
        found = found.at(size).recipe
        found = Recipe.parse(tomllib.loads(plan_toml(found.at(size)))) if file else found
    assert sizes(found) == sizes(one.at(way[-1]).recipe) == there
    assert sizes(found.at(stages[0]).recipe) == stages
    for size in (1, 5, 64):
        assert sizes(found.at(size).recipe) == sizes(one.at(size).recipe)


def sizes(one):
    return tuple(batch for _, batch in one.batch.schedule)


def test_stages_that_are_rounded_to_devices_come_back():
    one = recipe(batch={"size": 8, "schedule": [["0 epochs", 8], ["2 epochs", 100]]})
    there = one.at(devices=3, micro=4, batch_size=24).recipe
    assert sizes(there) == (24, 300)
    there = one.at(devices=3, micro=8, batch_size=24).recipe
    assert sizes(there) == (24, 312)
    assert sizes(there.at(8, devices=1, micro=4).recipe) == (8, 100)


def test_a_stage_that_was_edited_since_counts_as_it_stands():
    there = recipe(batch={"size": 12, "schedule": [["0 epochs", 12], ["2 epochs", 100]]}).at(4).recipe
    values = there.model_dump(mode="json", exclude_none=True)
    values["batch"]["schedule"][1][1] = 40
    back = Recipe.parse(values).at(12).recipe
    assert (sizes(back), back.planned.stages) == ((12, 120), ())


def test_damaged_stages_are_refused():
    values = recipe().model_dump(mode="json", exclude_none=True)
    with pytest.raises(InputError, match=r"planned\.stages"):
        Recipe.parse(values | {"planned": {"batches": [4, 8], "stages": [0]}})


@pytest.mark.parametrize("held", [{"optimizer.betas[0]": 1.0}, {"optimizer.betas[0]": -0.1}, {"optimizer.alpha": "x"}])
def test_a_damaged_stamp_is_refused(held):
    values = recipe(optimizer={"name": "adamw"}).model_dump(mode="json", exclude_none=True)
    with pytest.raises(InputError, match=r"planned\.held"):
        Recipe.parse(values | {"planned": {"batches": [4, 8], "held": held}})


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


def test_the_end_of_the_linear_form_is_no_one_way_street():
    one = recipe(optimizer={"name": "adamw", "betas": [0.0, 0.99]}, rules={"betas": "linear"})
    for batch in (1, 3, 5, 7):
        assert one.at(batch).recipe.at(8).recipe.optimizer.betas == pytest.approx((0.0, 0.99))
