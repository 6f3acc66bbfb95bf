"""The batch schedule of a recipe: its stages in samples, and what they become at another batch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.plan.parts import Batch
    from isobatch.plan.recipe import Recipe


def batch_stages(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """Return the stages of a recipe's batch in samples.

    Args:
        recipe: the recipe; without batch.schedule it has one stage, batch.size.

    Returns:
        Pairs (first sample, batch); a start between two samples counts from the next one.

    Raises:
        InputError: a start that is no quantity or is in steps, a first start that is not 0, or starts that do not rise.
    """
    if recipe.batch.schedule is None:
        return ((0, recipe.batch.size),)
    name = "batch.schedule"
    stages = [(math.ceil(span(recipe, start, name)), batch) for start, batch in recipe.batch.schedule]
    if stages[0][0] != 0:
        first = recipe.batch.schedule[0]
        raise InputError(f'{name} must start at 0, not at "{first[0]}"; add ["0 {recipe.batch.unit}", batch] before it')
    for index, ((left, _), (right, _)) in enumerate(pairwise(stages)):
        if right <= left:
            before, after = recipe.batch.schedule[index][0], recipe.batch.schedule[index + 1][0]
            raise InputError(f'{name}="{after}" must start after "{before}"; give the stages in rising order')
    return tuple(stages)


def span(recipe: Recipe, quantity: str, name: str) -> float:
    """Return how many samples a quantity spans while the batch changes.

    Args:
        recipe: the recipe.
        quantity: such as "2 epochs".
        name: which setting it is, for messages.

    Returns:
        Samples.

    Raises:
        InputError: no quantity, or one in steps.
    """
    if quantity.rstrip(" s").endswith("step"):
        raise InputError(f'{name}="{quantity}" is in steps, whose size it changes; use epochs or {recipe.batch.unit}')
    return recipe.samples(quantity, name)


def scale_stages(recipe: Recipe, batch: Batch) -> tuple[tuple[str, int], ...] | None:
    """Return the batch schedule at another reference batch: every stage times kappa, its start kept in samples.

    Args:
        recipe: the reference recipe.
        batch: the new Batch part, whose micro x devices every stage is rounded to.

    Returns:
        The new batch.schedule, None for a recipe without one.
    """
    if recipe.batch.schedule is None:
        return None
    whole = batch.devices * (batch.micro or 1)
    stages = []
    for start, size in batch_stages(recipe):
        parts = (2 * size * batch.size + recipe.batch.size * whole) // (2 * recipe.batch.size * whole)
        stages.append((f"{start} {recipe.batch.unit}", max(1, parts) * whole))
    return tuple(stages)


def show_stages(stages: tuple[tuple[str, int], ...]) -> str:
    """Return a batch schedule for people.

    Args:
        stages: pairs (start, batch).

    Returns:
        Text.

    Example:
        >>> show_stages((("0 epochs", 8), ("10 epochs", 128)))
        '8 from 0 epochs, 128 from 10 epochs'
    """
    return ", ".join(f"{batch} from {start}" for start, batch in stages)
