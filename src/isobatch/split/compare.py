"""One layout against the reference, component by component, to a measured noise floor."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from isobatch.split.layouts import Record
from isobatch.split.observe import Update
from isobatch.split.sketch import BLOCKS, MOST, Named, added, joined

IDENTICAL, EQUIVALENT, DIFFERENT, NOT_COMPARABLE = "IDENTICAL", "EQUIVALENT", "DIFFERENT", "NOT COMPARABLE"
FACTOR, FLOOR, CAP, EXACT = 50.0, 2.0**15, 0.05, 1e-12
"""A tolerance is 50 noise floors, at least 2^15 eps of float64 or 64 eps of a coarser type, at most 5%."""


@dataclass
class Component:
    """One thing that is compared.

    Args:
        name: of the component.
        verdict: IDENTICAL, EQUIVALENT, DIFFERENT or NOT COMPARABLE.
        distance: largest relative distance from one whole batch.
        tolerance: up to which it counts as none.
        ratio: how many times the reference, where the two are parallel.
        where: layout of the largest distance.
        reason: why it is not IDENTICAL.
    """

    name: str
    verdict: str
    distance: float = 0.0
    tolerance: float = 0.0
    ratio: float | None = None
    where: str = ""
    reason: str = ""


def differs(components: Mapping[str, Component], *names: str) -> bool:
    """Return whether one of some components is DIFFERENT.

    Args:
        components: by name.
        *names: those that are looked at, where they are compared.

    Returns:
        True where one is.
    """
    return any(name in components and components[name].verdict == DIFFERENT for name in names)


Vector = Callable[[Record, Record], Tensor | None]
"""(record, reference) -> the component as one vector, None where the record has none."""


def distance(one: Tensor, other: Tensor) -> float:
    """Return ||one - other|| / ||other||; infinite where one of them is not finite and they differ.

    Args:
        one: a vector.
        other: the reference.

    Returns:
        0 for equal vectors.

    Example:
        >>> distance(torch.tensor([2.0]), torch.tensor([1.0]))
        1.0
    """
    if one.shape != other.shape:
        return math.inf
    apart = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(apart.any()):
        return 0.0
    # what is infinite in both, such as a mask, is no distance and no scale
    scale = float(other[other.isfinite()].norm()) or float(one[one.isfinite()].norm())
    found = float((one - other)[apart].norm()) / scale if scale else math.inf
    return found if math.isfinite(found) else math.inf


def parallel(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the factor that takes a vector to another one, and what it leaves of it.

    Args:
        one: a vector.
        other: the reference.

    Returns:
        The factor, and ||one - factor * other|| / ||one||.

    Example:
        >>> parallel(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]))
        (2.0, 0.0)
    """
    square = float(other @ other)
    factor = float(one @ other) / square if square else 0.0
    size = float(one.norm())
    return factor, float((one - factor * other).norm()) / size if size else 0.0


def gradient(record: Record) -> Named:
    """Return the gradient that the first update's steps were given; without any, the way that the weights went.

    Args:
        record: of a layout.

    Returns:
        Sketches by parameter.
    """
    if not record.updates:
        return {}
    update = record.updates[0]
    if update.stepped:  # the last step of every optimizer
        return {name: one for given in update.stepped for name, one in given.items()}
    return added(update.before, update.after, -1.0)


def unclipped(record: Record) -> Named:
    """Return the gradient before clipping, where torch's clipping was called.

    Args:
        record: of a layout.

    Returns:
        Sketches by parameter.
    """
    update = record.updates[0] if record.updates else Update()
    return update.unclipped[-1] if update.unclipped else gradient(record)


def contributed(update: Update) -> Named:
    """Return the sum of what the backward passes of an update gave.

    Args:
        update: one.

    Returns:
        Sketches by parameter.
    """
    total: Named = {}
    for one in update.passes:
        total = added(total, one.gives)
    return total


@dataclass
class Floor:
    """What floating point alone does to a component.

    Args:
        reference: one whole batch.
        others: the same, with weights nudged by one unit in the last place, or samples in another order.
        coarsest: eps of the coarsest type that is computed in.
    """

    reference: Record
    others: list[Record]
    coarsest: float
    unsure: dict[str, Tensor] = field(default_factory=dict)

    def tolerance(self, vector: Vector) -> float:
        """Return up to which relative distance a component counts as the same.

        Args:
            vector: of the component.

        Returns:
            50 times the measured floor, within bounds.
        """
        reference = vector(self.reference, self.reference)
        found = [0.0]
        for other in self.others:
            one = vector(other, self.reference)
            if one is not None and reference is not None:
                found.append(distance(one, reference))
        found = [one for one in found if one < 1e-3] or [0.0]
        return min(max(FACTOR * max(found), self.least), CAP)

    @property
    def least(self) -> float:
        """The smallest tolerance."""
        return (FLOOR if self.coarsest < EXACT else 64.0) * self.coarsest

    def hides(self, name: str) -> bool:
        """Return whether leaving out undetermined elements leaves nothing of a component.

        Args:
            name: of a component that is zero without them.

        Returns:
            True where it is not zero with them.
        """
        whole = vectors(replace(self, unsure={}))[name](self.reference, self.reference)
        return whole is not None and bool(whole.any())


