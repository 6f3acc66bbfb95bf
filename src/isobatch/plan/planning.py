"""From a recipe and a batch to the plan: every row beside its rule, its source and its other form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.errors import InputError
from isobatch.plan.cautions import cautions
from isobatch.plan.extras import extras_in_samples, extras_rows
from isobatch.plan.forms import by_rule, invariant, with_noise
from isobatch.plan.loading import validate
from isobatch.plan.optimizer_rows import make_row, optimizer_rows
from isobatch.plan.parts import Batch
from isobatch.plan.plan import Plan, Row, show
from isobatch.plan.remedies import remedies
from isobatch.plan.settings import Settings, base, scaled
from isobatch.plan.speed import GOALS, by_speed, length_rule
from isobatch.plan.stages import scale_stages, show_stages
from isobatch.rules import Confidence, Rule, average, batch_norm, clip, linear_epoch
from isobatch.rules import learning_rate as lr_rules
from isobatch.units import decay_at, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.recipe import Recipe

_STRETCHED = Rule("the same share of the run", "stretched with its length", "convention", Confidence.CONVENTION)
_MEAN = Rule("samples kept", "indexed by samples, through its mean over each step", "derived", Confidence.DERIVED)


def make_plan(
    recipe: Recipe,
    batch_size: int,
    *,
    micro: int | None = None,
    devices: int | None = None,
    noise_scale: float | None = None,
    optimizer: str | None = None,
    rule: str | None = None,
    goal: str = "equivalence",
) -> Plan:
    """Plan the same run at another global batch.

    Args:
        recipe: the recipe as it works today.
        batch_size: the new global batch.
        micro: samples per device and forward pass at the new batch.
        devices: data-parallel devices at the new batch.
        noise_scale: gradient noise scale in samples, for the Adam family.
        optimizer: "invariant" for the invariant form of the recipe's optimizer.
        rule: "legw" for LEGW in place of the recipe's own rules.
        goal: "speed" for the fastest run to the same loss, by a critical batch.

    Returns:
        The plan; its row 0 keeps the batch.

    Raises:
        InputError: a batch that is not a positive whole number, does not divide, or is beyond a rule's domain.
    """
    size, asked = whole("batch size", batch_size), recipe.optimizer.name
    if optimizer is not None:
        recipe = invariant(recipe, optimizer)
    if rule is not None:
        recipe = by_rule(recipe, rule)
    if goal not in GOALS:
        raise InputError(f"goal={goal!r} must be one of {', '.join(GOALS)}")
    if goal == "speed":
        if rule is not None or optimizer is not None:
            raise InputError('goal="speed" has its own learning rate; drop rule and optimizer')
        recipe = by_speed(recipe, noise_scale)
    elif noise_scale is not None:
        recipe = with_noise(recipe, noise_scale)
    batch = recipe.batch.model_dump() | {"size": size, "schedule": None}
    batch |= {key: value for key, value in (("micro", micro), ("devices", devices)) if value is not None}
    scaled_batch = _batch(recipe, batch)
    scaled_batch = scaled_batch.model_copy(update={"schedule": scale_stages(recipe, scaled_batch)})
    old, new = base(recipe), scaled(recipe, size, scaled_batch.per_device)
    if recipe.schedule is not None and recipe.schedule.shape == "autowu":
        new = replace(new, lr=old.lr)  # the search finds the peak
    kappa = size / recipe.batch.size
    after = write(recipe, new, scaled_batch)
    rows = (_keep(recipe, size), *_name_row(recipe, asked), *_rows(recipe, after, old, new, kappa))
    return Plan(
        kappa, rows, tuple(cautions(recipe, after, old, new, kappa)), after, remedies(recipe, size, noise_scale)
    )


def _name_row(recipe: Recipe, asked: str) -> Iterator[Row]:
    if recipe.optimizer.name != asked:
        note = f"second moment of {recipe.optimizer.reference_batch} {recipe.batch.unit}, whatever the batch"
        yield make_row("optimizer.name", asked, recipe.optimizer.name, lr_rules.INVARIANT, note, "invariant form")


def _batch(recipe: Recipe, values: dict[str, object]) -> Batch:
    try:
        return validate(Batch, values)
    except InputError as error:
        raise InputError(f"{error}; or give micro and devices that divide the batch") from None


def write(recipe: Recipe, new: Settings, batch: Batch) -> Recipe:
    """Return the recipe with the numbers of another batch written in, its schedule kept in samples.

    Args:
        recipe: the reference recipe.
        new: its settings at the new batch.
        batch: the new Batch part.

    Returns:
        The scaled recipe.
    """
    o = recipe.optimizer
    names = ("lr", "momentum", "betas", "alpha", "eps", "weight_decay")
    moves = {name: getattr(new, name) for name in names}
    if rules.family(o.name).invariant and new.batch != recipe.batch.size:
        moves["reference_batch"] = o.reference_batch or recipe.batch.size
    parts: dict[str, object] = {"batch": batch, "optimizer": o.model_copy(update=moves)}
    if recipe.schedule is not None:
        stairs, unit = recipe.staircase(new.batch), recipe.batch.unit
        spans = {"length": f"{stairs.length:.12g} {unit}", "warmup": f"{stairs.warmup:.12g} {unit}"}
        if stairs.decay_from is not None:
            spans["decay_from"] = f"{stairs.decay_from:.12g} {unit}"
        parts["schedule"] = recipe.schedule.model_copy(update=spans | {"stair": stairs.stair})
    if recipe.ema is not None and recipe.ema.decay is not None:
        kappa = new.batch / recipe.batch.size
        power = 1.0 if recipe.rules.average == "keep" else kappa
        moved = {"decay": rules.scale_decay(recipe.ema.decay, power)}
        if recipe.ema.final is not None:
            moved["final"] = rules.scale_decay(recipe.ema.final, power)
        parts["ema"] = recipe.ema.model_copy(update=moved)
    elif recipe.ema is not None:
        parts["ema"] = recipe.ema.model_copy(update={"half_life": f"{new.half_life:.12g} {recipe.batch.unit}"})
    if recipe.batch_norm is not None:
        parts["batch_norm"] = recipe.batch_norm.model_copy(update={"momentum": new.batch_norm})
    if recipe.rules.noise_share is not None:
        f, kappa = recipe.rules.noise_share, new.batch / recipe.batch.size
        parts["rules"] = recipe.rules.model_copy(update={"noise_share": rules.noise_share_after(f, kappa)})
    return recipe.model_copy(update=parts | extras_in_samples(recipe))


def _keep(recipe: Recipe, size: int) -> Row:
    kept, devices = recipe.batch.size, recipe.batch.devices
    if size < kept:
        parts = math.ceil(kept / size)
        how = f"keep the batch, accumulate n = {parts}"
        note = f"{parts} passes of {'' if kept % size == 0 else 'up to '}{size} are one update of {kept}"
        per_device = size / devices
    else:
        how = "keep the batch, accumulate n = 1"
        note = f"the same devices at {kept}; only the speed of larger steps is given up"
        per_device = recipe.batch.per_device
    if recipe.batch_norm is not None and per_device != recipe.batch.per_device:
        moved = rules.scale_batch_norm(recipe.batch_norm.momentum, per_device / recipe.batch.per_device)
        note += f"; batch norm then sees {per_device:g} samples a pass: its momentum becomes {moved:.4g}"
        note += ", and its statistics differ"
    because = "one update of B is the same update however it is split, so nothing else changes"
    return Row("batch.size (kept)", kept, kept, how, because, Confidence.DERIVED, note)


def _rows(recipe: Recipe, after: Recipe, old: Settings, new: Settings, kappa: float) -> Iterator[Row]:
    steps = ""
    if recipe.schedule is not None and recipe.batch.schedule is None:
        length, after_length = recipe.staircase().length, recipe.staircase(new.batch).length
        steps = f"{math.ceil(length / old.batch):,} steps become {math.ceil(after_length / new.batch):,}"
    asked = Rule(f"x {kappa:g}", "the batch you ask for", "recipe", Confidence.DERIVED)
    yield make_row("batch.size", recipe.batch.size, after.batch.size, asked, steps)
    if recipe.batch.schedule is not None and after.batch.schedule is not None:
        was, becomes = show_stages(recipe.batch.schedule), show_stages(after.batch.schedule)
        note = "every stage times kappa, to the nearest multiple of micro x devices"
        yield make_row("batch.schedule", was, becomes, asked, note)
    yield from optimizer_rows(recipe, old, new, kappa)
    if recipe.optimizer.clip is not None:
        yield make_row("optimizer.clip", recipe.optimizer.clip, recipe.optimizer.clip, clip.KEPT)
    if recipe.schedule is not None:
        yield from _schedule_rows(recipe, old, new)
    yield from _average_rows(recipe, after, old, new)
    yield from extras_rows(recipe, int(new.batch))
    if recipe.batch_norm is not None and new.batch_norm is not None:
        note = f"b = {recipe.batch.per_device} becomes {after.batch.per_device} samples per device and pass"
        yield make_row("batch_norm.momentum", recipe.batch_norm.momentum, new.batch_norm, batch_norm.POWER, note)


def _schedule_rows(recipe: Recipe, old: Settings, new: Settings) -> Iterator[Row]:
    if recipe.schedule is None:
        return
    was, becomes = recipe.staircase(), recipe.staircase(new.batch)
    warmup = linear_epoch.WARMUP if recipe.rules.lr == "legw" else _MEAN
    whole_run = _MEAN
    if recipe.rules.lr == "speed":
        warmup, whole_run = _STRETCHED, length_rule(recipe)
    for key, rule in (("length", whole_run), ("warmup", warmup)):
        before, after = getattr(was, key), getattr(becomes, key)
        if before:
            note = f"{before / old.batch:,.6g} steps become {after / new.batch:,.6g}"
            text = f"{after:,.12g} {recipe.batch.unit}"
            yield make_row(f"schedule.{key}", getattr(recipe.schedule, key), text, rule, note)


def _average_rows(recipe: Recipe, after: Recipe, old: Settings, new: Settings) -> Iterator[Row]:
    if recipe.ema is None or after.ema is None:
        return
    unit, every = recipe.batch.unit, recipe.ema.every
    kept = recipe.rules.average == "keep"
    rule = average.KEPT if kept else average.POWER
    if recipe.ema.decay is not None:
        note = f"half-life {show(round(old.half_life, 1))} {unit}, "
        note += f"becomes {show(round(new.half_life, 1))}" if kept else "kept"
        if recipe.ema.final is not None:
            note += f"; the whole schedule up to {recipe.ema.final:g} is transformed pointwise"
        yield make_row("ema.decay", recipe.ema.decay, after.ema.decay, rule, note)
    else:
        was, becomes = (decay_at(s.half_life, every * s.batch) for s in (old, new))
        note = f"decay per update {was:.6g} becomes {becomes:.6g}"
        span, formula = f"{new.half_life:,.12g} {unit}", rule.formula if kept else "kept in samples"
        yield make_row("ema.half_life", recipe.ema.half_life, span, rule, note, formula)
