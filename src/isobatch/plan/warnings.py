"""When a plan is weak: what its rules say themselves, and what the length of the run, the data or a limit say."""

import math
from collections.abc import Iterator

from isobatch.plan.plan import PlanWarning
from isobatch.plan.settings import Moves, Settings, curve, lr_rule_of, row_of
from isobatch.recipe import RecipeData
from isobatch.rules import Severity, Side, clip

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
    if recipe.optimizer.clip is not None:
        for found in clip.KEPT.warn(moved["lr"].change, recipe.optimizer.clip):
            yield PlanWarning(*found)


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
