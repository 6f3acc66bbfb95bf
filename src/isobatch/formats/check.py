"""Check: whether a file at another batch than its reference has the values that the plan gives."""

import math
from dataclasses import dataclass
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.loading import Loaded
from isobatch.formats.view import View

NEAR = 0.005
"""Relative difference up to which a value is the plan's."""
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
        value = None if other is None else other.value
        if not _near(value, wanted, link.whole):
            shown = round(wanted) if link.whole and isinstance(wanted, float) else wanted
            found.append(Departure(link.name, value, shown, why.get(link.path, "")))
    theirs = {item.key: item.value for item in reference.ledger.unread}
    for item in file.ledger.unread:
        if theirs.get(item.key) != item.value:
            found.append(Departure(item.key, item.value, theirs.get(item.key), "acts and was not read"))
    return tuple(found)


def _near(value: Any, wanted: Any, whole: bool) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(_near(a, b, whole) for a, b in zip(value, wanted, strict=True))
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, wanted)]
    if not all(numbers):
        return value == wanted
    if whole and abs(value - wanted) <= 1:
        return True
    if 0.5 < wanted < 1 and 0.5 < value < 1:  # decays: what counts is 1 - decay
        value, wanted = 1 - value, 1 - wanted
    return math.isclose(value, wanted, rel_tol=NEAR, abs_tol=1e-15)
