"""From a recipe and a batch to the plan: the variant that was asked for, its numbers, and the scaled recipe."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isobatch import rules
from isobatch.curves import Pieces
from isobatch.errors import InputError
from isobatch.plan.moving import length_factor, longer, make_row, marked
from isobatch.plan.plan import Form, Plan, R, Row
from isobatch.plan.rows import all_rows, kept_row, with_rules
from isobatch.plan.settings import (
    Moves,
    Settings,
    base,
    curve,
    lr_rule_of,
    moves,
    normalised_over,
    of_group,
    row_of,
    scaled,
    searched,
    settings_of,
)
from isobatch.plan.warnings import remedies, warnings_of
from isobatch.recipe import Batch, Critical, Planned, RecipeData, asked_size, in_samples, split_kept, validate
from isobatch.rules.held import held_moments, held_stages, moved_stages
from isobatch.rules.lr.linear import INVARIANT

GOALS = ("equivalence", "speed")


def make_plan(
    recipe: R,
    batch_size: int | None = None,
    *,
    micro: int | None = None,
    devices: int | None = None,
    noise_scale: float | None = None,
    optimizer: str | None = None,
    rule: str | None = None,
    goal: str = "equivalence",
    length: str | float | None = None,
) -> Plan[R]:
    """Plan the same run at another global batch.

    Args:
        recipe: the recipe as it works today.
        batch_size: the new global batch; unless given the one that the devices take with as many passes as before.
        micro: samples per device and forward pass at the new batch.
        devices: data-parallel devices at the new batch.
        noise_scale: gradient noise scale in samples, for the Adam family.
        optimizer: "invariant" for the invariant form of the recipe's optimizer.
        rule: "legw" for LEGW in place of the recipe's own rules.
        goal: "speed" for the fastest run to the same loss, by a critical batch.
        length: another length beside it, "2x" or "60 epochs": not the same run, and its rows say so.

    Returns:
        The plan; its row 0 keeps the batch.

    Raises:
        InputError: a batch that is not a positive whole number, does not divide, or is beyond a rule's domain.
    """
    if length is not None:
        return _of_length(recipe, batch_size, length, micro, devices, (noise_scale, optimizer, rule, goal))
    size, asked = asked_size(recipe.batch, batch_size, micro, devices), recipe.optimizer.name
    recipe = _variant(recipe, noise_scale, optimizer, rule, goal)
    batch = recipe.batch.model_dump() | {"size": size, "schedule": None, "schedule_lr": None}
    batch |= {key: value for key, value in (("micro", micro), ("devices", devices)) if value is not None}
    new_batch = _batch(batch)
    new_batch = new_batch.model_copy(
        update={"schedule": _scaled_stages(recipe, new_batch), "schedule_lr": recipe.batch.schedule_lr}
    )
    moved = searched(recipe, moves(recipe, size, normalised_over(recipe, new_batch)))
    old, new = base(recipe), settings_of(recipe, size, moved)
    after = write(recipe, new, new_batch)
    renamed = () if recipe.optimizer.name == asked else (_name_row(recipe, asked),)
    kept = split_kept(recipe.batch, new_batch)
    if recipe.batch_norm is not None:
        over = kept.micro * (kept.devices if recipe.batch_norm.synchronised else 1)
        passes = over / normalised_over(recipe)
        kept = replace(kept, batch_norm=rules.scale_batch_norm(recipe.batch_norm.momentum, passes))
    rows = (kept_row(recipe, kept), *renamed, *all_rows(recipe, after, old, new, moved))
    _refuse_endless(rows, recipe, size)
    found = tuple(warnings_of(recipe, after, old, new, moved))
    return Plan(
        size / recipe.batch.size, rows, found, after, kept, remedies(recipe, size, noise_scale), forms(recipe, size)
    )


def _refuse_endless(rows: Sequence[Row], recipe: RecipeData, size: int) -> None:
    for row in rows:
        was, becomes = row.was, row.becomes
        if isinstance(was, float) and isinstance(becomes, float) and math.isfinite(was) and not math.isfinite(becomes):
            raise InputError(
                f"{row.key}={was:g} would become {becomes:g} at a batch of {size:,}; ask for one nearer to "
                f"{recipe.batch.size:,}, the recipe's own"
            )


def _of_length(
    recipe: R,
    batch_size: int | None,
    length: str | float,
    micro: int | None,
    devices: int | None,
    ways: tuple[float | None, str | None, str | None, str],
) -> Plan[R]:
    """Return the plan of the longer recipe; at the recipe's own batch unless another one or devices are asked for."""
    noise_scale, optimizer, rule, goal = ways
    if rule is not None or goal != "equivalence":
        raise InputError("length: LEGW and goal = speed move the curve themselves; drop one of the two")
    times = length_factor(recipe, length)
    if batch_size is None and devices is None and micro is None:
        batch_size = recipe.batch.size
    made = make_plan(
        longer(recipe, times), batch_size, micro=micro, devices=devices, noise_scale=noise_scale, optimizer=optimizer
    )
    return marked(made, recipe, times)


