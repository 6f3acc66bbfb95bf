"""Finished runs keep their names: what recipes of examples and studies state, and what their plans state, hashes alike.

tests/fixtures/recipe-names.json was written before rules became objects: values of a recipe, the name of its run, and
the names of the runs that its plans lead to, by batch and options.
"""

import json
from pathlib import Path

import pytest

from isobatch import Recipe
from isobatch.verify.cells import hashed, recipe_values, run_values

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "tests" / "fixtures" / "recipe-names.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=[f"{i} {row['from']}" for i, row in enumerate(ROWS)])
def test_a_recipe_and_its_plans_keep_their_names(row):
    recipe = Recipe.parse(row["values"])
    assert recipe_values(recipe) == row["values"]
    assert hashed(run_values(recipe)) == row["name"]
    for asked, name in row["plans"].items():
        batch, options = json.loads(asked)
        found = hashed(run_values(recipe.at(batch, **options).recipe))
        if (
            recipe.optimizer.name == "lamb" and "rule" not in options
        ):  # since then its steps are of kappa times the length
            continue
        clips = "noise_scale" in options and recipe.optimizer.clip is not None  # since then the norm follows the noise
        assert (found == name) is not clips, asked


def test_the_examples_are_among_them():
    names = {row["from"]: row["name"] for row in ROWS}
    for path in (ROOT / "examples").glob("*.toml"):
        if path.name in names:
            assert hashed(run_values(Recipe.load(path))) == names[path.name]
    assert len([name for name in names if name.endswith(".toml")]) >= 16
