"""Every number of a recipe at another batch, each moved by one rule: the plan prints it, the loop trains by it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from isobatch.curves import Pieces, Staircase
from isobatch.errors import InputError
from isobatch.recipe import Batch, Group, RecipeData
from isobatch.rules import (
    OPTIMIZERS,
    Change,
    OptimizerRow,
    Rule,
    average,
    batch_norm,
    clip,
    epsilon,
    momentum,
    noise_share,
    weight_decay,
)
from isobatch.rules.betas import beta_rule
from isobatch.rules.held import from_first
from isobatch.rules.lr import LEARNING_RATES, lr_rule
from isobatch.rules.lr.keep import SEARCHED
from isobatch.rules.reduction import in_unit, power_of
from isobatch.rules.rule import Applied, Span
from isobatch.units import batch_ratio

R = TypeVar("R", bound=RecipeData)
Moves = dict[str, Applied]


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
        clip: largest norm of the gradient, None without a clip.
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
    clip: float | None = None

    def number(self, key: str) -> float:
        """Return the number of a key of the optimizer's groups.

        Args:
            key: such as "lr" or "betas[0]".

        Returns:
            The number.

        Example:
            >>> from isobatch.plan import Recipe
            >>> recipe = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3}})
            >>> base(recipe).number("betas[1]")
            0.999
        """
        name, _, index = key.rstrip("]").partition("[")
        value = getattr(self, name)
        return value[int(index)] if index else value


def base(recipe: RecipeData) -> Settings:
    """Return the recipe's own numbers, at its own batch.

    Args:
        recipe: the recipe.

    Returns:
        Its settings.
    """
    o = recipe.optimizer
    norm = recipe.batch_norm.momentum if recipe.batch_norm else None
    return Settings(
        recipe.batch.size, o.lr, o.momentum, o.betas, o.alpha, o.eps, o.weight_decay, recipe.half_life, norm, o.clip
    )


def scaled(recipe: RecipeData, batch: float, per_device: float | None = None) -> Settings:
    """Return the recipe's numbers at another global batch.

    Args:
        recipe: the recipe.
        batch: samples of the step, positive.
        per_device: samples that batch norm sees in a forward pass; kept in proportion to the batch unless given.

    Returns:
        The settings at that batch; the recipe's own at its own batch.

    Raises:
        InputError: a batch that is not positive, or beyond a rule's domain.

    Example:
        >>> from isobatch.plan import Recipe
        >>> recipe = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3}})
        >>> scaled(recipe, 32).lr
        0.002
    """
    return settings_of(recipe, batch, moves(recipe, batch, per_device))


def settings_of(recipe: RecipeData, batch: float, moved: Moves) -> Settings:
    """Return the numbers of moves as settings.

    Args:
        recipe: the recipe.
        batch: the new batch.
        moved: from `moves`.

    Returns:
        The settings.
    """
    names = ("lr", "momentum", "alpha", "eps", "weight_decay", "half_life")
    numbers = {name: moved[name].becomes for name in names}
    betas = (moved["betas[0]"].becomes, moved["betas[1]"].becomes)
    norm = moved["batch_norm"].becomes if "batch_norm" in moved else None
    clip_ = moved["clip"].becomes if "clip" in moved else None
    return replace(base(recipe), batch=batch, betas=betas, batch_norm=norm, clip=clip_, **numbers)


def moves(recipe: RecipeData, batch: float, per_device: float | None = None) -> Moves:
    """Return every number of a recipe at another batch, beside the rule that computed it.

    Args:
        recipe: the recipe.
        batch: the new batch.
        per_device: samples that batch norm sees in a forward pass; kept in proportion to the batch unless given.

    Returns:
        Setting -> what moved it: lr, momentum, betas[0], betas[1], alpha, eps, weight_decay, half_life, and clip,
        ema.decay, ema.final, ema.ramp.inv_gamma, batch_norm where the recipe has them.

    Raises:
        InputError: a batch that is not positive, or beyond a rule's domain.
    """
    change = _change(recipe, batch)
    found = dict(_optimizer(recipe, change))
    found |= _average(recipe, change)
    if recipe.batch_norm is not None:
        ratio = change.kappa if per_device is None else batch_ratio(per_device, normalised_over(recipe))
        seen = change._replace(kappa=ratio, value=recipe.batch_norm.momentum)
        found["batch_norm"] = Applied.by(batch_norm.POWER, seen)
    return found


def normalised_over(recipe: RecipeData, batch: Batch | None = None) -> int:
    """Return the samples over which batch norm takes its statistics in one forward pass.

    Args:
        recipe: whose batch norm it is.
        batch: another batch than the recipe's own.

    Returns:
        Samples of one device, or of all where they are synchronised.
    """
    found = recipe.batch if batch is None else batch
    norm = recipe.batch_norm
    return found.per_device * (found.devices if norm is not None and norm.synchronised else 1)


def of_group(recipe: R, group: Group) -> R:
    """Return the recipe by which a group of parameters is trained; a second optimizer takes its own rules.

    Args:
        recipe: the recipe.
        group: one of its groups.

    Returns:
        The recipe with the group's numbers in [optimizer], and no groups.

    Example:
        >>> from isobatch.plan import Recipe
        >>> recipe = Recipe.parse({
        ...     "batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3},
        ...     "groups": [{"name": "hidden", "dims": "matrices", "optimizer": "muon", "lr": 0.02, "momentum": 0.95}]})
        >>> scaled(of_group(recipe, recipe.groups[0]), 32).lr
        0.08
    """
    own = {"optimizer": group.of(recipe.optimizer), "groups": ()}
    if recipe.planned is not None and group.own_moments:
        own["planned"] = recipe.planned.of_group(group.name)
    if group.optimizer is not None and recipe.rules.lr not in ("auto", "keep"):
        own["rules"] = recipe.rules.model_copy(update={"lr": "auto", "noise_share": None})
    return recipe.model_copy(update=own)


def searched(recipe: RecipeData, moved: Moves) -> Moves:
    """Return the moves of a plan whose learning rate is found by a search; others come back as they are.

    Args:
        recipe: the recipe.
        moved: from `moves`.

    Returns:
        The moves; what stands beside the learning rate still follows the rule that the search replaces.
    """
    if recipe.schedule is None or not recipe.schedule.searches:
        return moved
    lr = moved["lr"]
    return moved | {"lr": Applied.by(SEARCHED, lr.change._replace(value=recipe.optimizer.lr))}


def row_of(recipe: RecipeData) -> OptimizerRow:
    """Return the row of a recipe's optimizer.

    Args:
        recipe: the recipe.

    Returns:
        Its row.
    """
    return OPTIMIZERS[recipe.optimizer.name]


def coupling_of(recipe: RecipeData) -> str:
    """Return how a recipe's weight decay is coupled: as it says, or as its optimizer does.

    Args:
        recipe: the recipe.

    Returns:
        decoupled, coupled, independent or trust-ratio.
    """
    return recipe.optimizer.decay or row_of(recipe).decay


def lr_rule_of(recipe: RecipeData) -> Rule:
    """Return the learning-rate rule of a recipe.

    Args:
        recipe: the recipe.

    Returns:
        The rule; of less confidence where its critical batch is only a noise scale.
    """
    row, word, known = row_of(recipe), recipe.rules.lr, recipe.critical
    rule = lr_rule(row, word, kept=_averages_kept(recipe))
    guessed = LEARNING_RATES[row.lr if word == "auto" else word].guessed
    only_noise = known is not None and known.noise_scale == known.batch
    return guessed(rule) if guessed is not None and only_noise else rule


def noise_share_of(recipe: RecipeData) -> float | None:
    """Return the noise share of the squared gradient at the recipe's batch.

    Args:
        recipe: its rules.noise_share, or the noise scale that was measured beside its critical batch.

    Returns:
        f in [0, 1], None where neither says it.
    """
    known = recipe.critical
    if recipe.rules.noise_share is not None or known is None or known.noise_scale is None:
        return recipe.rules.noise_share
    return noise_share(recipe.batch.size, known.noise_scale)


def _averages_kept(recipe: RecipeData) -> bool:
    """Return whether the averages of the gradient stay per step, or there are none to move."""
    o, kinds = recipe.optimizer, recipe.rules
    if "momentum" in row_of(recipe).moments:
        return kinds.momentum == "keep" or not o.momentum
    return kinds.betas == "keep" or not any(o.betas)


def curve(recipe: RecipeData, batch: float | None = None) -> Staircase | Pieces:
    """Return the curve of the learning rate as a function of samples.

    Args:
        recipe: the recipe.
        batch: global samples per step, which moves the curve under some rules; the recipe's own batch unless given.

    Returns:
        The staircase.

    Raises:
        InputError: no length, a warm-up longer than the run, or pieces under a rule that moves curves.
    """
    stairs, rule = RecipeData.staircase(recipe), lr_rule_of(recipe)
    if batch is None or rule.curves is None:
        return stairs
    if isinstance(stairs, Pieces):
        raise InputError(
            f"the rule {recipe.rules.lr!r} moves the warm-up or the length of a curve; say it as schedule.warmup and "
            "schedule.shape instead of curves.lr, or plan by the recipe's own rule"
        )
    span = Span(stairs.length, stairs.warmup, stairs.decay_from, stairs.stair)
    moved = rule.curves(span, _change(recipe, batch))
    return replace(stairs, length=moved.length, warmup=moved.warmup, decay_from=moved.decay_from, stair=moved.stair)


def horizon(beta: float) -> float:
    """Return how many steps a moment remembers: 1/(1-beta).

    Args:
        beta: in [0, 1].

    Returns:
        Steps; infinity at beta = 1.
    """
    return math.inf if beta == 1 else 1 / (1 - beta)


def _change(recipe: RecipeData, batch: float) -> Change:
    o, known = recipe.optimizer, recipe.critical
    run = None if recipe.schedule is None else RecipeData.staircase(recipe)
    return Change(
        kappa=batch_ratio(batch, recipe.batch.size),
        value=o.lr,
        batch=recipe.batch.size,
        optimizer=row_of(recipe),
        lr=o.lr,
        share=recipe.rules.noise_share,
        critical=None if known is None else known.batch,
        length=math.inf if run is None else run.length,
        warmup=0.0 if run is None else run.warmup,
        limit=o.lr_limit,
    )


def _optimizer(recipe: RecipeData, change: Change) -> Iterator[tuple[str, Applied]]:
    """Yield the numbers of the optimizer: the learning rate first, because others stand beside it."""
    o, kinds, row = recipe.optimizer, recipe.rules, change.optimizer
    lr, coupling = lr_rule_of(recipe), coupling_of(recipe)
    rate = Applied.by(lr, change).becomes
    others: Callable[[Rule, str], Rule] = lambda rule, letter: rule if lr.others is None else lr.others(letter)  # noqa: E731
    summed: Callable[[Applied, str], Applied] = lambda found, name: (  # noqa: E731
        found if not recipe.batch.summed
        else in_unit(found, power_of(name, row, coupling, inside=o.eps_inside))
    )  # fmt: skip
    held = change._replace(value=o.momentum)
    moved = Applied.by(others(momentum.clock_of(kinds.momentum, held), "mu"), held)
    follows = o.momentum > 0 and moved.rule.formula == momentum.SAMPLE_CLOCK.formula and not row.normalises_after
    full = rate * momentum.lr_factor(o.momentum, moved.becomes) if follows else rate
    first = summed(Applied(momentum.beside(lr) if follows else lr, change, full), "lr")
    new_lr = first.becomes
    yield "lr", first
    yield "momentum", moved
    for name, value, floor in (
        ("betas[0]", o.betas[0], kinds.floors[0]),
        ("betas[1]", o.betas[1], kinds.floors[1]),
        ("alpha", o.alpha, kinds.floors[1]),
    ):
        seen = change._replace(value=value, floor=0.0 if row.normalises_after else floor)
        rule_of: Callable[[Change], Rule] = lambda c, name=name: others(beta_rule(kinds.betas, c, name), "beta")  # noqa: E731
        yield name, from_first(recipe, name, seen, rule_of) or Applied.by(rule_of(seen), seen)
    # by a search the printed rate is not the one that these stand beside
    plain, real = ("eta'*(1-mu)/(1-mu')" if follows else "eta'"), "eta'"
    if recipe.schedule is not None and recipe.schedule.searches:
        plain, real = f"({lr.formula})", f"({first.rule.formula})"
    seen = change._replace(value=o.eps, rate=rate, new_lr=new_lr)
    eps = epsilon.eps_rule(row, lr, plain, inside=o.eps_inside)
    yield "eps", summed(Applied.by(others(eps, "eps") if row.adaptive else epsilon.NONE, seen), "eps")
    decay = weight_decay.decay_rule(row, coupling, real)
    moved = Applied.by(others(decay, "lambda"), seen._replace(value=o.weight_decay))
    yield "weight_decay", summed(moved, "weight_decay")
    if o.clip is not None:
        told = seen._replace(value=o.clip, share=noise_share_of(recipe))
        yield "clip", summed(Applied.by(others(clip.clip_rule(told), "clip"), told), "clip")


def _average(recipe: RecipeData, change: Change) -> Iterator[tuple[str, Applied]]:
    kept = recipe.rules.average == "keep"
    span, decay = (average.HALF_LIFE_MOVED, average.KEPT) if kept else (average.HALF_LIFE, average.POWER)
    ema = recipe.ema
    if ema is not None and ema.ramp is not None and ema.ramp.by == "post-hoc":
        yield "half_life", Applied.by(average.HALF_LIFE, change._replace(value=recipe.half_life))
        return
    yield "half_life", Applied.by(span, change._replace(value=recipe.half_life))
    if ema is None:
        return
    yield "ema.decay", Applied.by(decay, change._replace(value=recipe.average_decay))
    if ema.final is not None:
        yield "ema.final", Applied.by(decay, change._replace(value=ema.final))
    if ema.ramp is not None and ema.ramp.by == "power":
        rule = average.inv_gamma_rule(ema.ramp.exponent)
        yield "ema.ramp.inv_gamma", Applied.by(rule, change._replace(value=ema.ramp.scale))
