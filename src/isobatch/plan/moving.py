"""Rows of what moves over a run or differs between parameters: spans, curves, groups, ramps; and another length."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from isobatch.curves import Pieces
from isobatch.errors import InputError
from isobatch.plan.plan import Plan, PlanWarning, R, Row, show
from isobatch.plan.settings import (
    Moves,
    Settings,
    base,
    coupling_of,
    curve,
    lr_rule_of,
    moves,
    of_group,
    row_of,
)
from isobatch.recipe import RecipeData
from isobatch.rules import Confidence, Rule, Side, average, horizon
from isobatch.units import decay_at, finite

Pairs = dict[str, tuple[float, float]]
MEAN = Rule("samples kept", "indexed by samples, through its mean over each step", "derived", Confidence.DERIVED)
SHARE = Rule(
    "share kept", "a share of the peak, so the final rate moves as the peak does", "derived", Confidence.DERIVED
)
_DECAYS = ("decoupled", "independent")
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


def told_steps(recipe: RecipeData, steps: tuple[int, int], old: Settings, new: Settings) -> str:
    """Say what the steps of a span become; under batch.schedule they are those of one batch alone.

    Args:
        recipe: the reference recipe.
        steps: before and after.
        old: settings at the reference batch.
        new: settings at the new batch.

    Returns:
        The words.
    """
    if recipe.batch.schedule is None:
        return f"{steps[0]:,} steps become {steps[1]:,}"
    before, after = f"{old.batch:,.6g}", f"{new.batch:,.6g}"
    return f"{steps[0]:,} steps of {before} become {steps[1]:,} of {after}, without batch.schedule"


def _span_row(
    recipe: RecipeData, key: str, quantity: str, rule: Rule, old: Settings, new: Settings, note: str = ""
) -> Row:
    """Return the row of a span that stays in samples, with the whole steps that it takes before and after."""
    samples = recipe.samples(quantity, key)
    steps = whole_steps(samples, old), whole_steps(samples, new)
    told = told_steps(recipe, steps, old, new) + (f"; {note}" if note else "")
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
                before = was.number(name)
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


def length_factor(recipe: RecipeData, length: str | float) -> float:
    """Return how many times as long a run is asked for.

    Args:
        recipe: the reference recipe.
        length: a factor such as "2x" or 2.0, or a span such as "60 epochs".

    Returns:
        New length over old, in samples.

    Raises:
        InputError: neither of them, not positive, or a span beside a recipe that states no length.
    """
    if isinstance(length, str):
        factor = re.fullmatch(r"\s*([0-9.eE+_-]+)\s*[xX]\s*", length)
        if factor is None:
            if recipe.schedule is None:
                raise InputError(f"length={length!r} needs schedule.length in the recipe; give a factor such as 2x")
            try:
                asked = recipe.samples(length, "length")
            except InputError as error:
                raise InputError(f"{error}, or a factor such as 2x") from None
            return finite("length", asked, 0, open_low=True) / curve(recipe).length
        try:
            length = float(factor[1])
        except ValueError:
            raise InputError(f"length={length!r} must be a factor such as 2x or a span such as 60 epochs") from None
    return finite("length", length, 0, open_low=True)


def longer(recipe: R, times: float) -> R:
    """Return a recipe of another length, as others change it; not the same run.

    Args:
        recipe: the reference recipe.
        times: new length over old.

    Returns:
        The recipe: length, start of the decay, learning rates and decays of the weights moved; all else as it was.

    Raises:
        InputError: curves in pieces, stages, a search, a rule that moves the length itself, or a warm-up longer than
            the run.
    """
    rule, odd = lr_rule_of(recipe), sorted({"lr", "weight_decay"} & recipe.curves.keys())
    if rule.length is not None or rule.others is not None:
        raise InputError("length: LEGW and goal = speed move the curve themselves; drop one of the two")
    if odd or recipe.batch.schedule is not None or (recipe.schedule is not None and recipe.schedule.searches):
        what = f"curves.{odd[0]}" if odd else "batch.schedule" if recipe.batch.schedule is not None else "autowu"
        raise InputError(f"length: no rule says how {what} moves with it; change the recipe by hand, then plan it")
    parts: dict[str, Any] = {"optimizer": recipe.optimizer.model_copy(update=_numbers(recipe, times))}
    groups = []
    for group in recipe.groups:
        numbers = _numbers(of_group(recipe, group), times)
        stated = {name: value for name, value in numbers.items() if getattr(group, name, None) is not None}
        groups.append(group.model_copy(update=stated))
    parts["groups"] = tuple(groups)
    if recipe.schedule is not None:
        stairs, unit = curve(recipe), recipe.batch.unit
        spans = {"length": f"{times * stairs.length:.12g} {unit}"}
        if not isinstance(stairs, Pieces) and stairs.decay_from is not None:
            spans["decay_from"] = f"{times * stairs.decay_from:.12g} {unit}"
        parts["schedule"] = recipe.schedule.model_copy(update=spans)
    made = recipe.model_copy(update=parts)
    if made.schedule is not None:
        curve(made)
    return made


def marked(plan: Plan[R], recipe: RecipeData, times: float) -> Plan[R]:
    """Return the plan of `longer` with each row that the length moved marked, and beside the original's numbers.

    Args:
        plan: from the longer recipe.
        recipe: the reference recipe.
        times: new length over old.

    Returns:
        The plan.
    """
    low, high = horizon.TESTED
    tested = "" if low <= times <= high else f", and {times:g} is outside of where even that was tested, 1/8 to 4"
    message = (
        "no rule keeps a run of another length the same, and the published forms disagree: lr as m_D**-1/2 or "
        f"m_D**-0.3, lr x decay as 1/m_D, as m_D**-0.47 (2505.13738), or kept where epochs repeat (2405.13698){tested}"
    )
    source = "arXiv 2512.22382; marin-community/marin; karpathy/nanochat"
    another = PlanWarning(f"another run, {times:g} times as long", message, source, Side.BOTH)
    rows = tuple(_mark(row, recipe, times) for row in plan.rows)
    return replace(plan, rows=rows, warnings=(another, *plan.warnings), length=times)


def _numbers(recipe: RecipeData, times: float) -> dict[str, float]:
    """Learning rate and weight decay of another length."""
    o, factor = recipe.optimizer, _lr_factor(recipe, times)
    return {
        "lr": o.lr * factor,
        "weight_decay": horizon.longer_decay(o.weight_decay, times, factor, coupling_of(recipe)),
    }


def _lr_factor(recipe: RecipeData, times: float) -> float:
    return horizon.longer_lr(1.0, times, horizon.lr_power(row_of(recipe)))


def _owners(recipe: RecipeData) -> Iterator[tuple[str, RecipeData]]:
    """Yield where rates and decays stand in a plan, with the recipe that they belong to."""
    yield "optimizer", recipe
    for group in recipe.groups:
        yield f"groups.{group.name}", of_group(recipe, group)


def _mark(row: Row, recipe: RecipeData, times: float) -> Row:
    """A row of the longer plan beside the original recipe's own number, with the words of the length's rule."""
    place, _, key = row.key.rpartition(".")
    own = dict(_owners(recipe)).get(place)
    if own is not None and key in ("lr", "weight_decay") and isinstance(row.becomes, float):
        factor, numbers = _lr_factor(own, times), _numbers(own, times)
        if key == "lr":
            rule = horizon.LR if factor != 1 else horizon.LR_UNKNOWN
            same = row.becomes / factor
            marin = horizon.longer_lr(same, times, horizon.MARIN)
            return _words(row, rule, own.optimizer.lr, f"{show(same)} at the old length; Marin's form: {show(marin)}")
        rule = horizon.DECAY if coupling_of(own) in _DECAYS else horizon.DECAY_UNKNOWN
        was = own.optimizer.weight_decay
        same = row.becomes * was / numbers["weight_decay"] if numbers["weight_decay"] else row.becomes
        note = f"{show(same)} at the old length"
        if rule is horizon.DECAY:
            slower = row.becomes * times ** (1 - horizon.POWER_LINES)
            note += f"; with lr x decay as m_D**-{horizon.POWER_LINES} (2505.13738): {show(slower)}"
        return _words(row, rule, was, note)
    if recipe.schedule is None or row.key not in ("batch.size", "schedule.length", "schedule.decay_from"):
        return row
    was, steps = curve(recipe), row.steps or (0, 0)
    span = was.decay_from if row.key == "schedule.decay_from" and not isinstance(was, Pieces) else was.length
    before = -int(-(span or 0.0) // recipe.batch.size)
    steps_note = row.note.replace(f"{steps[0]:,} steps become", f"{before:,} steps become", 1)
    if row.key == "batch.size":
        return replace(row, steps=(before, steps[1]), note=steps_note)
    rule = horizon.LENGTH if row.key == "schedule.length" else horizon.DECAY_FROM
    said = str(getattr(recipe.schedule, row.key.partition(".")[2]) or ""), ""
    return replace(_words(row, rule, span, steps_note), steps=(before, steps[1]), said=said)


def _words(row: Row, rule: Rule, was: object, note: str) -> Row:
    because = f"{rule.because} ({rule.source})" if rule.source != "unknown" else rule.because
    weakest = max(rule.confidence, row.confidence, key=list(Confidence).index)
    return replace(
        row, was=was, rule=rule.formula.format(rule=row.rule), because=because, confidence=weakest, note=note
    )
