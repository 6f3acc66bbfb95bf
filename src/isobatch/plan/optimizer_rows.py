"""The optimizer's rows of a plan: learning rate, moments, eps and weight decay, each beside its rule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.plan.plan import Row
from isobatch.plan.settings import Settings, horizon
from isobatch.plan.speed import speed_note, speed_rule
from isobatch.rules import Rule, betas, epsilon, linear_epoch, momentum, weight_decay
from isobatch.rules import learning_rate as lr_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.recipe import Recipe


def make_row(key: str, was: object, becomes: object, rule: Rule, note: str = "", formula: str | None = None) -> Row:
    """Return a row beside its rule.

    Args:
        key: the setting.
        was: its value at the old batch.
        becomes: its value at the new batch.
        rule: its words.
        note: horizons, other forms, consequences.
        formula: in place of the rule's own.

    Returns:
        The row.
    """
    because = f"{rule.because} ({rule.source})" if rule.source not in (rule.because, "recipe") else rule.because
    return Row(key, was, becomes, formula or rule.formula, because, rule.confidence, note)


def optimizer_rows(recipe: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[Row]:
    """Yield the rows of the optimizer's numbers.

    Args:
        recipe: the reference recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        kappa: new batch / old batch.

    Yields:
        One row a number that the optimizer has.
    """
    o, kinds = recipe.optimizer, recipe.rules
    family = rules.FAMILIES[o.name]
    rule, sample_clock = _lr_rule(recipe), kinds.momentum == "sample-clock"
    scales_momentum = o.momentum > 0 and sample_clock and rule is not lr_rules.SEARCHED
    formula = f"{rule.formula} * (1-mu')/(1-mu)" if scales_momentum else rule.formula
    yield make_row("optimizer.lr", old.lr, new.lr, rule, _lr_note(recipe, old, new, kappa), formula)
    if o.momentum > 0:
        other = rules.scale_momentum(old.momentum, kappa)
        note = _horizon(old.momentum, new.momentum, old, new)
        note += (
            f"; other form: keep {o.momentum:g} and lr x {kappa:g}" if sample_clock else f"; other form: {other:.6g}"
        )
        yield make_row(
            "optimizer.momentum",
            old.momentum,
            new.momentum,
            momentum.SAMPLE_CLOCK if sample_clock else linear_epoch.KEPT if kinds.lr == "legw" else momentum.KEPT,
            note,
        )
    form = {"power": betas.POWER, "linear": betas.SDE, "keep": betas.KEPT}[kinds.betas]
    form = linear_epoch.KEPT if kinds.lr == "legw" else form
    if "betas" in family.moments:
        for index, (was, becomes) in enumerate(zip(old.betas, new.betas, strict=True)):
            note = _horizon(was, becomes, old, new) + _other_beta(was, kappa, kinds.betas)
            floored = kinds.betas == "power" and becomes > was**kappa * (1 + 1e-12)
            note += f"; at its floor, the power rule gives {was**kappa:.4g}" if floored else ""
            yield make_row(f"optimizer.betas[{index}]", was, becomes, form, note)
    if "alpha" in family.moments:
        yield make_row("optimizer.alpha", old.alpha, new.alpha, form, _horizon(old.alpha, new.alpha, old, new))
    if family.adaptive:
        yield make_row("optimizer.eps", old.eps, new.eps, _eps_rule(recipe))
    if o.weight_decay > 0:
        yield make_row("optimizer.weight_decay", old.weight_decay, new.weight_decay, _decay_rule(recipe))


def _lr_rule(recipe: Recipe) -> Rule:
    if recipe.schedule is not None and recipe.schedule.shape == "autowu":
        return lr_rules.SEARCHED
    family = rules.FAMILIES[recipe.optimizer.name]
    chosen = {
        "auto": family.lr_rule,
        "linear": lr_rules.LINEAR_ADAM if family.adaptive else lr_rules.LINEAR,
        "sqrt": lr_rules.SQUARE_ROOT if family.adaptive else lr_rules.SQUARE_ROOT_CONVENTION,
        "noise-aware": lr_rules.NOISE_AWARE,
        "legw": linear_epoch.PEAK,
        "speed": speed_rule(recipe),
        "keep": lr_rules.KEPT,
    }
    return chosen[recipe.rules.lr]


def _lr_note(recipe: Recipe, old: Settings, new: Settings, kappa: float) -> str:
    if recipe.rules.lr == "speed":
        return speed_note(recipe, new.batch)
    family, share = rules.FAMILIES[recipe.optimizer.name], recipe.rules.noise_share
    if _lr_rule(recipe) is lr_rules.SEARCHED:
        return ""
    if family.invariant:
        return "no regime is assumed: the second moment is the reference batch's own"
    if family.adaptive and recipe.rules.lr == "noise-aware" and share is not None:
        after = rules.noise_share_after(share, kappa)
        return (
            f"noise share f = {share:.3f} becomes {after:.3f}; the square root ({math.sqrt(kappa) * old.lr:.4g}) would "
            f"drift by {rules.drift_error(kappa, share):+.1%} per sample; recommended: {rules.recommend(kappa, share)}"
        )
    if family.adaptive and recipe.rules.lr in ("auto", "sqrt"):
        low, high = sorted((math.sqrt(kappa), kappa))
        return (
            f"assumes that noise dominates v; without a noise scale the truth lies in "
            f"[{low * old.lr:.4g}, {high * old.lr:.4g}] (square root to linear)"
        )
    if old.momentum > 0:
        return f"lr/(1-momentum) = {old.lr / (1 - old.momentum):.4g} becomes {new.lr / (1 - new.momentum):.4g}"
    return ""


def _other_beta(beta: float, kappa: float, kind: str) -> str:
    if kind == "linear":
        return f"; power form: {beta**kappa:.6g}"
    linear = 1 - kappa * (1 - beta)
    return f"; linear form: {linear:.6g}" if linear >= 0 else f"; linear form ends at kappa {horizon(beta):.4g}"


def _horizon(was: float, becomes: float, old: Settings, new: Settings) -> str:
    before, after = horizon(was), horizon(becomes)
    return (
        f"horizon {before:,.4g} steps = {before * old.batch:,.6g} samples becomes "
        f"{after:,.4g} steps = {after * new.batch:,.6g} samples"
    )


def _eps_rule(recipe: Recipe) -> Rule:
    if recipe.rules.lr == "legw":
        return linear_epoch.KEPT
    return epsilon.KEPT if rules.FAMILIES[recipe.optimizer.name].invariant else epsilon.SCALED


def _decay_rule(recipe: Recipe) -> Rule:
    if recipe.rules.lr == "legw":
        return linear_epoch.KEPT
    kind = recipe.optimizer.coupling
    if kind == "coupled":
        adaptive = rules.FAMILIES[recipe.optimizer.name].adaptive
        return weight_decay.COUPLED_ADAPTIVE if adaptive else weight_decay.COUPLED_SGD
    table = {"decoupled": weight_decay.DECOUPLED, "independent": weight_decay.INDEPENDENT}
    return table.get(kind, weight_decay.TRUST_RATIO)
