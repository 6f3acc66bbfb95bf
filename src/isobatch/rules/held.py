"""What floors and rounding hold: the moments and stages of the batch that do not come back by themselves."""

import math
from collections.abc import Callable

from isobatch.errors import InputError
from isobatch.recipe import Batch, RecipeData
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


def moved_stages(recipe: RecipeData, batch: Batch) -> tuple[int, ...]:
    """Return the batches of a schedule's stages at another reference batch: times kappa, to the nearest whole split.

    Those of the first recipe are moved where an earlier plan rounded them, so that plans do not depend on the way.

    Args:
        recipe: with batch.schedule.
        batch: the new Batch part, without its stages.

    Returns:
        One batch a stage, a multiple of devices x micro.
    """
    first = _first_stages(recipe)
    stages, size = first or (_stages(recipe), recipe.batch.size)
    return _times(stages, batch.size, size, _grain(batch))


def held_stages(recipe: RecipeData, batch: Batch) -> tuple[int, ...]:
    """Return the batches of the stages of the first recipe, where those at another batch are rounded.

    Args:
        recipe: any.
        batch: the new Batch part.

    Returns:
        The batches, for its stamp; none where every stage is exact.
    """
    if recipe.batch.schedule is None:
        return ()
    first = _first_stages(recipe)
    if first is not None:
        return first[0]
    own, here = _stages(recipe), recipe.batch.size
    if all(stage * batch.size % (here * _grain(batch)) == 0 for stage in own):
        return ()
    there = here if recipe.planned is None else recipe.planned.batches[0]
    return _times(own, there, here, 1)


def _first_stages(recipe: RecipeData) -> tuple[tuple[int, ...], int] | None:
    """Stages of the first recipe and its batch, where the recipe's own stages still are what they were rounded to."""
    stamp, own = recipe.planned, _stages(recipe)
    if stamp is None or len(stamp.stages) != len(own):
        return None
    first = stamp.batches[0]
    return (
        (stamp.stages, first) if _times(stamp.stages, recipe.batch.size, first, _grain(recipe.batch)) == own else None
    )


def _stages(recipe: RecipeData) -> tuple[int, ...]:
    return tuple(size for _, size in recipe.batch.schedule or ())


def _grain(batch: Batch) -> int:
    return batch.devices * (batch.micro or 1)


def _times(stages: tuple[int, ...], there: int, here: int, grain: int) -> tuple[int, ...]:
    """Stages times there/here, to the nearest multiple of a grain that is not 0, half of one upwards."""
    return tuple(max(1, (2 * stage * there + here * grain) // (2 * here * grain)) * grain for stage in stages)


def _comes_back(moved: Applied) -> bool:
    rule, change, becomes = moved
    try:
        back = rule.number(change._replace(value=becomes, kappa=1 / change.kappa))
    except InputError:  # by rounding beyond the end of the linear form, where the first recipe stands
        return False
    return math.isclose(back, change.value, rel_tol=1e-9, abs_tol=1e-15)
