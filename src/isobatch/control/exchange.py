"""Raise the batch where the learning rate would fall: the exchange of Smith et al., and Seesaw.

Both put the batch at B_ref/f(s), f the factor of the reference schedule. They differ in what the learning rate does.
With ratio = B/B_ref a step's learning rate is ratio**p * mean(f) times the recipe's: p = 1 (Smith) keeps it, and is the
linear rule at kappa = 1/f; p = 1/2 (Seesaw) lets it fall by sqrt(f), and is the square-root rule at kappa = 1/f. So
beside the rule of its optimizer each is the same run as the reference, in fewer steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from isobatch.control.batch_schedule import BatchSchedule
from isobatch.control.limits import multiples_near
from isobatch.errors import InputError
from isobatch.plan.settings import lr_rule_of
from isobatch.rules import Confidence, Rule
from isobatch.units import finite, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isobatch.curves import Pieces, Staircase
    from isobatch.plan import Recipe

SMITH = Rule(
    "lr, B/alpha where lr would be lr*alpha",
    "keeps lr/B of the reference at every sample, as the linear rule does; every step stays short of stability",
    "arXiv 1711.00489; linear rule: 1706.02677",
    Confidence.DERIVED,
)
SMITH_ELSEWHERE = Rule(
    "lr, B/alpha where lr would be lr*alpha",
    "the rule of this optimizer is not linear, so the learning rate per sample is above the reference's; verify it",
    "arXiv 1711.00489",
    Confidence.UNKNOWN,
)
SEESAW = Rule(
    "lr*sqrt(alpha), B/alpha where lr would be lr*alpha",
    "the square-root rule at kappa = 1/alpha, so it needs noise to dominate; stated for batches up to the critical one",
    "arXiv 2510.14717, by secondary sources",
    Confidence.CONVENTION,
)
SEESAW_ELSEWHERE = Rule(
    "lr*sqrt(alpha), B/alpha where lr would be lr*alpha",
    "the rule of this optimizer is no square root, so the learning rate per sample leaves the reference's; verify it",
    "arXiv 2510.14717, by secondary sources",
    Confidence.UNKNOWN,
)
_TOLERANCE = 1 + 1e-9


@dataclass(frozen=True)
class Milestones:
    """A learning rate that is cut at given samples, behind a warm-up: the classic staircase of factors.

    Args:
        warmup: the schedule before the first cut, constant after its warm-up.
        cuts: pairs (first sample, factor from there on), rising in samples and falling in factor.
    """

    warmup: Staircase | Pieces
    cuts: tuple[tuple[int, float], ...]

    def mean(self, start: float, stop: float) -> float:
        """Return the mean factor over the samples [start, stop).

        Args:
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            The mean.
        """
        before, lost = 1.0, 0.0
        for first, factor in self.cuts:
            lost += (before - factor) * max(0.0, stop - max(start, first))
            before = factor
        return self.warmup.mean(start, stop) - lost / (stop - start)


@dataclass(frozen=True)
class Exchange:
    """A batch schedule, and the learning rate that goes with it.

    Args:
        batches: batch as a function of samples.
        reference: factor on the learning rate that the batch takes over, as a function of samples.
        batch: B_ref, where the recipe's learning rate holds.
        exponent: p in ratio**p.
        rule: what is exchanged, why, and how sure it is.
        by_plan: whether the recipe's own rule and schedule give the same numbers, so that only the batch changes.
    """

    batches: BatchSchedule
    reference: Staircase | Pieces | Milestones
    batch: int
    exponent: float
    rule: Rule
    by_plan: bool

    def lr_factor(self, start: int, stop: int) -> float:
        """Return the factor on the recipe's learning rate of a step: ((stop-start)/B_ref)**p * mean(f).

        Args:
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            The factor, warm-up and batch included.
        """
        return ((stop - start) / self.batch) ** self.exponent * self.reference.mean(start, stop)


def smith(
    recipe: Recipe,
    *,
    most: int,
    cut: float = 0.5,
    milestones: Sequence[tuple[str, float]] = (),
    grain: int = 1,
) -> Exchange:
    """Raise the batch instead of lowering the learning rate.

    From the first sample at which the reference factor f is cut**k on, the batch is B_ref/cut**k, up to `most`; the
    learning rate per step stays near its peak, ratio * mean(f), and falls only once the batch cannot rise. The sum of
    the learning rate over any whole steps is the reference's.

    Args:
        recipe: the reference, with a schedule that falls or with milestones.
        most: largest batch, by memory or by the critical batch size.
        cut: alpha in (0, 1): one stage wherever f has fallen by it; nearer to 1 is finer.
        milestones: cuts of a constant schedule, such as [("60 epochs", 0.2), ("120 epochs", 0.2)], instead of `cut`.
        grain: what every batch is a multiple of.

    Returns:
        Batches and learning-rate factor. Confidence: derived with a linear rule, else unknown.

    Raises:
        InputError: a recipe without a falling schedule or with a batch schedule, or a value outside its range.

    Example:
        >>> from isobatch import Recipe
        >>> recipe = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1},
        ...                        "schedule": {"length": "800 samples", "shape": "linear"}})
        >>> smith(recipe, most=64).batches.stages
        ((0, 8), (400, 16), (600, 32), (704, 64))

    References:
        arXiv 1711.00489.
    """
    own = _exponent(recipe)
    return _exchange(recipe, 1.0, SMITH if own == 1 else SMITH_ELSEWHERE, own, most, cut, milestones, grain)


def seesaw(
    recipe: Recipe,
    *,
    most: int,
    cut: float = 0.5,
    milestones: Sequence[tuple[str, float]] = (),
    grain: int = 1,
) -> Exchange:
    """Share a fall of the learning rate between learning rate and batch: lr*sqrt(alpha), batch/alpha.

    The batches of `smith`; the learning rate is sqrt(ratio) * mean(f) times the recipe's.

    Args:
        recipe: the reference, with a schedule that falls or with milestones.
        most: largest batch; the critical batch size or less.
        cut: alpha in (0, 1): one stage wherever f has fallen by it; the published form halves.
        milestones: cuts of a constant schedule, instead of `cut`.
        grain: what every batch is a multiple of.

    Returns:
        Batches and learning-rate factor. Confidence: convention with a square-root rule, else unknown.

    Raises:
        InputError: as `smith`.

    Example:
        >>> from isobatch import Recipe
        >>> recipe = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3},
        ...                        "schedule": {"length": "800 samples"}})
        >>> exchange = seesaw(recipe, most=64, milestones=[("400 samples", 0.25)])
        >>> exchange.batches.stages, exchange.lr_factor(400, 432)
        (((0, 8), (400, 32)), 0.5)

    References:
        arXiv 2510.14717.
    """
    own = _exponent(recipe)
    return _exchange(recipe, 0.5, SEESAW if own == 0.5 else SEESAW_ELSEWHERE, own, most, cut, milestones, grain)


def _exponent(recipe: Recipe) -> float | None:
    rule = lr_rule_of(recipe)
    return rule.exponent if rule.curves is None else None


def _exchange(
    recipe: Recipe,
    exponent: float,
    rule: Rule,
    own: float | None,
    most: int,
    cut: float,
    milestones: Sequence[tuple[str, float]],
    grain: int,
) -> Exchange:
    size = recipe.batch.size
    if recipe.batch.schedule is not None:
        raise InputError("the recipe has a batch.schedule of its own, and both would set the batch; remove it")
    if size % whole("grain", grain):
        near = multiples_near(size, grain)
        raise InputError(f"batch.size={size} must be a multiple of grain={grain}; nearest: {near}")
    stairs, top = recipe.staircase(), whole("most", most) // grain * grain
    if top < size:
        raise InputError(f"most={most} must be at least batch.size={size}, in multiples of grain={grain}")
    reference, falls = stairs, ()
    if milestones:
        reference = _milestones(recipe, stairs, milestones)
        falls = reference.cuts
    else:
        falls = _falls(stairs, cut, top / size)
    stages = {0: size}
    for start, factor in falls:
        stages[start] = max(grain, min(top, math.floor(size / factor / grain + 0.5) * grain))
    by_plan = own == exponent and reference is stairs
    return Exchange(BatchSchedule(tuple(stages.items())), reference, size, exponent, rule, by_plan)


def _milestones(recipe: Recipe, stairs: Staircase | Pieces, milestones: Sequence[tuple[str, float]]) -> Milestones:
    if stairs.shape != "constant":
        raise InputError(f'milestones lower a constant schedule, and schedule.shape="{stairs.shape}" falls already')
    factor, cuts = 1.0, []
    for start, share in milestones:
        factor *= finite("milestone factor", share, 0, 1 - 1e-9, open_low=True)
        cuts.append((math.ceil(recipe.samples(start, "milestone")), factor))
    edges = [math.ceil(stairs.warmup) - 1, *(start for start, _ in cuts), math.ceil(stairs.length)]
    if any(right <= left for left, right in pairwise(edges)) or edges[1] < 1:
        raise InputError(
            f"milestones={list(milestones)} must rise, after the warm-up ({stairs.warmup:g} samples) "
            f"and before the end ({stairs.length:g})"
        )
    return Milestones(stairs, tuple(cuts))


def _falls(stairs: Staircase | Pieces, cut: float, largest: float) -> tuple[tuple[int, float], ...]:
    alpha = finite("cut", cut, 0, 1 - 1e-3, open_low=True)
    first, last = math.ceil(stairs.warmup / stairs.stair), max(1, math.ceil(stairs.length / stairs.stair))
    falls, factor = [], 1.0
    while factor * largest > _TOLERANCE:
        factor = max(factor * alpha, 1 / largest)
        index = bisect_left(
            range(last), -factor * _TOLERANCE, lo=first, key=lambda stair: -stairs.at((stair + 0.5) * stairs.stair)
        )
        if index >= last:
            break
        falls.append((math.ceil(index * stairs.stair), factor))
    if not falls and largest > 1 and stairs.at(stairs.length) == 1:
        raise InputError(
            f'schedule.shape="{stairs.shape}" never falls, so the batch would never rise; '
            "give a falling shape, or milestones"
        )
    return tuple(falls)
