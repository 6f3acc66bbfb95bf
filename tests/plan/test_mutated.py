"""Recipes that somebody mistyped: thousands of mutations, each planned or refused by an InputError."""

import copy
import random
import tomllib
from pathlib import Path

import pytest

from isobatch import InputError, Recipe

FILES = sorted((Path(__file__).parent / "published").glob("*.toml"))
WHOLE = [tomllib.loads(path.read_text()) for path in FILES]
ODD = (None, True, False, 0, -1, 1, 0.0, -0.5, 1.0, 1e-300, 1e300, 7, 10**30, "", "soon", "0 steps", "-3 epochs",
       "1e9 epochs", "5 samples", "2 tokens", "nan epochs", "((", "\\d+", "sgd", "muon", "lion", "post-hoc", "power",
       "step", [], [1.0], [0.9, 0.99], {}, {"by": "hold"}, [{"by": "hold"}], [{"by": "cosine", "to": 0.0}],
       {"x": "1 step"})  # fmt: skip


def places(value, path=()):
    """Every place in nested tables and lists."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(rng):
    values = copy.deepcopy(rng.choice(WHOLE))
    other = rng.choice(WHOLE)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(list(places(values)))
        inner = values
        for key in way:
            inner = inner[key]
        kind = rng.random()
        if kind < 0.15 and isinstance(inner, dict):
            del inner[last]
        elif kind < 0.25 and isinstance(inner, dict):
            inner[f"{last}s"] = inner.pop(last)
        elif kind < 0.4:
            table = rng.choice(list(other))
            values[table] = copy.deepcopy(other[table])
            break
        elif kind < 0.6 and isinstance(inner[last], int | float) and not isinstance(inner[last], bool):
            inner[last] = inner[last] * rng.choice((0, -1, 0.1, 3, 1e9))
        else:
            inner[last] = copy.deepcopy(rng.choice(ODD))
        if not values:
            break
    return values


def try_out(seed):
    rng = random.Random(seed)
    values = mutated(rng)
    try:
        recipe = Recipe.parse(values)
        plan = recipe.at(rng.choice((recipe.batch.size * 4, max(1, recipe.batch.size // 4))))
        plan.to_json()
        plan.to_markdown()
    except InputError:
        return False
    return True


def test_mutated_recipes_are_planned_or_refused():
    planned = sum(try_out(seed) for seed in range(300))
    assert 15 < planned < 285, "some of both"


@pytest.mark.slow
def test_ten_thousand_mutated_recipes_are_planned_or_refused():
    assert 500 < sum(try_out(seed) for seed in range(300, 10_300)) < 9500