def forms(recipe: RecipeData, size: int) -> tuple[Form, ...]:
    """Return the other forms of a plan that are right as well; none at the recipe's own batch.

    Args:
        recipe: the recipe, in the form that is planned.
        size: the new batch.

    Returns:
        Forms, each with every number of the optimizer.
    """
    o, kinds, row = recipe.optimizer, recipe.rules, row_of(recipe)
    searches = recipe.schedule is not None and recipe.schedule.searches
    if size == recipe.batch.size or searches or lr_rule_of(recipe).others is not None:
        return ()
    found = []
    if o.momentum > 0:
        used = moves(recipe, size)["momentum"].rule.formula
        chosen, name, because = _MOMENTUM["keep" if used == "mu" else "sample-clock"]
        found.append(_form(name, f'rules.momentum = "{chosen}"', with_rules(recipe, momentum=chosen), size, because))
    elif row.normalises_after and "betas" in row.moments:
        chosen = "power" if kinds.betas == "keep" else "keep"
        name, because = _AVERAGES[chosen]
        found.append(_form(name, f'rules.betas = "{chosen}"', with_rules(recipe, betas=chosen), size, because))
    if row.invariant_form is not None and kinds.lr in ("auto", "sqrt", "noise-aware"):
        other = with_rules(_invariant(recipe, "invariant"), lr="auto")
        found.append(_form("the invariant form", "--optimizer invariant", other, size, _ASSUMES_NOTHING))
    return tuple(found)


_MOMENTUM = {
    "sample-clock": (
        "keep",
        "momentum kept per step",
        "as close once kappa/(1-mu) steps are short against the run, and stable further; of 9 published SGD pairs of "
        "the same authors 6 keep mu and scale lr by kappa, to 1%",
    ),
    "keep": ("sample-clock", "momentum by the sample clock", "closer in a short run, while the rate is stable"),
}
_AVERAGES = {
    "keep": ("averages kept per step", "right only while noise dominates the average"),
    "power": ("averages over the same samples", "assumes nothing of the noise"),
}
_ASSUMES_NOTHING = (
    "no noise scale is assumed; SAME on digits where the square root is DIFFERENT (docs/studies/adam.md). Authors of "
    "AdamW recipes scale lr between constant and linear"
)


def _form(name: str, how: str, recipe: RecipeData, size: int, because: str) -> Form:
    new, keys = scaled(recipe, size), row_of(recipe).keys
    values: dict[str, object] = {}
    if row_of(recipe).invariant:
        values |= {
            "optimizer.name": recipe.optimizer.name,
            "optimizer.reference_batch": recipe.optimizer.reference_batch,
        }
    for key in keys:
        value = getattr(new, key)
        if value or key not in ("momentum", "weight_decay"):
            values[f"optimizer.{key}"] = list(value) if isinstance(value, tuple) else value
    return Form(name, how, values, because)


def _variant(recipe: R, noise_scale: float | None, optimizer: str | None, rule: str | None, goal: str) -> R:
    """Return the variant of a recipe that was asked for; at its own batch it is the same run."""
    if optimizer is not None:
        recipe = _invariant(recipe, optimizer)
    if rule is not None:
        recipe = _by_rule(recipe, rule)
    if goal not in GOALS:
        raise InputError(f"goal={goal!r} must be one of {', '.join(GOALS)}")
    if goal == "equivalence":
        return recipe if noise_scale is None else _with_noise(recipe, noise_scale)
    if rule is not None or optimizer is not None:
        raise InputError('goal="speed" has its own learning rate; drop rule and optimizer')
    return _by_speed(recipe, noise_scale)


def _invariant(recipe: R, optimizer: str) -> R:
    """Return the recipe with the batch-size invariant form of its optimizer, its reference batch stamped."""
    row = row_of(recipe)
    wanted = row.name if row.invariant else row.invariant_form
    if optimizer != "invariant":
        raise InputError(f'optimizer={optimizer!r} must be "invariant"; other optimizers are other runs')
    if wanted is None:
        have = ", ".join(name for name, other in rules.OPTIMIZERS.items() if other.invariant_form is not None)
        head, _, last = have.rpartition(", ")
        raise InputError(f"optimizer.name={row.name!r} has no invariant form; {head} and {last} have one")
    reference = recipe.optimizer.reference_batch or recipe.batch.size
    return recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"name": wanted, "reference_batch": reference})}
    )


