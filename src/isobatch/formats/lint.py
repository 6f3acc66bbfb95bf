"""Lint: what looks wrong in a recipe as it stands, before any plan."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from isobatch.formats.ledger import Ledger
from isobatch.plan import Recipe
from isobatch.units import half_life

WARMUP_SHARE = 0.25
"""Share of the run from which a warm-up is named."""
FAR = 4
"""Factor between a batch and the file's own reference from which it is named."""


@dataclass(frozen=True)
class Lint:
    """One thing that looks wrong.

    Args:
        name: of the kind: warmup, minimum, average, reference, double, ramp.
        text: what stands there, and what to do.
    """

    name: str
    text: str


def lint(recipe: Recipe, ledger: Ledger) -> tuple[Lint, ...]:
    """Return what looks wrong in a recipe as it stands.

    Args:
        recipe: the recipe.
        ledger: of its file.

    Returns:
        Findings, none for a recipe that is fine.
    """
    doubts = [Lint("double", text) for text in ledger.doubts]
    return (*_schedule(recipe, ledger), *_average(recipe), *_reference(recipe, ledger), *doubts, *_ramp(ledger))


def _schedule(recipe: Recipe, ledger: Ledger) -> Iterator[Lint]:
    if recipe.schedule is None:
        return
    length = recipe.samples(recipe.schedule.length, "schedule.length")
    warm = ledger.spans.get("warmup", 0.0)
    if warm > WARMUP_SHARE * length:
        yield Lint("warmup", f"the warm-up is {warm / length:.0%} of the run (over {WARMUP_SHARE:.0%}); shorten it, or "
                   "check its unit")  # fmt: skip
    stairs = recipe.staircase()
    last = length * (1 - 1e-9)
    marks = [length * part / 20 for part in range(20)]
    low = min(stairs.at(mark) for mark in (*marks, last) if mark >= warm)
    high = max(stairs.at(mark) for mark in marks)
    after = [mark for mark in marks if mark >= warm and stairs.at(mark) <= low * (1 + 1e-9)]
    if high > low * 1.01 and after and min(after) <= 0.55 * length and warm < length / 2:
        yield Lint("minimum", f"the learning rate is at its minimum from {min(after) / length:.0%} of the run on; the "
                   "schedule was made for a shorter run, or steps for another batch")  # fmt: skip


def _average(recipe: Recipe) -> Iterator[Lint]:
    average = recipe.ema
    if average is None or recipe.schedule is None or average.decay is None or not 0 < average.decay < 1:
        return
    length = recipe.samples(recipe.schedule.length, "schedule.length")
    size = recipe.batch.size * average.every
    updates = length / size
    stated, ramp = half_life(average.decay, size), average.ramp
    reached = average.decay
    if ramp is not None and ramp.by == "power":
        reached = min(reached, 1 - (1 + updates / ramp.scale) ** -ramp.exponent)
    elif ramp is not None and ramp.by == "tensorflow":
        reached = min(reached, (1 + updates) / (10 + updates))
    elif ramp is not None and ramp.by == "exp" and ramp.tau is not None:
        tau = recipe.samples(ramp.tau, "ema.ramp.tau")
        reached = average.decay * -math.expm1(-length / tau)
    if reached < average.decay - 0.1 * (1 - average.decay):
        acts = half_life(reached, size)
        yield Lint("average", f"the average's decay {average.decay:g} never acts: its ramp ends at {reached:.6g}, a "
                   f"half-life of {acts / size:,.0f} updates where {stated / size:,.0f} are stated")  # fmt: skip
    elif stated > length:
        yield Lint("average", f"its half-life ({stated:,.0f} samples) is longer than the run ({length:,.0f}); the "
                   "average's decay never acts, lower it")  # fmt: skip


def _reference(recipe: Recipe, ledger: Ledger) -> Iterator[Lint]:
    reference, size = ledger.reference, recipe.batch.size
    if reference and ledger.stamp is None and not 1 / FAR < size / reference < FAR:
        yield Lint("reference", f"the global batch {size:,} is {size / reference:.3g} times the file's own reference "
                   f"{reference:,.0f}; plan from the reference, or say why")  # fmt: skip


def _ramp(ledger: Ledger) -> Iterator[Lint]:
    for item in ledger.unread:
        if item.key.rsplit(".", 1)[-1].replace("-", "_") == "rampup_batch_size":
            yield Lint("ramp", f"{item.key}: {item.why}")
