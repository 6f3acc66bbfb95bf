"""What moves over the run of a recipe, at the places where its optimizer steps begin."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isobatch.curves import Ramp
from isobatch.curves.warmups import constant_spans
from isobatch.plan import Recipe

POINTS = 97
"""Places along the run at which a curve is read."""
_DIGITS = 6


@dataclass(frozen=True)
class Curve:
    """One setting over a run.

    Args:
        name: for people.
        samples: where its steps begin.
        steps: the same places as optimizer steps.
        values: of the setting in those steps; None where it is not finite.
    """

    name: str
    samples: tuple[float, ...]
    steps: tuple[int, ...]
    values: tuple[float | None, ...]


def unread(recipe: Recipe) -> str:
    """Return why a recipe has no curves over its run; "" where it has.

    Args:
        recipe: the recipe.

    Returns:
        A sentence.
    """
    if recipe.schedule is None:
        return "No curves: the recipe has no [schedule], so that the length of its run is not known."
    if recipe.schedule.searches:
        return "No curves: the learning rate is searched for as the run goes."
    if recipe.batch.schedule is not None or recipe.batch.adaptive is not None:
        return "No curves: the batch moves over the run, and the numbers per step with it; the rows hold for its start."
    return ""


def run_curves(recipe: Recipe) -> list[Curve]:
    """Return learning rate, weight decay where it moves, and decay and half-life of the weight average.

    Each value is the one of a whole step: the mean of the reference's own steps over its samples.

    Args:
        recipe: at its own batch.

    Returns:
        The curves, none where `unread` says why.

    Example:
        >>> lr, decay, half_life = run_curves(Recipe.load("examples/digits.toml"))
        >>> max(lr.values), decay.values[0], half_life.name
        (0.02, 0.999, 'half-life of the average (samples)')
    """
    if unread(recipe):
        return []
    size = recipe.batch.size
    stairs = recipe.staircase()
    count, top = max(1, math.ceil(stairs.length / size - 1e-9)), int(stairs.warmup // size)
    places = {round(index * (count - 1) / (POINTS - 1)) for index in range(POINTS)}
    steps = tuple(sorted(places | {step for step in (top - 1, top, top + 1) if 0 <= step < count}))
    samples = tuple(float(step * size) for step in steps)
    return [
        Curve(name, samples, steps, tuple(_rounded(value(seen)) for seen in samples)) for name, value in _read(recipe)
    ]


def _read(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Yield the name of each curve, and its value in the step that begins at a sample."""
    o, ema, size = recipe.optimizer, recipe.ema, recipe.batch.size
    stairs, decays = recipe.staircase(), recipe.curve("weight_decay")
    yield "learning rate", lambda seen: o.lr * stairs.mean(seen, seen + size)
    if decays is not None:
        yield "weight decay", lambda seen: o.weight_decay * decays.mean(seen, seen + size)
    if ema is None:
        return
    moving, warmup, end, over = recipe.average_schedule(), recipe.average_warmup(), recipe.half_life, size * ema.every
    if ema.ramp is not None and ema.ramp.by == "post-hoc":  # a power profile: its half-life is a share of what was seen
        warmup, end = Ramp(math.log(2) / (max(ema.ramp.profiles) + 1)), math.inf

    def spans(seen: float) -> float:
        """Half-lives of one update: of the schedule's own decay, or more of them while the average begins."""
        steady = end if moving is None else moving.half_life(seen, seen + over)
        return constant_spans(over, steady) if warmup is None else warmup.spans(seen, over, steady, 0)

    yield "decay of the average", lambda seen: 2 ** -spans(seen)
    name = f"half-life of the average ({recipe.batch.unit})"
    yield name, lambda seen: over / found if (found := spans(seen)) else math.inf


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
