"""What a floor holds: the moments that do not come back by their own rule, and the way back by the first recipe."""

import math
from collections.abc import Callable

from isobatch.errors import InputError
from isobatch.recipe import RecipeData
from isobatch.rules.rule import Applied, Change, Rule
from isobatch.units import batch_ratio

MOMENTS = ("betas[0]", "betas[1]", "alpha")


def from_first(recipe: RecipeData, name: str, seen: Change, rule_of: Callable[[Change], Rule]) -> Applied | None:
    """Move a moment that a floor holds from what it was at the first batch, so that plans do not depend on the way.

    Args:
        recipe: a planned one; its stamp says what was held.
        name: of the moment, one of `MOMENTS`.
        seen: the change as the recipe's own number sees it.
        rule_of: the rule of the moment at a change.

    Returns:
        What moved it, its change counted from the first batch; None where nothing is held, or where the number was
        edited since.
    """
    stamp = recipe.planned
    first = None if stamp is None else stamp.held.get(f"optimizer.{name}")
    if stamp is None or first is None or seen.kappa == 1:
        return None
    here, there = (
        seen._replace(value=first, batch=stamp.batches[0], kappa=batch_ratio(size, stamp.batches[0]))
        for size in (recipe.batch.size, seen.new_batch)
    )
    held = Applied.by(rule_of(here), here).becomes
    return Applied.by(rule_of(there), there) if math.isclose(held, seen.value, rel_tol=1e-9) else None


def held_moments(recipe: RecipeData, moved: dict[str, Applied]) -> dict[str, float]:
    """Return the moments that their own rule would not bring back.

    Args:
        recipe: the reference recipe, or that of one of its groups.
        moved: every number of the recipe beside its rule.

    Returns:
        "optimizer.betas[0]" and the like -> what it is at the first batch: that of the recipe, or of its stamp.
    """
    found = {}
    for name in MOMENTS:
        rule, change, _ = moved[name]
        owns = name.partition("[")[0] in change.optimizer.moments
        if not owns or change.kappa == 1 or _comes_back(moved[name]):
            continue
        first = change.value
        if recipe.planned is not None and change.batch == recipe.batch.size:
            first = rule.number(change._replace(kappa=recipe.planned.batches[0] / change.batch))
        found[f"optimizer.{name}"] = first
    return found


def _comes_back(moved: Applied) -> bool:
    rule, change, becomes = moved
    try:
        back = rule.number(change._replace(value=becomes, kappa=1 / change.kappa))
    except InputError:  # by rounding beyond the end of the linear form, where the first recipe stands
        return False
    return math.isclose(back, change.value, rel_tol=1e-9, abs_tol=1e-15)
