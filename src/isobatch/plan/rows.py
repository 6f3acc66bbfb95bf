"""The rows of a plan: each number beside the rule that computed it, with horizons, other forms and consequences."""

import math
from collections.abc import Iterator
from itertools import chain

from isobatch.curves import Pieces, Staircase
from isobatch.plan.moving import MEAN, SHARE, curve_rows, group_rows, make_row, ramp_rows, told_steps, whole_steps
from isobatch.plan.plan import R, Row, count, show
from isobatch.plan.settings import (
    Moves,
    Settings,
    curve,
    horizon,
    lr_rule_of,
    normalised_over,
    row_of,
    scaled,
)
from isobatch.recipe import RecipeData, Split
from isobatch.rules import (
    Confidence,
    Rule,
    drift_error,
    noise_share_after,
    recommend,
    scale_clip,
    scale_momentum,
)
from isobatch.rules.betas import FLOORED
from isobatch.rules.lr.keep import SEARCHED
from isobatch.rules.rule import Applied
from isobatch.units import decay_at, half_life

_VIEWS = Rule(
    "views kept", "the clock counts samples, so learning rate and views stay", "1901.09335", Confidence.CONVENTION
)
_AGE = Rule("steps kept", "how old directions may become in samples is not known", "unknown", Confidence.UNKNOWN)
_PASSES = Rule("B'/(devices*micro)", "n: passes on each device that are one update", "derived", Confidence.DERIVED)
_ASKED = Rule("kappa*B", "the batch you ask for", "recipe", Confidence.DERIVED)


