"""goal = "speed": not the same run at another batch, but the fastest to the same loss, by a measured critical batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.errors import InputError
from isobatch.plan.calibration import Critical
from isobatch.plan.plan import PlanWarning
from isobatch.rules import Confidence, Rule, critical_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.recipe import Recipe

GOALS = ("equivalence", "speed")
_SIGN_LIKE = ("adam", "adamw", "rmsprop", "lion")


def by_speed(recipe: Recipe, noise_scale: float | None) -> Recipe:
    """Return the recipe with the speed rule, and the critical batch that it uses.

    Args:
        recipe: the recipe, with or without [critical].
        noise_scale: in samples; multiplied by the recipe's calibration where there is one, else taken as it is.

    Returns:
        The recipe; at its own batch it is the same run.

    Raises:
        InputError: neither a critical batch nor a noise scale, or a batch schedule.
    """
    if recipe.batch.schedule is not None or recipe.batch.adaptive is not None:
        raise InputError('goal="speed" chooses one batch; remove batch.schedule and batch.adaptive')
    known = recipe.critical
    if noise_scale is not None:
        rules.steps_factor(1, noise_scale)
        if noise_scale == 0:
            raise InputError("noise scale=0 must be positive: without noise every batch takes the same steps")
        calibrated = known is not None and known.ratio is not None
        known = known.calibrated(noise_scale) if known is not None and calibrated else given(noise_scale)
    if known is None:
        raise InputError(
            'goal="speed" needs a critical batch: measure one with `isobatch noise sweep --calibrate`, which stores '
            "[critical] in the recipe, or give --noise-scale"
        )
    return recipe.model_copy(
        update={"critical": known, "rules": recipe.rules.model_copy(update={"lr": "speed", "noise_share": None})}
    )


def given(noise_scale: float) -> Critical:
    """Return a critical batch that is only a noise scale, and says so.

    Args:
        noise_scale: in samples.

    Returns:
        Without interval and ratio.
    """
    return Critical(batch=noise_scale, source="a noise scale taken for it, uncalibrated", noise_scale=noise_scale)


def speed_lr(recipe: Recipe, batch: float) -> float:
    """Return the best learning rate at a batch, before any momentum factor.

    Args:
        recipe: with [critical]; its learning rate counts as the best at its batch.
        batch: samples of the step.

    Returns:
        eta'.

    Raises:
        InputError: no [critical].
    """
    best = rules.optimal_lr if _sgd_like(recipe) else rules.surge_lr
    return best(recipe.optimizer.lr, recipe.batch.size, batch, critical_of(recipe).batch)


def critical_of(recipe: Recipe) -> Critical:
    """Return the recipe's critical batch.

    Args:
        recipe: the recipe.

    Returns:
        Its [critical].

    Raises:
        InputError: there is none.
    """
    if recipe.critical is None:
        raise InputError('rules.lr = "speed" needs [critical]; measure it with `isobatch noise sweep --calibrate`')
    return recipe.critical


def stretch(recipe: Recipe, batch: float) -> float:
    """Return by which factor a run takes more samples at another batch: (1 + B'/Bc)/(1 + B/Bc).

    Args:
        recipe: with [critical].
        batch: B'.

    Returns:
        The factor.
    """
    size = critical_of(recipe).batch
    return rules.samples_factor(batch, size) / rules.samples_factor(recipe.batch.size, size)


def speed_rule(recipe: Recipe) -> Rule:
    """Return the words beside the learning rate; an optimizer that neither theory covers is "unknown".

    Args:
        recipe: the recipe.

    Returns:
        The rule.
    """
    name = recipe.optimizer.name
    rule = critical_batch.OPTIMAL_SGD if _sgd_like(recipe) else critical_batch.OPTIMAL_ADAM
    return _sure(rule, known=(name == "sgd" or name in _SIGN_LIKE) and not _uncalibrated(recipe))


def length_rule(recipe: Recipe) -> Rule:
    """Return the words beside the length of the run.

    Args:
        recipe: the recipe.

    Returns:
        The hyperbola; "unknown" where the critical batch is only a noise scale.
    """
    return _sure(critical_batch.HYPERBOLA, known=not _uncalibrated(recipe))


def speed_note(recipe: Recipe, batch: float) -> str:
    """Return the note beside the learning rate: the critical batch used, and the rate at the ends of its interval.

    Args:
        recipe: with [critical].
        batch: the new batch.

    Returns:
        Text.
    """
    known = critical_of(recipe)
    note = known.about(recipe.batch.unit)
    ends = [end for end in (known.low, known.high) if end is not None]
    if len(ends) == 2:
        low, high = sorted(
            speed_lr(recipe.model_copy(update={"critical": known.model_copy(update={"batch": end})}), batch)
            for end in ends
        )
        note += f"; over the interval [{low:.4g}, {high:.4g}]"
    return note


def speed_cautions(recipe: Recipe) -> Iterator[PlanWarning]:
    """Yield what a speed plan does not promise.

    Args:
        recipe: with [critical].

    Yields:
        Warnings.
    """
    message = (
        "steps, samples and learning rate differ from the reference's by design; it assumes that the recipe's learning "
        "rate is the best one at its own batch"
    )
    yield PlanWarning("another run, not the same one", message, "arXiv 1812.06162, 2.2")
    if _uncalibrated(recipe):
        message = (
            "B_simple was up to 20 times off the critical batch in 1812.06162 and orders of magnitude under Adam; "
            "calibrate it with `isobatch noise sweep --calibrate`"
        )
        yield PlanWarning("a noise scale is not a critical batch", message, "arXiv 1812.06162, table 1; 2505.23971")


def _uncalibrated(recipe: Recipe) -> bool:
    return recipe.critical is not None and recipe.critical.noise_scale == recipe.critical.batch


def _sure(rule: Rule, *, known: bool) -> Rule:
    return rule if known else replace(rule, confidence=Confidence.UNKNOWN)


def _sgd_like(recipe: Recipe) -> bool:
    return rules.FAMILIES[recipe.optimizer.name].exponent == 1
