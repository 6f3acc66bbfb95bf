"""When a plan is weak: what its rules say themselves, and what the length of the run, the data or a limit say."""

import math
from collections.abc import Iterator

from isobatch.plan.plan import PlanWarning, count, show
from isobatch.plan.settings import Moves, Settings, curve, lr_rule_of, row_of
from isobatch.recipe import RecipeData
from isobatch.rules import Severity, Side

FEW_STEPS = 100
"""Steps of a run, or of its warm-up times ten, below which it is called short."""


def warnings_of(
    recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves
) -> Iterator[PlanWarning]:
    """Yield the conditions under which the plan may not be the same run.

    Args:
        recipe: the reference recipe.
        after: the scaled recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        moved: every number beside its rule.

    Yields:
        One warning a condition that holds, the worst first.
    """
    if new.batch != old.batch:
        yield from sorted(_all(recipe, after, old, new, moved), key=lambda warning: warning.severity)


def _all(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[PlanWarning]:
    yield from _of_rules(recipe, moved)
    yield from _stability(recipe, old, new)
    yield from _steps(recipe, old, new)
    yield from _conventions(recipe, old)
    if recipe.data_size is not None and new.batch > recipe.data_size >= old.batch:
        message = f"the data hold {recipe.data_size:,}; a step then holds samples more than once, which no rule expects"
        yield PlanWarning(f"batch {new.batch:,} is larger than the data", message, "derived", Side.UP)
    if recipe.batch_norm is not None and after.batch.per_device != recipe.batch.per_device:
        message = (
            f"batch statistics over {after.batch.per_device} instead of {recipe.batch.per_device} samples are another "
            "regulariser; keep batch.micro to keep them"
        )
        yield PlanWarning("batch norm sees another batch", message, "derived")


def _of_rules(recipe: RecipeData, moved: Moves) -> Iterator[PlanWarning]:
    """Yield what the rules of the numbers that this recipe has say of themselves."""
    has = row_of(recipe).keys
    for name, applied in moved.items():
        setting = name.partition("[")[0]
        if setting in ("momentum", "betas", "alpha", "eps", "weight_decay") and setting not in has:
            continue
        if name == "lr":
            found = lr_rule_of(recipe).warn(applied.change, applied.becomes)
        else:
            found = applied.rule.warn(applied.change, applied.becomes)
        for condition, message, source, side, severity in found:
            said = condition if not condition.startswith("is ") else f"{name} {condition}"
            yield PlanWarning(said, message, source, side, severity)


def _stability(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[PlanWarning]:
    if row_of(recipe).sign_like:
        return
    effective, limit = new.lr / (1 - new.momentum), recipe.optimizer.lr_limit
    if limit is not None and effective > limit / 2:
        message = (
            f"lr/(1-momentum) = {effective:.4g} against a measured limit of {limit:g}; beyond half of it expect a gap"
        )
        yield PlanWarning("near the stability limit", message, "optimizer.lr_limit", Side.BOTH, Severity.FAILS)
    elif limit is None and new.batch >= 4 * old.batch:
        message = (
            f"lr/(1-momentum) grows to {effective:.4g} and optimizer.lr_limit is not given; every such rule ends where "
            "large steps are unstable: find it with `isobatch verify run --max-kappa`"
        )
        yield PlanWarning("stability limit unknown", message, "derived", Side.UP, Severity.WEAK)


def _conventions(recipe: RecipeData, old: Settings) -> Iterator[PlanWarning]:
    """Yield the numbers that look like another library's convention, and an average that the run is too short for."""
    ema, norm = recipe.ema, recipe.batch_norm
    if ema is not None and ema.decay is not None and 0 < ema.decay < 0.5:
        message = f"it looks like 1 - decay, as mmengine writes it; then ema.decay = {show(1 - ema.decay)} here"
        yield PlanWarning(f"ema.decay = {ema.decay:g} forgets in one update", message, "derived")
    if norm is not None and 0.5 < norm.momentum < 1:
        message = f"it looks like the share that is kept, as Keras writes it; then it is {show(1 - norm.momentum)} here"
        yield PlanWarning(f"batch_norm.momentum = {norm.momentum:g} forgets in one pass", message, "derived")
    if recipe.schedule is None or ema is None or not math.isfinite(old.half_life):
        return
    length = curve(recipe).length
    if old.half_life > length:
        left, unit = 0.5 ** (length / old.half_life), recipe.batch.unit
        message = f"of {count(length)} {unit}: at its end the average still holds {left:.0%} of the first weights"
        yield PlanWarning(f"the half-life of {count(old.half_life)} {unit} is longer than the run", message, "derived")


def _steps(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[PlanWarning]:
    if recipe.schedule is None or new.batch < old.batch:
        return
    stairs = curve(recipe, new.batch)
    steps = math.ceil(stairs.length / new.batch)
    if steps < FEW_STEPS:
        yield PlanWarning(
            f"only {steps} steps are left",
            "too few for any rule; lower kappa or train longer",
            "derived",
            Side.UP,
            Severity.FAILS,
        )
    if 0 < stairs.warmup / new.batch < FEW_STEPS / 10:
        message = f"{stairs.warmup / new.batch:.3g} steps cover it, used through their mean; the start is coarse"
        yield PlanWarning("the warm-up is short", message, "derived", Side.UP, Severity.WEAK)
