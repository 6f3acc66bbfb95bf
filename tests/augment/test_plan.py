"""The plan of a recipe with views or an adversary: what stays, and spans that survive another batch."""

from tests.augment.cases import parsed

PARTS = {
    "augment": {"view": "shift", "views": 3, "adjust_norm": "10 steps"},
    "adversary": {"eps": 0.1, "weights": [0.5, 0.5], "tau": 2, "warmup": "5 steps"},
}


def test_steps_of_the_recipe_become_samples():
    plan = parsed(**PARTS).at(48)
    assert plan.recipe.augment.adjust_norm == "120 samples"
    assert plan.recipe.adversary.warmup == "60 samples"
    rows = {row.key: row for row in plan.rows}
    assert "36 rows a step become 144" in rows["augment.views"].note
    assert "24 samples old become 96" in rows["adversary.tau"].note
    assert str(rows["adversary.tau"].confidence) == "unknown"


def test_recipes_without_them_gain_no_rows():
    assert not [row for row in parsed().at(48).rows if row.key.startswith(("augment", "adversary"))]
