"""Rows of what moves over a run or differs between parameters: spans, curves, groups, ramps of the average."""

import math
from collections.abc import Iterator
from typing import Any

from isobatch.plan.plan import Row, show
from isobatch.plan.settings import Moves, Settings, base, moves, of_group, row_of
from isobatch.recipe import RecipeData
from isobatch.rules import Confidence, Rule, average
from isobatch.units import decay_at

Pairs = dict[str, tuple[float, float]]
MEAN = Rule("samples kept", "indexed by samples, through its mean over each step", "derived", Confidence.DERIVED)
SHARE = Rule(
    "share kept", "a share of the peak, so the final rate moves as the peak does", "derived", Confidence.DERIVED
)
_SPAN = Rule("samples kept", "a named span of the sample clock", "derived", Confidence.DERIVED)


def make_row(key: str, was: object, becomes: object, rule: Rule, note: str = "", **more: Any) -> Row:
    """Return a row beside its rule.

    Args:
        key: the setting.
        was: its value at the old batch.
        becomes: its value at the new batch.
        rule: its words.
        note: horizons, other forms, consequences.
        **more: unit, steps and said of a `Row`.

    Returns:
        The row.
    """
    because = f"{rule.because} ({rule.source})" if rule.source not in (rule.because, "recipe") else rule.because
    return Row(key, was, becomes, rule.formula, because, rule.confidence, note, **more)


def whole_steps(samples: float, settings: Settings) -> int:
    """Return the optimizer steps that a span takes; the last one may be partly outside.

    Args:
        samples: of the span.
        settings: at the batch of the steps.

    Returns:
        Steps.
    """
    return math.ceil(samples / settings.batch - 1e-9)


def _span_row(
    recipe: RecipeData, key: str, quantity: str, rule: Rule, old: Settings, new: Settings, note: str = ""
) -> Row:
    """Return the row of a span that stays in samples, with the whole steps that it takes before and after."""
    samples = recipe.samples(quantity, key)
    steps = whole_steps(samples, old), whole_steps(samples, new)
    told = f"{steps[0]:,} steps become {steps[1]:,}" + (f"; {note}" if note else "")
    return make_row(key, samples, samples, rule, told, unit=recipe.batch.unit, steps=steps, said=(quantity, ""))


def curve_rows(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[Row]:
    """Yield the rows of [curves] and [spans]: spans stay in samples, shares stay, and what they are shares of moves.

    Args:
        recipe: the reference recipe.
        old: settings at the reference batch.
        new: settings at the new batch.

    Yields:
        Rows.
    """
    bases = {"lr": (old.lr, new.lr), "weight_decay": (old.weight_decay, new.weight_decay)}
    decays = {
        "momentum": (old.momentum or old.betas[0], new.momentum or new.betas[0]),
        "ema": (average_decay(recipe, old), average_decay(recipe, new)),
    }
    for name, segments in recipe.curves.items():
        for index, segment in enumerate(segments):
            key = f"curves.{name}.{index}"
            for field in ("span", "every", "scale"):
                quantity = getattr(segment, field)
                if quantity is not None:
                    yield _span_row(recipe, f"{key}.{field}", quantity, MEAN, old, new)
            for field in ("start", "to"):
                share = getattr(segment, field)
                if share is not None:
                    yield make_row(f"{key}.{field}", share, share, SHARE, _share_note(name, share, bases, decays))
    for name, quantity in recipe.spans.items():
        yield _span_row(recipe, f"spans.{name}", quantity, _SPAN, old, new)


def _share_note(name: str, share: float, bases: Pairs, decays: Pairs) -> str:
    """Say what a share of a curve is before and after, as the setting's own number."""
    if name in bases:
        was, becomes = (show(share * base) for base in bases[name])
        return f"{name} {was} becomes {becomes}"
    if name not in decays:
        return ""
    was, becomes = decays[name]  # read in the reference's own decays, then brought to the batch
    ends = 1 - (1 - was) * share
    moved = ends ** (math.log(becomes) / math.log(was)) if 0 < was < 1 and becomes > 0 and ends > 0 else ends
    return f"a decay of {show(ends)} becomes {show(moved)}"


def average_decay(recipe: RecipeData, settings: Settings) -> float:
    """Return the decay per update of the average at a batch, before curves and ramps.

    Args:
        recipe: its [ema].
        settings: at the batch.

    Returns:
        rho; 1 without an average.
    """
    every = 1 if recipe.ema is None else recipe.ema.every
    return decay_at(settings.half_life, every * settings.batch)


def group_rows(recipe: RecipeData, batch: float) -> Iterator[Row]:
    """Yield a row for each number that a group states for itself, moved by the rules of its own optimizer.

    Args:
        recipe: the reference recipe.
        batch: the new batch.

    Yields:
        Rows.
    """
    for group in recipe.groups:
        one = of_group(recipe, group)
        moved, was, keys = moves(one, batch), base(one), row_of(one).keys
        place = f"groups.{group.name}"
        if group.lr is None:
            scale = 1.0 if group.lr_scale is None else group.lr_scale
            becomes = moved["lr"].becomes
            note = f"its lr {show(was.lr)} becomes {show(becomes)}"
            if group.layer_decay is not None:
                note += f", times {group.layer_decay:g} a layer below the top"
            yield make_row(f"{place}.lr_scale", scale, scale, SHARE, note)
        for key in keys:
            own = group.optimizer is not None or getattr(group, key) is not None
            if not own or (key == "lr" and group.lr is None):
                continue
            for name in [f"{key}[0]", f"{key}[1]"] if key == "betas" else [key]:
                found = moved[name]
                before = was.lr if name == "lr" else found.change.value
                if before or name == "lr" or getattr(group, key, None) is not None:
                    note = f"of {one.optimizer.name}" if group.optimizer is not None else ""
                    yield make_row(f"{place}.{name}", before, found.becomes, found.rule, note)


def ramp_rows(recipe: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[Row]:
    """Yield the rows of the start and the ramp of the average.

    Args:
        recipe: the reference recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        moved: every number beside its rule.

    Yields:
        Rows.
    """
    ema = recipe.ema
    if ema is not None and ema.every != 1:
        note = f"{ema.every * old.batch:,.12g} {recipe.batch.unit} between two updates become "
        yield make_row("ema.every", ema.every, ema.every, average.EVERY, note + f"{ema.every * new.batch:,.12g}")
    if ema is not None and ema.start is not None:
        yield _span_row(recipe, "ema.start", ema.start, MEAN, old, new)
    if ema is None or ema.ramp is None:
        return
    ramp = ema.ramp
    if ramp.tau is not None:
        yield _span_row(recipe, "ema.ramp.tau", ramp.tau, average.RAMP_KEPT, old, new)
    if "ema.ramp.inv_gamma" in moved:
        found = moved["ema.ramp.inv_gamma"]
        yield make_row("ema.ramp.inv_gamma", found.change.value, found.becomes, found.rule, f"power {ramp.exponent:g}")
    for name, value, rule in (("ratio", ramp.ratio, average.RATIO), ("std", ramp.std, average.PROFILE)):
        if value is not None:
            shown = list(value) if isinstance(value, tuple) else value
            yield make_row(f"ema.ramp.{name}", shown, shown, rule)
    if ramp.by in ("tensorflow", "annealing"):
        yield make_row("ema.ramp.by", ramp.by, ramp.by, average.LATE)
