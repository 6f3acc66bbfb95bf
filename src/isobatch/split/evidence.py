"""What the records of a check say: weights of samples, modifications between passes, moves of an average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isobatch.split.compare import contributed, gradient, parallel, parameter_of
from isobatch.split.layouts import Layout, Record
from isobatch.split.observe import Update
from isobatch.split.sketch import Named, added, joined

ROWS = 20_000


def named(layout: Layout, count: int = 1) -> str:
    """Return the name of a layout on some processes.

    Args:
        layout: on each of them.
        count: of processes.

    Returns:
        Words.

    Example:
        >>> named(Layout(8, 3)), named(Layout(8), 2), named(Layout(8, 2), 2)
        ('3 uneven parts of 8', '2 processes x 4', '2 processes x 2 x 2')
    """
    if count == 1:
        return str(layout)
    each = layout.batch // count
    return f"{count} processes x {each}" if layout.parts == 1 else f"{count} processes x {layout.but(batch=each)}"


@dataclass
class Evidence:
    """Everything that was run for one check.

    Args:
        reference: one whole batch, random numbers held at their mean where any are drawn.
        splits: the same samples in parts, or on several processes.
        processes: how many processes each split had.
        natural: reference and largest split with random numbers as they are; empty where none are drawn.
        amplified: reference and largest split with gradients made large, so that clipping is active.
        linear: reference and every split with gradients made small, so that it is not.
        samples: what each sample alone contributes to the gradient, empty where it could not be taken.
        means: place of a split -> gradients of its parts as batches of their own, where samples cannot be told apart.
        sums: gradient of a batch with every sample twice over that of the half: 2 for a sum, 1 for a mean.
        poisoned: reference and largest split with one infinite sample.
        influence: path of other state -> whether it has an effect on later weights.
        tolerance: up to which relative distance gradients count as the same.
        only: names of the parameters that are looked at, None for all.
    """

    reference: Record
    splits: list[Record]
    processes: list[int]
    natural: list[Record] = field(default_factory=list)
    amplified: list[Record] = field(default_factory=list)
    linear: list[Record] = field(default_factory=list)
    samples: list[Named] = field(default_factory=list)
    means: dict[int, list[Named]] = field(default_factory=dict)
    sums: float | None = None
    poisoned: list[Record] = field(default_factory=list)
    influence: dict[str, bool] = field(default_factory=dict)
    tolerance: float = 1e-9
    only: frozenset[str] | None = None

    def gradient(self, record: Record) -> Named:
        """Return the gradient of what is looked at.

        Args:
            record: of a layout.

        Returns:
            Sketches by parameter.
        """
        found = gradient(record)
        return found if self.only is None else {name: one for name, one in found.items() if name in self.only}

    def optimizers(self) -> list["Evidence"]:
        """Return what the records say of each optimizer's parameters alone, since their losses may differ.

        Returns:
            This evidence where there is one optimizer, or where two hold the same parameter.
        """
        held = {frozenset(given) for given in self.reference.updates[0].stepped}
        if len(held) < 2 or sum(map(len, held)) > len(frozenset().union(*held)):
            return [self]
        return [replace(self, only=names) for names in sorted(held, key=sorted)]

    @property
    def close(self) -> float:
        """Relative distance up to which what is solved for counts as exact."""
        return max(1e-6, 20 * self.tolerance)

    @property
    def seen(self) -> bool:
        """Whether gradients are known: an optimizer of torch was given them, or the weights went along them."""
        update = self.reference.updates[0]
        if update.stepped:
            return True
        like = self.gradient(self.reference)
        return parallel(joined(like, like), joined(contributed(update), like))[1] < 1e-5

    def parts(self, place: int) -> int:
        """Return in how many micro-batches a split takes the batch, over all processes.

        Args:
            place: of the split.

        Returns:
            A count.
        """
        return self.splits[place].layout.parts * self.processes[place]

    def name(self, place: int) -> str:
        """Return the name of a split.

        Args:
            place: of the split.

        Returns:
            Words.
        """
        return named(self.splits[place].layout, self.processes[place])

    def straight(self, place: int) -> tuple[Record, Record]:
        """Return reference and a split where clipping does nothing.

        Args:
            place: of the split.

        Returns:
            Two records.
        """
        if self.linear and self.processes[place] == 1:
            return self.linear[0], self.linear[1 + place]
        return self.reference, self.splits[place]


def per_parts(ratios: Sequence[float], parts: Sequence[int], tolerance: float = 1e-6) -> int | None:
    """Return the power e for which every ratio is parts**e, None where there is none.

    Args:
        ratios: measured, of each split.
        parts: of each split.
        tolerance: relative.

    Returns:
        1, -1, 2, -2 or None.

    Example:
        >>> per_parts([2.0, 4.0], [2, 4]), per_parts([0.5, 0.25], [2, 4]), per_parts([3.0, 3.0], [2, 4])
        (1, -1, None)
    """
    for power in (1, -1, 2, -2):
        if ratios and all(abs(r / p**power - 1) < tolerance for r, p in zip(ratios, parts, strict=True)):
            return power
    return None


@dataclass
class Weights:
    """A gradient as a weighted sum of the samples' own gradients.

    Args:
        factors: of each sample that has a gradient, over its factor in the whole batch.
        groups: such samples of each micro-batch.
        rows: samples of each micro-batch, with those that have no gradient.
        residual: what the weighted sum leaves unexplained.
    """

    factors: Tensor
    groups: list[list[int]]
    rows: list[int]
    residual: float


def weights(evidence: Evidence, place: int) -> Weights | None:
    """Return how much every sample weighs in a split's gradient.

    With g_s the gradient of sample s alone, solves sum_s w_s g_s = G for the split and for the whole batch.

    Args:
        evidence: with `samples`.
        place: of the split.

    Returns:
        The weights, None where the samples' own gradients could not be taken.
    """
    whole, split = evidence.straight(place)
    like = evidence.gradient(whole)
    if not evidence.samples or not like:
        return None
    basis = torch.stack([joined(one, like) for one in evidence.samples], 1)
    keep = torch.arange(0, len(basis), max(1, len(basis) // ROWS))
    basis = basis[keep]
    sizes = basis.norm(dim=0)
    live = sizes > 1e-12 * float(sizes.max())  # a sample without tokens, or masked, has no gradient to weigh
    if not bool(live.any()):
        return None
    basis = basis[:, live] / sizes[live]
    if len(basis) < basis.shape[1] or float(torch.linalg.svdvals(basis)[-1]) < 1e-7:
        return None  # fewer directions than samples

    def solve(target: Tensor) -> tuple[Tensor, float]:
        found = torch.linalg.lstsq(basis, target[keep, None], driver="gelsd").solution[:, 0]
        size = float(target[keep].norm())
        return found, float((basis @ found - target[keep]).norm()) / size if size else 0.0

    ours, left = solve(joined(evidence.gradient(split), like))
    base, lost = solve(joined(like, like))
    if bool((base.abs() < 1e-9 * base.abs().max()).any()):
        return None
    sizes_, samples = split.updates[0].sizes, [int(i) for i in live.nonzero()]
    if len(split.updates[0].passes) == 1 and sum(sizes_) == len(live):  # one graph: by its forward passes
        ends = [sum(sizes_[: i + 1]) for i in range(len(sizes_))]
        groups = [[i for i, s in enumerate(samples) if end - size <= s < end]
                  for size, end in zip(sizes_, ends, strict=True)]  # fmt: skip
        return Weights(ours / base, groups, sizes_, max(left, lost))
    groups = []
    for one in split.updates[0].passes:
        part, _ = solve(joined(one.gives, like))
        groups.append([i for i in range(len(part)) if abs(float(part[i])) > 1e-6 * float(part.abs().max())])
    rows = sizes_ if len(sizes_) == len(groups) and sum(sizes_) == len(live) else [len(group) for group in groups]
    return Weights(ours / base, groups, rows, max(left, lost))


def tampered(update: Update, like: Named, tolerance: float) -> list[str]:
    """Return what happened to the gradients between the backward passes of an update, pass by pass.

    Args:
        update: one.
        like: names and sizes of the gradients.
        tolerance: relative.

    Returns:
        "kept", "zeroed", "scaled" or "changed" for each gap between two passes.
    """
    found = []
    for before, after in zip(update.passes, update.passes[1:], strict=False):
        had = joined(before.holds, like)
        has = joined(added(after.holds, after.gives, -1.0), like)
        scale = max(float(had.norm()), float(joined(after.gives, like).norm()))
        if float(had.norm()) == 0 or float((has - had).norm()) <= tolerance * scale:
            found.append("kept")
            continue
        if float(has.norm()) <= tolerance * scale:
            found.append("zeroed")
            continue
        factor = float(has @ had) / float(had @ had)
        left = float((has - factor * had).norm()) / float(has.norm())
        found.append("scaled" if left <= 10 * tolerance else "changed")
    return found


def randomly_changed(update: Update, like: Named, tolerance: float) -> int:
    """Return how often the gradients were changed other than by a factor, between passes and before the step.

    Args:
        update: one, with random numbers as they are.
        like: names and sizes of the gradients.
        tolerance: relative.

    Returns:
        A count.
    """
    count = tampered(update, like, tolerance).count("changed")
    if update.passes and update.stepped:
        had, has = joined(update.passes[-1].holds, like), joined(update.stepped[-1], like)
        if float(had.norm()) == 0:
            had = joined(contributed(update), like)
        square = float(had @ had)
        left = has - (float(has @ had) / square if square else 0.0) * had
        size = float(has.norm())
        count += size > 0 and float(left.norm()) > tolerance * size
    return count


def share_of(difference: Tensor, direction: Tensor, tolerance: float) -> float | None:
    """Return c where a difference is c times a direction on the elements where it is not zero.

    Args:
        difference: a vector.
        direction: another one, such as the weights.
        tolerance: relative, of c from element to element.

    Returns:
        c, None where it is no constant, or too few elements say so.
    """
    scale = float(difference.abs().max()) if len(difference) else 0.0
    here = (difference.abs() > 1e-6 * scale) & (direction.abs() > 1e-4 * float(direction.abs().max()))
    if scale == 0 or int(here.sum()) < 3:
        return None
    ratios = difference[here] / direction[here]
    middle = float(ratios.median())
    if middle == 0 or float((ratios - middle).abs().max()) > max(tolerance, 1e-5) * abs(middle):
        return None
    return middle


@dataclass
class AverageMoves:
    """a' = keep * a + before * theta + after * theta', fitted on one update.

    Args:
        keep: factor of the old average.
        before: of the weights before the step.
        after: of the weights after it.
        residual: what the fit leaves, relative.
    """

    keep: float
    before: float
    after: float
    residual: float


def average_moves(record: Record, path: str) -> AverageMoves | None:
    """Fit how an average moved in the last update.

    Args:
        record: of several updates.
        path: of one of its tensors, which ends with a parameter's name.

    Returns:
        The fit, None where average and weights are not in general position.
    """
    if len(record.updates) < 2:
        return None
    last = record.updates[-1]
    old, new = last.earlier.get("average", {}).get(path), last.tensors.get("average", {}).get(path)
    order = list(last.after)
    name = parameter_of(path, order)
    if name is not None and (new is None or last.after[name].shape != new.shape):
        name = None
    if name is None or old is None or new is None:
        return None
    columns = torch.stack([old, last.before[name], last.after[name]], 1)
    steps = torch.stack([old - last.before[name], last.after[name] - last.before[name]], 1)
    if len(old) < 4 or float(torch.linalg.svdvals(steps)[-1]) <= 1e-10 * float(steps.norm()):
        return None
    # the three factors add to one: new - before = keep * (old - before) + after * (after - before)
    found = torch.linalg.lstsq(steps, (new - last.before[name])[:, None], driver="gelsd").solution[:, 0]
    keep, after = found.tolist()
    left = float((steps @ found - (new - last.before[name])).norm()) / (float(columns[:, 0].norm()) or 1.0)
    return AverageMoves(keep, 1 - keep - after, after, left)


def most_moves(record: Record, paths: list[str]) -> int:
    """Return at how many events of an update the busiest of some tensors or numbers was found changed.

    Args:
        record: of a layout.
        paths: of tensors or numbers.

    Returns:
        A count.
    """
    return max((update.moves.get(path, 0) for update in record.updates for path in paths), default=0)


def rows_lost(reference: Update, split: Update) -> tuple[int, int] | None:
    """Return how many rows a split did not pass through the model, and how many it passed more often.

    Args:
        reference: of one whole batch.
        split: of the same samples in parts.

    Returns:
        Dropped and duplicated, None where rows cannot be told (other lengths, other shapes).
    """

    def key(value: float) -> float:
        return round(value, 9 - math.ceil(math.log10(abs(value)))) if value and math.isfinite(value) else 0.0

    one, other = list(map(key, reference.rows)), list(map(key, split.rows))
    if not one or not other or not set(one) & set(other) or len(set(one) & set(other)) < len(set(other)):
        return None
    missing = sum(max(0, one.count(value) - other.count(value)) for value in set(one))
    more = sum(max(0, other.count(value) - one.count(value)) for value in set(one))
    return missing, more


def first_meeting(reference: Update, split: Update, close: float) -> tuple[str, bool] | None:
    """Return the first module whose rows depend on which samples are beside them.

    Args:
        reference: of one whole batch.
        split: of the same samples in parts.
        close: relative distance up to which two rows are the same.

    Returns:
        Its name, and whether buffers under it are written in forward passes; None where there is no such module.
    """
    for name, rows in reference.outputs.items():
        other = split.outputs.get(name, [])
        if not rows or len(rows) != len(other):
            continue
        one, two = (torch.tensor(each, dtype=torch.float64).sort()[0] for each in (rows, other))
        if float((one - two).abs().max()) > close * (float(one.abs().max()) or 1.0):
            written = any(path.startswith(f"buffers:{name}.") for path in split.moves)
            return name, written
    return None


def state_between(reference: Update, split: Update, tolerance: float) -> str | None:
    """Return the first module that gives the rows of the first micro-batch as in one batch, and later ones otherwise.

    Args:
        reference: of one whole batch.
        split: of the same samples in parts, taken in the same order.
        tolerance: relative, of the gradient.

    Returns:
        Its name; None where there is none, or where the first rows differ already.
    """
    if len(split.sizes) < 2:
        return None
    for name, rows in reference.outputs.items():
        one, other = (torch.tensor(each, dtype=torch.float64) for each in (rows, split.outputs.get(name, [])))
        if len(one) != len(other) or not len(one) or len(one) % sum(split.sizes):
            continue
        first = split.sizes[0] * (len(one) // sum(split.sizes))
        gaps, limit = (one - other).abs(), tolerance * (float(one.abs().max()) or 1.0)
        if float(gaps.max()) > limit:
            return name if float(gaps[:first].max()) <= limit else None
    return None