def unsure_elements(records: Iterable[Record], reference: Record, coarsest: float) -> dict[str, Tensor]:
    """Return which elements of each parameter have a gradient that floating point cannot tell from zero.

    An optimizer that divides by the gradient's size moves such an element by a full step of either sign. In a coarse
    type an element is compared with the largest of its own parameter, whose rounding it shares.

    Args:
        records: of all layouts.
        reference: one whole batch.
        coarsest: eps of the coarsest type that is computed in.

    Returns:
        Name -> true where undetermined.
    """
    found: dict[str, Tensor] = {}
    sizes: dict[str, float] = {}
    for name, one in ((n, one) for u in reference.updates for g in u.stepped for n, one in g.items() if one.numel()):
        sizes[name] = max(sizes.get(name, 0.0), float(one.abs().max()))
    largest = max(sizes.values(), default=0.0)
    exact = coarsest < EXACT
    limits = {name: 1e4 * coarsest * largest if exact else max(min(1e4 * coarsest, CAP) * own, 4 * coarsest * largest)
              for name, own in sizes.items()}  # fmt: skip
    for record in records:
        for update in record.updates:
            for gradients in update.stepped:
                for name, one in gradients.items():
                    small = (one.abs() <= limits.get(name, 0.0)) & (one != 0)
                    if len(one) == MOST + BLOCKS and (not exact or bool(small[:MOST].any())):
                        small[MOST:] = True
                    found[name] = found[name] | small if name in found else small
    return {name: one for name, one in found.items() if bool(one.any())}


def masked(named: Mapping[str, Tensor], unsure: Mapping[str, Tensor], order: list[str]) -> Named:
    """Return sketches with undetermined elements set to zero.

    Args:
        named: path -> sketch; a path holds the name of its parameter, or ends with its place in `order`.
        unsure: name -> true where undetermined.
        order: names of all parameters.

    Returns:
        The same paths.
    """
    if not unsure:
        return dict(named)
    return {path: _without(path, one, unsure, order) for path, one in named.items()}


def _without(path: str, one: Tensor, unsure: Mapping[str, Tensor], order: list[str]) -> Tensor:
    name = parameter_of(path, order)
    where = unsure.get(name) if name else None
    return torch.where(where, torch.zeros_like(one), one) if where is not None and where.shape == one.shape else one


def parameter_of(path: str, order: list[str]) -> str | None:
    """Return the parameter that a path of a trainer's state belongs to.

    Args:
        path: of a tensor.
        order: names of all parameters.

    Returns:
        The longest name that the path holds, else the one at its place in a list, else None.

    Example:
        >>> parameter_of("ema.module.fc.weight", ["fc.weight"]), parameter_of("shadow.1", ["a", "b"])
        ('fc.weight', 'b')
    """
    named = [name for name in order if f".{path}.".find(f".{name}.") >= 0]
    if named:
        return max(named, key=len)
    numbers = [int(word.lstrip("#")) for word in path.split(".") if word.lstrip("#").isdigit()]
    return order[numbers[-1]] if numbers and numbers[-1] < len(order) else None


def vectors(floor: Floor) -> dict[str, Vector]:
    """Return every component that is compared as a vector.

    Args:
        floor: knows which elements are undetermined.

    Returns:
        Name of the component -> its vector.
    """

    def state(group: str) -> Vector:
        def found(record: Record, reference: Record) -> Tensor | None:
            like = reference.updates[-1].tensors.get(group)
            mine = record.updates[-1].tensors.get(group, {})
            if not like:
                return None
            order = list(reference.start) if group != "average buffers" else []
            return joined(masked(mine, floor.unsure, order), masked(like, floor.unsure, order))

        return found

    def counted(*groups: str) -> Vector:
        def found(record: Record, reference: Record) -> Tensor | None:
            # what becomes a tensor on the way, such as a first guess, is no counter
            paths = [(group, path) for group in groups for path in reference.updates[0].numbers.get(group, {})
                     if all(path in u.numbers.get(group, {}) for u in reference.updates)]  # fmt: skip
            rows = [[u.numbers.get(group, {}).get(path, math.nan) for group, path in paths] for u in record.updates]
            flat = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
            return flat if flat.numel() else None

        return found

    def moved(last: int) -> Vector:
        def found(record: Record, reference: Record) -> Tensor | None:
            moves = added(record.updates[last].after, record.updates[0].before, -1.0)
            return joined(masked(moves, floor.unsure, list(reference.start)), reference.start)

        return found

    def losses(record: Record, reference: Record) -> Tensor | None:
        found = [update.reported for update in record.updates]
        if any(one is None for one in found):
            return None
        flat = torch.tensor(found, dtype=torch.float64)
        # up to the rounding of what it adds up, a loss is zero: its slope along the weights says how large that is
        first = reference.updates[0]
        slope = joined(contributed(first), reference.start).norm() * joined(first.before, reference.start).norm()
        return torch.where(flat.abs() <= floor.least * slope, 0.0, flat)

    return {
        "loss as reported": losses,
        "gradient before clipping": lambda r, ref: joined(unclipped(r), unclipped(ref)),
        "gradient at the step": lambda r, ref: joined(gradient(r), gradient(ref)),
        "update": moved(0),
        "weights after all updates": moved(-1),
        "optimizer state": state("optimizer"),
        "optimizer counters": counted("optimizer"),
        "learning rate": _rates,
        "scheduler": counted("scheduler"),
        "gradient scaler": counted("scaler"),
        "average": state("average"),
        "average's buffers": state("average buffers"),
        "average's counter": counted("average"),
        "buffers of the model": state("buffers"),
        "other state": state("other"),
    }


def _rates(record: Record, reference: Record) -> Tensor | None:
    rates = [torch.tensor(update.rates[-1] if update.rates else [], dtype=torch.float64) for update in record.updates]
    flat = torch.cat(rates) if rates else torch.zeros(0)
    return flat if flat.numel() else None


def plain(value: Any) -> Any:
    """Return a value for JSON: tensors as lists.

    Args:
        value: any nest.

    Returns:
        Plain values.
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
