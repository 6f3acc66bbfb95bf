"""Check: whether a file at another batch than its reference has the values that the plan gives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.loading import Loaded
from isobatch.formats.view import View
from isobatch.plan import Recipe
from isobatch.rules import OPTIMIZERS

NEAR = 0.005
"""Relative difference up to which a value is the plan's."""
_MARKS, _COURSE = 20, 0.02
"""Places of the run at which the rate is compared, and the share of its peak by which it may differ there."""
_FREE = ("batch.size", "batch.micro", "batch.devices", "micro", "accumulation", "devices", "nbs")


@dataclass(frozen=True)
class Departure:
    """A key that departs from the plan.

    Args:
        key: as the file spells it.
        value: what stands there.
        planned: what the plan of the reference gives at the file's batch.
        because: the rule.
    """

    key: str
    value: Any
    planned: Any
    because: str = ""

    def __str__(self) -> str:
        why = f" ({self.because})" if self.because else ""
        return f"{self.key} = {self.value!r}, planned {self.planned!r}{why}"


def check(file: Loaded, reference: Loaded) -> tuple[Departure, ...]:
    """Return where a file departs from its reference without the plan's values.

    Args:
        file: what is checked.
        reference: the recipe that it comes from.

    Returns:
        Departures; none where the file is the reference, or its plan.

    Raises:
        InputError: two formats, or a batch that the reference cannot take.
    """
    if file.ledger.format != reference.ledger.format:
        raise InputError(
            f"{file.ledger.source.name} is {file.ledger.title}, {reference.ledger.source.name} is "
            f"{reference.ledger.title}; check files of one format"
        )
    batch = file.recipe.batch
    made = reference.at(batch.size, devices=batch.devices, micro=batch.per_device if batch.micro else None)
    view = View(made.recipe, reference.ledger.spans, reference.recipe)
    have = {link.name: link for link in file.ledger.links}
    why = {row.path: row.rule for row in made.rows}
    found = []
    for link in reference.ledger.links:
        other = have.get(link.name)
        if link.path in _FREE:
            continue
        wanted = link.back(view)
        value = None if other is None else _number(other.value, link.unit)
        if not _near(value, wanted, link.whole):
            shown = round(wanted) if link.whole and isinstance(wanted, float) else wanted
            found.append(Departure(link.name, value, shown, why.get(link.path, "")))
    found += _unlinked(file, reference, made.recipe)
    theirs = {item.key: item.value for item in reference.ledger.unread}
    for item in file.ledger.unread:
        if theirs.get(item.key) != item.value and item.key not in have:
            found.append(Departure(item.key, item.value, theirs.get(item.key), "acts and was not read"))
    return tuple(found)


def _unlinked(file: Loaded, reference: Loaded, planned: Recipe) -> Iterator[Departure]:
    """Yield what departs though no key of the reference says it: optimizer, groups, averages, the rate's course."""
    told = {link.path for link in (*reference.ledger.links, *reference.ledger.fixed)}
    have, want, before = _flat(file.recipe), _flat(planned), _flat(reference.recipe)
    if have["optimizer.name"] != want["optimizer.name"]:
        yield Departure("optimizer.name", have["optimizer.name"], want["optimizer.name"], "another optimizer")
        return
    for path in sorted(have.keys() | want.keys()):
        value, wanted = have.get(path), want.get(path)
        constant = value is not None and _near(value, before.get(path), False)  # of the trainer's code
        if path not in told and not constant and not _near(value, wanted, False):
            yield Departure(path, value, wanted, "no key of the reference says it")
    yield from _course(file.recipe, planned)


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says beside its batch and its spans, by the paths of the ledger."""
    found: dict[str, Any] = {}

    def spread(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                spread(f"{path}.{key}", inner)
        elif isinstance(value, (list, tuple)):
            for index, inner in enumerate(value):
                spread(f"{path}[{index}]", inner)
        elif value is not None:
            found[path] = value

    said = recipe.model_dump(include={"optimizer", "groups", "ema", "batch_norm"}, exclude_none=True)
    acting = {"name", "decay", "nesterov", "clip", "clip_by", *OPTIMIZERS[recipe.optimizer.name].keys}
    said["optimizer"] = {key: value for key, value in said["optimizer"].items() if key in acting}
    for name, value in said.items():
        spread(name, value)
    spans = {"ema.half_life", "ema.start", "ema.ramp.tau"}
    return {path: value for path, value in found.items() if path not in spans}


def _course(have: Recipe, want: Recipe) -> Iterator[Departure]:
    """Yield where the course of the rate departs, to what whole steps cost."""
    if have.schedule is None or want.schedule is None:
        return
    one, other = have.staircase(), want.staircase()
    steps = 2 * want.batch.size
    if abs(one.length - other.length) > max(NEAR * other.length, steps):
        yield Departure("schedule.length", f"{one.length:g} {have.batch.unit}", f"{other.length:g} {have.batch.unit}")
        return
    for part in range(1, 2 * _MARKS, 2):
        at = other.length * part / (2 * _MARKS)
        near = (at + steps * shift / 4 for shift in range(-4, 5))
        around = [other.at(min(max(place, 0.0), other.length * (1 - 1e-9))) for place in near]
        share = one.at(min(at, one.length * (1 - 1e-9)))
        if not min(around) - _COURSE <= share <= max(around) + _COURSE:
            yield Departure(
                "curves.lr", f"{share:.3g} of its peak at {at / other.length:.0%} of the run", f"{around[4]:.3g} of it"
            )
            return


def _number(value: Any, unit: str) -> Any:
    """Return the number of a count that stands with its unit, such as 100ba."""
    text = str(value).replace("_", "").removesuffix(unit)
    return float(text) if unit and text.replace(".", "", 1).isdigit() else value


def _near(value: Any, wanted: Any, whole: bool) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(_near(a, b, whole) for a, b in zip(value, wanted, strict=True))
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, wanted)]
    if not all(numbers):
        return value == wanted
    if whole and abs(value - wanted) < 1:  # rounded up or down, and not the next one: 2 of 1 is twice as long
        return True
    if 0.5 < wanted < 1 and 0.5 < value < 1:  # decays: what counts is 1 - decay
        value, wanted = 1 - value, 1 - wanted
    return math.isclose(value, wanted, rel_tol=NEAR, abs_tol=1e-15)
