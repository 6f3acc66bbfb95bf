"""Settings: a recipe's numbers per step at any batch, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.errors import InputError
from isobatch.plan.speed import speed_lr
from isobatch.units import batch_ratio

if TYPE_CHECKING:
    from isobatch.plan.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """Numbers per step at one batch; the schedule's factor is not in lr.

    Args:
        batch: global samples of the step.
        lr: peak learning rate.
        momentum: heavy-ball momentum.
        betas: Adam's moments.
        alpha: RMSProp's moment.
        eps: beside sqrt(v).
        weight_decay: lambda.
        half_life: of the weight average, in samples, at the start of the run.
        batch_norm: batch norm's momentum, None without batch norm.
    """

    batch: float
    lr: float
    momentum: float
    betas: tuple[float, float]
    alpha: float
    eps: float
    weight_decay: float
    half_life: float
    batch_norm: float | None


def base(recipe: Recipe) -> Settings:
    """Return the recipe's own numbers, at its own batch.

    Args:
        recipe: the recipe.

    Returns:
        Its settings.
    """
    o = recipe.optimizer
    norm = recipe.batch_norm.momentum if recipe.batch_norm else None
    return Settings(
        recipe.batch.size, o.lr, o.momentum, o.betas, o.alpha, o.eps, o.weight_decay, recipe.half_life, norm
    )


def scaled(recipe: Recipe, batch: float, per_device: float | None = None) -> Settings:
    """Return the recipe's numbers at another global batch.

    Args:
        recipe: the recipe.
        batch: samples of the step, positive.
        per_device: samples per device and forward pass; kept in proportion to the batch unless given.

    Returns:
        The settings at that batch; the recipe's own at its own batch.

    Raises:
        InputError: a batch that is not positive, or beyond a rule's domain.

    Example:
        >>> from isobatch import Recipe
        >>> recipe = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3}})
        >>> scaled(recipe, 32).lr
        0.002
    """
    old, kappa = base(recipe), batch_ratio(batch, recipe.batch.size)
    kinds = recipe.rules
    half_life = old.half_life * (kappa if kinds.average == "keep" else 1)
    ratio = kappa if per_device is None else batch_ratio(per_device, recipe.batch.per_device)
    norm = None if old.batch_norm is None else rules.scale_batch_norm(old.batch_norm, ratio)
    if kinds.lr == "legw":  # nothing else is retuned
        return replace(old, batch=batch, lr=scaled_lr(recipe, kappa), half_life=half_life, batch_norm=norm)
    rate = scaled_lr(recipe, kappa)
    sample_clock = kinds.momentum == "sample-clock"
    momentum = rules.scale_momentum(old.momentum, kappa) if sample_clock else old.momentum
    moments = tuple(_beta(kinds.betas, b, kappa, floor) for b, floor in zip(old.betas, kinds.floors, strict=True))
    adaptive = rules.FAMILIES[recipe.optimizer.name].adaptive
    return replace(
        old,
        batch=batch,
        lr=rate * rules.lr_factor(old.momentum, momentum),
        momentum=momentum,
        betas=(moments[0], moments[1]),
        alpha=_beta(kinds.betas, old.alpha, kappa, kinds.floors[1]),
        eps=rules.scale_eps(old.eps, kappa, old.lr, rate) if adaptive else old.eps,
        half_life=half_life,
        weight_decay=rules.scale_weight_decay(old.weight_decay, kappa, old.lr, rate, recipe.optimizer.coupling),
        batch_norm=norm,
    )


def scaled_lr(recipe: Recipe, kappa: float) -> float:
    """Return the learning rate at kappa times the batch, before any momentum factor.

    Args:
        recipe: the recipe, whose rules.lr chooses the form.
        kappa: new batch / old batch.

    Returns:
        eta'.
    """
    lr, kind = recipe.optimizer.lr, recipe.rules.lr
    if kind == "auto":
        kind = "linear" if rules.FAMILIES[recipe.optimizer.name].exponent == 1 else "sqrt"
    if kind == "keep" or kappa == 1:
        return lr
    if kind == "speed":
        return speed_lr(recipe, kappa * recipe.batch.size)
    if kind == "linear":
        return rules.linear(lr, kappa)
    if kind in ("sqrt", "legw"):
        return rules.square_root(lr, kappa)
    share = recipe.rules.noise_share
    if share is None:
        raise InputError("rules.noise_share is missing; give f in [0, 1] for the noise-aware learning rate")
    return rules.noise_aware(lr, kappa, share)


def _beta(kind: str, beta: float, kappa: float, floor: float) -> float:
    if kind == "keep" or kappa == 1:
        return beta
    return rules.power(beta, kappa, floor) if kind == "power" else rules.sde(beta, kappa)


def horizon(beta: float) -> float:
    """Return how many steps a moment remembers: 1/(1-beta).

    Args:
        beta: in [0, 1].

    Returns:
        Steps; infinity at beta = 1.
    """
    return math.inf if beta == 1 else 1 / (1 - beta)