def _by_rule(recipe: R, rule: str) -> R:
    """Return the recipe with another published rule in place of its own."""
    whole_rules = [word for word, choice in rules.LEARNING_RATES.items() if choice.rule(row_of(recipe)).others]
    if rule not in whole_rules:
        known = " or ".join(f'"{word}"' for word in whole_rules)
        raise InputError(f"rule={rule!r} must be {known}; other forms are chosen under [rules] in the recipe")
    if recipe.schedule is not None and recipe.schedule.searches:
        raise InputError(
            f"AutoWU finds its own rate and warm-up, so that {rule} has nothing to move; drop --rule {rule}"
        )
    if row_of(recipe).invariant:
        raise InputError(f"{recipe.optimizer.name} has a learning-rate rule of its own; drop --rule {rule}")
    moved = {"lr": rule, "momentum": "keep", "betas": "keep", "noise_share": None}
    return recipe.model_copy(update={"rules": recipe.rules.model_copy(update=moved)})


def _with_noise(recipe: R, noise_scale: float) -> R:
    """Return the recipe with the noise share that a noise scale gives at its batch, where rate or clip may use it."""
    row, kinds = row_of(recipe), recipe.rules
    share = rules.noise_share(recipe.batch.size, noise_scale)
    word = next(word for word, choice in rules.LEARNING_RATES.items() if choice.share)
    if row.adaptive and not row.invariant and kinds.lr in ("auto", word):
        return recipe.model_copy(update={"rules": kinds.model_copy(update={"lr": word, "noise_share": share})})
    if recipe.optimizer.clip is None:
        return recipe
    return recipe.model_copy(update={"rules": kinds.model_copy(update={"noise_share": share})})


def _by_speed(recipe: R, noise_scale: float | None) -> R:
    """Return the recipe with the speed rule, and the critical batch that it uses."""
    if recipe.batch.schedule is not None or recipe.batch.adaptive is not None:
        raise InputError('goal="speed" chooses one batch; remove batch.schedule and batch.adaptive')
    known = recipe.critical
    if noise_scale is not None:
        rules.steps_factor(1, noise_scale)
        if noise_scale == 0:
            raise InputError("noise scale=0 must be positive: without noise every batch takes the same steps")
        calibrated = known is not None and known.ratio is not None
        known = known.calibrated(noise_scale) if known is not None and calibrated else _uncalibrated(noise_scale)
    if known is None:
        raise InputError(
            'goal="speed" needs a critical batch: measure one with `isobatch noise sweep --calibrate`, which stores '
            "[critical] in the recipe, or give --noise-scale"
        )
    word = next(word for word, choice in rules.LEARNING_RATES.items() if choice.guessed is not None)
    return recipe.model_copy(
        update={"critical": known, "rules": recipe.rules.model_copy(update={"lr": word, "noise_share": None})}
    )


def _uncalibrated(noise_scale: float) -> Critical:
    return Critical(batch=noise_scale, source="a noise scale taken for it, uncalibrated", noise_scale=noise_scale)


def _name_row(recipe: RecipeData, asked: str) -> Row:
    note = f"second moment of {recipe.optimizer.reference_batch} {recipe.batch.unit}, whatever the batch"
    return make_row("optimizer.name", asked, recipe.optimizer.name, INVARIANT.but(formula="invariant form"), note)


def _batch(values: dict[str, object]) -> Batch:
    try:
        return validate(Batch, values)
    except InputError as error:
        raise InputError(f"{error}; or give micro and devices that divide the batch") from None


def _scaled_stages(recipe: RecipeData, batch: Batch) -> tuple[tuple[str, int], ...] | None:
    """Return the batch schedule at another reference batch: every stage times kappa, its start kept in samples."""
    if recipe.batch.schedule is None:
        return None
    starts = (f"{start} {recipe.batch.unit}" for start, _ in recipe.batch_stages())
    return tuple(zip(starts, moved_stages(recipe, batch), strict=True))


