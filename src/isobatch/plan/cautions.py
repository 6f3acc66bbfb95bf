"""When the rules are weak: conditions, each with its number and its source."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.plan.plan import PlanWarning
from isobatch.plan.settings import horizon
from isobatch.plan.speed import speed_cautions
from isobatch.units import decay_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.recipe import Recipe
    from isobatch.plan.settings import Settings

LAG = 0.05
"""Relative lag of the average above which the rule is called weak."""
MOST_WARMUP = 0.5
"""Share of the run above which LEGW's warm-up is called long."""
FEW_STEPS = 100
"""Steps of a run, or of its warm-up times ten, below which it is called short."""


def cautions(recipe: Recipe, after: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[PlanWarning]:
    """Yield the conditions under which the plan may not be the same run.

    Args:
        recipe: the reference recipe.
        after: the scaled recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        kappa: new batch / old batch.

    Yields:
        One warning a condition that holds.
    """
    if kappa == 1:
        return
    if recipe.rules.lr == "speed":
        yield from speed_cautions(recipe)
    yield from _average(recipe, old, kappa)
    yield from _moments(recipe, old, new, kappa)
    yield from _momentum(recipe, old, new, kappa)
    yield from _stability(recipe, old, new, kappa)
    yield from _steps(recipe, new)
    family = rules.FAMILIES[recipe.optimizer.name]
    if family.lr_rule.confidence is rules.Confidence.CONVENTION and recipe.rules.lr == "auto":
        message = (
            f"the learning-rate rule of {recipe.optimizer.name} is what recipes do, not what theory says; verify it"
        )
        yield PlanWarning("rule is only a convention", message, "convention")
    if family.adaptive and not family.invariant and recipe.rules.lr in ("auto", "sqrt"):
        has_form = f"invariant-{recipe.optimizer.name}" in rules.FAMILIES
        way = "use --optimizer invariant, which assumes nothing" if has_form else "stay at a small kappa"
        message = (
            "early in training, on small data or at a large batch it is too small; give --noise-scale, verify it, or "
            f"{way}"
        )
        yield PlanWarning("square root needs noise to dominate v", message, "arXiv 2205.10287, 2402.18824")
    share = recipe.rules.noise_share
    if recipe.rules.lr == "noise-aware" and share is not None and rules.recommend(kappa, share) == "invariant":
        message = "one learning rate for all coordinates mends only part of it; use --optimizer invariant"
        error = rules.drift_error(kappa, share)
        yield PlanWarning(f"the square root would drift by {error:+.0%}", message, "derived; arXiv 2402.18824")
    if recipe.optimizer.clip is not None:
        message = "the clipping norm is kept because no rule is known; fewer steps clip as the batch grows"
        yield PlanWarning("gradient clipping", message, "unknown")
    if recipe.data_size is not None and new.batch > recipe.data_size >= old.batch:
        message = f"the data hold {recipe.data_size:,}; a step then holds samples more than once, which no rule expects"
        yield PlanWarning(f"batch {new.batch:,} is larger than the data", message, "derived")
    if recipe.batch_norm is not None and after.batch.per_device != recipe.batch.per_device:
        message = (
            f"batch statistics over {after.batch.per_device} instead of {recipe.batch.per_device} samples are another "
            "regulariser; keep batch.micro to keep them"
        )
        yield PlanWarning("batch norm sees another batch", message, "derived")


def _average(recipe: Recipe, old: Settings, kappa: float) -> Iterator[PlanWarning]:
    if recipe.ema is None:
        return
    decay = decay_at(old.half_life, old.batch * recipe.ema.every)
    gap = rules.lag(decay, kappa)
    if gap > LAG:
        message = f"the averaged model lags by about {gap:.0%} of one large step; raise the half-life or lower kappa"
        yield PlanWarning(f"kappa*(1-rho) = {kappa * (1 - decay):.3g} is not small", message, "derived from 2307.13813")


def _moments(recipe: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[PlanWarning]:
    if recipe.rules.betas != "power" or "betas" not in rules.FAMILIES[recipe.optimizer.name].moments:
        return
    for index, (was, becomes) in enumerate(zip(old.betas, new.betas, strict=True)):
        if becomes > was**kappa * (1 + 1e-12):
            message = (
                f"beta**kappa = {was**kappa:.4g} is held at {becomes:g}; the moment remembers more samples than before"
            )
            yield PlanWarning(f"betas[{index}] is at its floor", message, "convention (floors 0.5 and 0.95)")


def _momentum(recipe: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[PlanWarning]:
    kept = recipe.rules.momentum == "keep" and recipe.rules.lr != "legw"
    if not recipe.optimizer.momentum or recipe.schedule is None or not kept:
        return
    share = kappa * horizon(old.momentum) * old.batch / recipe.staircase().length
    if share > 0.01:
        message = f'the buffer spans {share:.1%} of the run; set rules.momentum = "sample-clock"'
        yield PlanWarning("kappa/(1-mu) steps are not short", message, "derived")


def _stability(recipe: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[PlanWarning]:
    effective, limit = new.lr / (1 - new.momentum), recipe.optimizer.lr_limit
    if limit is not None and effective > limit / 2:
        message = (
            f"lr/(1-momentum) = {effective:.4g} against a measured limit of {limit:g}; beyond half of it expect a gap"
        )
        yield PlanWarning("near the stability limit", message, "optimizer.lr_limit")
    elif limit is None and kappa >= 4 and not rules.FAMILIES[recipe.optimizer.name].adaptive:
        message = (
            f"lr/(1-momentum) grows to {effective:.4g} and optimizer.lr_limit is not given; every such rule ends where "
            "large steps are unstable: find it with `isobatch verify run --max-kappa`"
        )
        yield PlanWarning("stability limit unknown", message, "derived")


def _steps(recipe: Recipe, new: Settings) -> Iterator[PlanWarning]:
    if recipe.schedule is None:
        return
    stairs = recipe.staircase(new.batch)
    share = stairs.warmup / stairs.length
    if recipe.rules.lr == "legw" and share > MOST_WARMUP:
        message = "too little of the run is left at the full rate; lower the batch or train longer"
        yield PlanWarning(f"LEGW's warm-up takes {share:.0%} of the run", message, "derived from 1901.08256")
    steps = math.ceil(stairs.length / new.batch)
    if steps < FEW_STEPS:
        yield PlanWarning(
            f"only {steps} steps are left", "too few for any rule; lower kappa or train longer", "derived"
        )
    if 0 < stairs.warmup / new.batch < FEW_STEPS / 10:
        message = f"{stairs.warmup / new.batch:.3g} steps cover it, used through their mean; the start is coarse"
        yield PlanWarning("the warm-up is short", message, "derived")