def all_rows(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[Row]:
    """Yield the rows of a plan below row 0.

    Args:
        recipe: the reference recipe.
        after: the scaled recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        moved: every number beside its rule.

    Returns:
        The rows.
    """
    return chain(
        _batch_rows(recipe, after, old, new),
        _optimizer_rows(recipe, old, new, moved),
        group_rows(recipe, new.batch),
        _schedule_rows(recipe, old, new),
        curve_rows(recipe, old, new),
        _average_rows(recipe, after, old, new, moved),
        ramp_rows(recipe, old, new, moved),
        _augmentation_rows(recipe, int(new.batch)),
        _norm_rows(recipe, after, moved),
    )


def kept_row(recipe: RecipeData, split: Split) -> Row:
    """Return row 0: the batch is kept, by accumulation where it no longer fits.

    Args:
        recipe: the reference recipe.
        split: how the batch lies on the devices that were asked for.

    Returns:
        The row.
    """
    n, old = split.accumulation, recipe.batch
    passes = f"{split.micro}" if split.devices == 1 else f"{split.devices} x {split.micro}"
    if n == 1:
        where = "the same devices" if split.devices == old.devices else f"one pass of {passes}"
        note = f"{where} at {split.size}; only the speed of larger steps is given up"
    else:
        note = f"{n} passes of {'' if split.even else 'up to '}{passes} are one update of {split.size}"
    if split.even_micro is not None:
        equal = split.size // (split.devices * split.even_micro)
        note += f"; micro = {split.even_micro} makes it n = {equal} equal passes"
    if split.batch_norm is not None and split.micro != old.per_device:
        note += f"; batch norm then sees {split.micro} samples a pass: its momentum becomes {split.batch_norm:.4g}"
        note += ", and its statistics differ"
    because = "one update of B is the same update however it is split, so nothing else changes"
    how = f"keep the batch, accumulate n = {n}"
    return Row("batch.size (kept)", split.size, split.size, how, because, Confidence.DERIVED, note)


def _batch_rows(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings) -> Iterator[Row]:
    note, steps = "", None
    if recipe.schedule is not None and recipe.batch.schedule is None:
        steps = whole_steps(curve(recipe).length, old), whole_steps(curve(recipe, new.batch).length, new)
        note = f"{steps[0]:,} steps become {steps[1]:,}"
    if recipe.planned is not None:
        way = " to ".join(map(str, recipe.planned.batches))
        note += f"{'; ' if note else ''}planned before, {way}: what that plan moved is not moved again"
    unit = recipe.batch.unit
    yield make_row("batch.size", recipe.batch.size, after.batch.size, _ASKED, note, unit=unit, steps=steps)
    was, becomes = recipe.batch, after.batch
    note = f"{was.devices} x {was.per_device} x n = {was.accumulation} becomes "
    note += f"{becomes.devices} x {becomes.per_device} x n = {becomes.accumulation} (devices x micro x n)"
    yield make_row("batch.accumulation", was.accumulation, becomes.accumulation, _PASSES, note)
    if recipe.batch.schedule is not None and after.batch.schedule is not None:
        stages = recipe.batch.schedule, after.batch.schedule
        note = "every stage times kappa, to the nearest multiple of micro x devices"
        if recipe.planned is not None and recipe.planned.stages:
            note += f", from the first recipe's {', '.join(map(str, recipe.planned.stages))}"
        yield make_row("batch.schedule", *stages, _ASKED, note, said=tuple(map(show_stages, stages)))


def _optimizer_rows(recipe: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[Row]:
    """Yield a row for each number that the optimizer's groups hold."""
    o, keys, kappa = recipe.optimizer, row_of(recipe).keys, moved["lr"].change.kappa
    unit = recipe.batch.unit

    def row(key: str, note: str = "") -> Row:
        found = moved[key]
        return make_row(f"optimizer.{key}", old.number(key), found.becomes, found.rule, note)

    yield row("lr", _lr_note(recipe, old, new, moved))
    if o.momentum > 0:
        note = _horizon(old.momentum, new.momentum, old, new, unit)
        other = f"{show(scale_momentum(old.momentum, kappa))}"
        if moved["momentum"].rule.formula != "mu":
            lr = scaled(with_rules(recipe, momentum="keep"), new.batch).lr
            other = f"keep {o.momentum:g} and lr x {lr / old.lr:.6g} = {show(lr)}"
        yield row("momentum", f"{note}; other form: {other}")
    if "betas" in keys:
        for index, (was, becomes) in enumerate(zip(old.betas, new.betas, strict=True)):
            found = moved[f"betas[{index}]"]
            first = _from_first(found, recipe)
            note = _horizon(was, becomes, old, new, unit) + (first or _other_beta(was, kappa, recipe.rules.betas))
            yield row(f"betas[{index}]", note + _floored(found))
    if "alpha" in keys:
        found = moved["alpha"]
        note = _horizon(old.alpha, new.alpha, old, new, unit) + _from_first(found, recipe)
        yield row("alpha", note + _floored(found))
    if "eps" in keys:
        yield row("eps")
    if o.weight_decay > 0:
        yield row("weight_decay")
    if o.clip is not None:
        yield row("clip", _clip_note(moved["clip"]))


def _clip_note(found: Applied) -> str:
    """Say where the norm lies between its limits: kept, and 1/sqrt(kappa) where the gradient is pure noise."""
    c = found.change
    limit = scale_clip(c.value, c.kappa, 1.0)
    if c.share is None:
        return f"between {show(limit)} (pure noise) and {show(c.value)} (none), by the noise scale: --noise-scale"
    return f"noise share f = {c.share:.3f}; in pure noise {show(limit)}"


def _lr_note(recipe: RecipeData, old: Settings, new: Settings, moved: Moves) -> str:
    rule, row = lr_rule_of(recipe), row_of(recipe)
    kappa, share = moved["lr"].change.kappa, recipe.rules.noise_share
    if rule.length is not None:
        return _critical_note(recipe, moved["lr"])
    if moved["lr"].rule is SEARCHED:
        return ""
    if row.invariant:
        return "no regime is assumed: the second moment is the reference batch's own" if rule.exponent == 1 else ""
    if row.adaptive and rule.exponent is None and rule.others is None and share is not None:
        after = noise_share_after(share, kappa)
        return (
            f"noise share f = {share:.3f} becomes {after:.3f}; the square root ({math.sqrt(kappa) * old.lr:.4g}) would "
            f"drift by {drift_error(kappa, share):+.1%} per sample; recommended: {recommend(kappa, share)}"
        )
    if row.adaptive and rule.exponent == 0.5:
        factor = new.lr / (math.sqrt(kappa) * old.lr)  # of a momentum that moves
        low, high = sorted((math.sqrt(kappa), kappa))
        return (
            f"assumes that noise dominates v; without a noise scale the truth lies in "
            f"[{low * factor * old.lr:.4g}, {high * factor * old.lr:.4g}] (square root to linear)"
        )
    if old.momentum > 0 and not row.normalises_after:
        return f"lr/(1-momentum) = {old.lr / (1 - old.momentum):.4g} becomes {new.lr / (1 - new.momentum):.4g}"
    return ""


def _critical_note(recipe: RecipeData, found: Applied) -> str:
    """Say which critical batch was used, and the rate at the ends of its interval."""
    known = recipe.critical
    if known is None:
        return ""
    note = known.about(recipe.batch.unit)
    ends = [end for end in (known.low, known.high) if end is not None]
    if len(ends) == 2:
        best, change = lr_rule_of(recipe).number, found.change
        beside = found.becomes / best(change) if found.becomes else 0.0  # of a momentum that moves, of a summed loss
        low, high = sorted(beside * best(change._replace(critical=end)) for end in ends)
        note += f"; over the interval [{low:.4g}, {high:.4g}]"
    return note


def _other_beta(beta: float, kappa: float, kind: str) -> str:
    if kind == "linear":
        return f"; power form: {beta**kappa:.6g}"
    linear = 1 - kappa * (1 - beta)
    return f"; linear form: {linear:.6g}" if linear >= 0 else f"; linear form ends at kappa {horizon(beta):.4g}"


def _from_first(found: Applied, recipe: RecipeData) -> str:
    """Say that a decay which a floor holds is moved from the first recipe's own."""
    if found.change.batch == recipe.batch.size:
        return ""
    first = f"{show(found.change.value)} at {found.change.batch:g}"
    return f"; a floor held it, so it is moved from the first recipe's {first}"


def _floored(found: Applied) -> str:
    if found.rule.source != FLOORED.source or not found.rule.formula.startswith("max"):
        return ""
    return f"; at its floor, the power rule gives {found.change.value**found.change.kappa:.4g}"


def with_rules(recipe: R, **words: str) -> R:
    """Return a recipe by another form of its rules.

    Args:
        recipe: the recipe.
        **words: of its [rules].

    Returns:
        The recipe; at its own batch it is the same run.
    """
    return recipe.model_copy(update={"rules": recipe.rules.model_copy(update=words)})


def _horizon(was: float, becomes: float, old: Settings, new: Settings, unit: str) -> str:
    """Say how long a decay remembers, and what is left of it when it is written as 1 - decay."""
    said = []
    for decay, batch in ((was, old.batch), (becomes, new.batch)):
        steps, half = horizon(decay), half_life(decay, batch)
        said.append(
            (f"{steps:,.4g} steps = {count(steps * batch)} {unit}", f"{1 - decay:.6g}", f"{count(half)} {unit}")
        )
    pairs = zip(("horizon ", "1 - decay = ", "half-life "), *said, strict=True)
    return "; ".join(f"{name}{before} becomes {after}" for name, before, after in pairs)


def _schedule_rows(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[Row]:
    if recipe.schedule is None:
        return
    was, becomes, rule = curve(recipe), curve(recipe, new.batch), lr_rule_of(recipe)
    decay_from = MEAN if rule.length is None else rule.warmup or MEAN
    for key, words in (
        ("length", rule.length or MEAN),
        ("warmup", rule.warmup or MEAN),
        ("decay_from", decay_from),
    ):
        if key != "length" and isinstance(was, Pieces):  # the segments have rows of their own
            continue
        before, after = (_start(stairs) if key == "decay_from" else getattr(stairs, key) for stairs in (was, becomes))
        if not before or (key == "decay_from" and was.decay_from is becomes.decay_from is None):
            continue
        steps = whole_steps(before, old), whole_steps(after, new)
        note = told_steps(recipe, steps, old, new)
        said = getattr(recipe.schedule, key) or "", ""
        unit = recipe.batch.unit
        yield make_row(f"schedule.{key}", before, after, words, note, unit=unit, steps=steps, said=said)
    if recipe.schedule.final:
        final = recipe.schedule.final
        note = f"the final rate {show(final * old.lr)} becomes {show(final * new.lr)}"
        yield make_row("schedule.final", final, final, SHARE, note)


def _start(stairs: Staircase | Pieces) -> float:
    return stairs.warmup if stairs.decay_from is None else stairs.decay_from


def _average_rows(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[Row]:
    if recipe.ema is None or after.ema is None:
        return
    unit, every, kept = recipe.batch.unit, recipe.ema.every, recipe.rules.average == "keep"
    if recipe.ema.decay is not None:
        note = f"half-life {count(old.half_life)} {unit}, "
        note += f"becomes {count(new.half_life)}" if kept else "kept"
        note += f"; 1 - decay = {1 - recipe.ema.decay:.6g} becomes {1 - moved['ema.decay'].becomes:.6g}"
        if recipe.ema.final is not None:
            note += f"; the whole schedule up to {show(recipe.ema.final)} is transformed pointwise"
        yield make_row("ema.decay", recipe.ema.decay, after.ema.decay, moved["ema.decay"].rule, note)
        if recipe.ema.final is not None:
            last = moved["ema.final"]
            note = f"1 - decay = {1 - recipe.ema.final:.6g} becomes {1 - last.becomes:.6g}"
            yield make_row("ema.final", recipe.ema.final, last.becomes, last.rule, note)
        return
    if recipe.ema.half_life is None:  # a profile, whose row is that of its ramp
        return
    was, becomes = (decay_at(s.half_life, every * s.batch) for s in (old, new))
    note = f"decay per update {show(was)} becomes {show(becomes)}; 1 - decay = {1 - was:.6g} becomes {1 - becomes:.6g}"
    steps = whole_steps(old.half_life, old), whole_steps(new.half_life, new)
    said = recipe.ema.half_life or "", ""
    spans = old.half_life, new.half_life
    yield make_row("ema.half_life", *spans, moved["half_life"].rule, note, unit=unit, steps=steps, said=said)


def _augmentation_rows(recipe: RecipeData, size: int) -> Iterator[Row]:
    augment, adversary, unit, old = recipe.augment, recipe.adversary, recipe.batch.unit, recipe.batch.size
    if augment is not None:
        note = f"{augment.views * old:,} rows a step become {augment.views * size:,}"
        yield make_row("augment.views", augment.views, augment.views, _VIEWS, note)
    if adversary is not None:
        note = f"{adversary.tau * old:,} {unit} old become {adversary.tau * size:,}"
        yield make_row("adversary.tau", adversary.tau, adversary.tau, _AGE, note)


def _norm_rows(recipe: RecipeData, after: RecipeData, moved: Moves) -> Iterator[Row]:
    if recipe.batch_norm is not None:
        over = normalised_over(recipe), normalised_over(recipe, after.batch)
        where = "of all devices in a pass" if recipe.batch_norm.synchronised else "per device and pass"
        note = f"b = {over[0]} becomes {over[1]} samples {where}"
        found = moved["batch_norm"]
        yield make_row("batch_norm.momentum", recipe.batch_norm.momentum, found.becomes, found.rule, note)


def show_stages(stages: tuple[tuple[str, int], ...]) -> str:
    """Return a batch schedule for people.

    Args:
        stages: pairs (start, batch).

    Returns:
        Text.

    Example:
        >>> show_stages((("0 epochs", 8), ("10 epochs", 128)))
        '8 from 0 epochs, 128 from 10 epochs'
    """
    return ", ".join(f"{batch} from {start}" for start, batch in stages)