def write(recipe: R, new: Settings, batch: Batch) -> R:
    """Return the recipe with the numbers of another batch written in, everything that moves in time kept in samples.

    Args:
        recipe: the reference recipe.
        new: its settings at the new batch.
        batch: the new Batch part.

    Returns:
        The scaled recipe.
    """
    kappa, parts = new.batch / recipe.batch.size, _in_samples(recipe, new.batch)
    moved = moves(recipe, new.batch)
    parts |= {"batch": batch, "optimizer": recipe.optimizer.model_copy(update=_optimizer_numbers(recipe, new))}
    groups, held = [], held_moments(recipe, moved)
    for group in recipe.groups:
        one = of_group(recipe, group)
        numbers = _optimizer_numbers(one, scaled(one, new.batch))
        own = held_moments(one, moves(one, new.batch)) if group.own_moments else {}
        held |= {key.replace("optimizer", f"groups.{group.name}", 1): first for key, first in own.items()}
        before, keys = base(one), row_of(one).keys if group.optimizer is not None else ()
        stated = {
            name: number
            for name, number in numbers.items()
            if getattr(group, name, None) is not None or (name in keys and number != getattr(before, name))
        }
        groups.append(group.model_copy(update=stated))
    parts["groups"] = tuple(groups)
    if recipe.ema is not None:
        parts["ema"] = recipe.ema.model_copy(update=_average_numbers(recipe, new, moved))
    if recipe.batch_norm is not None:
        parts["batch_norm"] = recipe.batch_norm.model_copy(update={"momentum": new.batch_norm})
    stages = held_stages(recipe, batch)
    if recipe.planned is not None:
        parts["planned"] = recipe.planned.then(batch.size, held, stages)
    elif held or stages:
        parts["planned"] = Planned(batches=(recipe.batch.size, batch.size), held=held, stages=stages)
    chosen = {}
    if recipe.rules.noise_share is not None:
        chosen["noise_share"] = rules.noise_share_after(recipe.rules.noise_share, kappa)
    if recipe.rules.momentum == "auto" and kappa != 1:  # what was chosen for this batch, so that a way back finds it
        chosen["momentum"] = "keep" if moved["momentum"].rule.formula == "mu" else "sample-clock"
    parts["rules"] = recipe.rules.model_copy(update=chosen)
    return recipe.model_copy(update=parts)


def _optimizer_numbers(recipe: RecipeData, new: Settings) -> dict[str, Any]:
    """Return what [optimizer], or a group of its own, holds at the new batch."""
    o = recipe.optimizer
    names = ("lr", "momentum", "betas", "alpha", "eps", "weight_decay", "clip")
    written = {name: getattr(new, name) for name in names}
    if row_of(recipe).invariant and new.batch != recipe.batch.size:
        written["reference_batch"] = o.reference_batch or recipe.batch.size
    return written


def _average_numbers(recipe: RecipeData, new: Settings, moved: Moves) -> dict[str, Any]:
    """Return what [ema] holds at the new batch."""
    ema, unit = recipe.ema, recipe.batch.unit
    found: dict[str, Any] = {}
    if ema is None:
        return found
    if ema.decay is not None:
        found["decay"] = moved["ema.decay"].becomes
    elif ema.half_life is not None:
        found["half_life"] = f"{new.half_life:.12g} {unit}"
    if "ema.final" in moved:
        found["final"] = moved["ema.final"].becomes
    if ema.start is not None:
        found["start"] = spelled(recipe, ema.start, "ema.start")
    if ema.ramp is not None:
        ramp: dict[str, Any] = (
            {"tau": spelled(recipe, ema.ramp.tau, "ema.ramp.tau")} if ema.ramp.tau is not None else {}
        )
        if "ema.ramp.inv_gamma" in moved:
            ramp["inv_gamma"] = moved["ema.ramp.inv_gamma"].becomes
        found["ramp"] = ema.ramp.model_copy(update=ramp)
    return found


def spelled(recipe: RecipeData, quantity: str, name: str) -> str:
    """Return a span of the recipe in samples, so that it survives another batch.

    Args:
        recipe: whose epochs and steps are meant.
        quantity: such as "2000 steps".
        name: which setting it is, for messages.

    Returns:
        Such as "16000 samples".
    """
    return f"{recipe.samples(quantity, name):.12g} {recipe.batch.unit}"


def _in_samples(recipe: RecipeData, size: float) -> dict[str, Any]:
    """Return the parts that are spans: schedule, curves, spans, [augment] and [adversary]."""
    found: dict[str, Any] = {}
    augment, adversary, unit = recipe.augment, recipe.adversary, recipe.batch.unit
    if recipe.schedule is not None:
        stairs = curve(recipe, size)
        spans = {"length": f"{stairs.length:.12g} {unit}", "stair": stairs.stair}
        if not isinstance(stairs, Pieces):
            spans["warmup"] = f"{stairs.warmup:.12g} {unit}"
            if stairs.decay_from is not None:
                spans["decay_from"] = f"{stairs.decay_from:.12g} {unit}"
        found["schedule"] = recipe.schedule.model_copy(update=spans)
    found["curves"] = {name: in_samples(segments, recipe.samples, unit) for name, segments in recipe.curves.items()}
    found["spans"] = {name: spelled(recipe, span, f"spans.{name}") for name, span in recipe.spans.items()}
    if augment is not None and augment.adjust_norm is not None:
        span = spelled(recipe, augment.adjust_norm, "augment.adjust_norm")
        found["augment"] = augment.model_copy(update={"adjust_norm": span})
    if adversary is not None:
        span = spelled(recipe, adversary.warmup, "adversary.warmup")
        found["adversary"] = adversary.model_copy(update={"warmup": span})
    return found
