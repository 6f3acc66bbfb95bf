"""The table of keys names every key, says what is true of it, and is the page in the docs."""

from pathlib import Path

import pytest
from tests.recipes import recipe

from isobatch import InputError, cli
from isobatch.export import keys, keys_table
from isobatch.export.effects import _EFFECTS, effect_of
from isobatch.recipe import RecipeData

PAGE = Path(__file__).parents[2] / "docs" / "recipe-keys.md"
WHOLE = (
    {
        "task": "digits",
        "batch": {"size": 8, "schedule": [["0 epochs", 8], ["2 epochs", 16]]},
        "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "decay": "decoupled", "clip": 1.0,
                      "lr_limit": 3.0},
        "schedule": {"decay_from": "2 epochs", "final": 0.1, "stair": 8.0},
        "ema": {"final": 1.0, "every": 2},
        "batch_norm": {"momentum": 0.1},
        "noise": {"every": 3, "half_life": "2 epochs"},
        "augment": {"view": "shift", "views": 2, "adjust_norm": "1 epoch"},
        "adversary": {"eps": 0.1, "weights": [0.5, 0.5], "warmup": "1 epoch"},
        "critical": {"batch": 100.0, "low": 50.0, "high": 200.0, "date": "2026-11-27"},
        "rules": {"average": "half-life"},
    },
    {
        "optimizer": {"name": "adamw", "weight_decay": 0.1},
        "ema": {"decay": None, "half_life": "2 epochs"},
        "rules": {"lr": "noise-aware", "noise_share": 0.5},
        "batch": {"micro": 4, "adaptive": {"exchange_rate": 2.0, "settle": "1 epoch"}},
        "planned": {"batches": [4, 8]},
    },
    {"optimizer": {"name": "rmsprop", "alpha": 0.99}},
    {"optimizer": {"name": "invariant-adamw", "reference_batch": 4}},
    {
        "optimizer": {"name": "adamw", "weight_decay": 0.1},
        "schedule": {"warmup": None, "shape": None},
        "curves": {"lr": [{"span": "1 epoch", "by": "linear", "start": 0.0, "to": 1.0},
                          {"by": "step", "every": "2 epochs", "gamma": 0.5}]},
        "groups": [{"name": "hidden", "dims": "matrices", "optimizer": "muon", "lr": 0.02, "momentum": 0.95},
                   {"name": "norms", "match": "norm", "dims": "vectors", "weight_decay": 0.0}],
        "ema": {"start": "100 steps", "ramp": {"by": "power", "inv_gamma": 2.0}},
        "spans": {"freeze": "50 steps"},
    },
    {"schedule": {"warmup": None, "shape": "autowu", "search": {"lr_min": 1e-4}}},
)  # fmt: skip
"""Recipes that state something for every kind of key between them."""
CHANGED = ("moves", "what you ask for", "kept in samples", "every stage", "stamped", "the new batch")


def leaves(part, place=""):
    for name in type(part).model_fields:
        value = getattr(part, name)
        if hasattr(type(value), "model_fields"):
            yield from leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def test_the_page_is_the_table(capsys):
    assert cli.run(["plan", "--keys"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()


def test_every_key_has_a_meaning_a_kind_and_an_effect():
    found = keys()
    assert len({key.name for key in found}) == len(found)
    for key in found:
        assert key.takes
        assert "value" not in key.takes.split(), key
        assert len(key.means) > 1, key
        assert key.effect, key


def test_every_field_of_the_recipe_is_in_the_table():
    named = {key.name.partition(".")[0].removesuffix("[]") for key in keys()}
    assert named == set(RecipeData.model_fields)


def test_nothing_is_said_of_keys_that_do_not_exist():
    names = {key.name for key in keys()}
    for said in _EFFECTS:
        assert said in names or any(name.startswith(f"{said}.") for name in names), said


def test_a_key_of_which_nothing_is_said_is_refused():
    with pytest.raises(InputError, match="nothing is said of batch_size"):
        effect_of("batch_size")


@pytest.mark.parametrize("parts", WHOLE, ids=["sgd", "adamw", "rmsprop", "invariant", "spoken", "autowu"])
def test_what_is_said_to_be_kept_is_kept_and_what_is_said_to_move_moves(parts):
    one, names = recipe(**parts), {key.name for key in keys()}
    after = dict(leaves(one.at(32).recipe))
    for key, value in leaves(one):
        if key not in names:  # a table that this recipe does not have
            continue
        effect = effect_of(key)[1]
        if not effect.startswith(CHANGED):
            assert after[key] == value, key
        elif effect.startswith("moves") and value is not None and key in MUST_MOVE & stated(parts):
            assert after[key] != value, key


MUST_MOVE = {"optimizer.lr", "optimizer.momentum", "optimizer.betas", "optimizer.alpha", "ema.decay",
             "batch_norm.momentum", "rules.noise_share"}  # fmt: skip


def stated(parts):
    return {f"{table}.{key}" for table, values in parts.items() if isinstance(values, dict) for key in values}


def test_a_value_with_a_bar_stays_in_its_cell():
    assert "\\|g(copy)\\|" in keys_table()


def test_the_table_reads_as_markdown():
    lines = keys_table().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}
    assert "## `[optimizer]`" in lines
