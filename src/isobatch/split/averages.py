"""Averages of weights and buffers: how often and how far they move in an update."""

import math

import torch

from isobatch.split.cause import Cause, cause
from isobatch.split.compare import Component, differs, distance
from isobatch.split.evidence import Evidence, average_moves, most_moves
from isobatch.split.observe import Update


def early_averages(evidence: Evidence) -> bool:
    """Return whether an average moves more often in some split than for one whole batch.

    Args:
        evidence: what was run.

    Returns:
        True where it does, however far.
    """
    paths = list(evidence.reference.updates[-1].tensors.get("average", {}))
    base = most_moves(evidence.reference, paths)
    return any(most_moves(split, paths) > base for split in evidence.splits)


def teaches(evidence: Evidence) -> bool:
    """Return whether a module beside the model is called in an update.

    Args:
        evidence: what was run.

    Returns:
        True for a teacher.
    """
    return any(update.calls for update in evidence.reference.updates)


def average_causes(evidence: Evidence, components: dict[str, Component]) -> list[Cause]:
    """Return why an average differs: it moves more often than the weights, or takes buffers at another moment.

    Args:
        evidence: what was run.
        components: how each component compares.

    Returns:
        No causes where none differs.
    """
    made: list[Cause] = []
    paths = _differing(evidence, "average") or list(evidence.reference.updates[-1].tensors.get("average", {}))
    base, more = most_moves(evidence.reference, paths), [most_moves(s, paths) for s in evidence.splits]
    kind = "teacher-per-part" if teaches(evidence) else "average-per-part"
    often = any(count > base for count in more)
    if paths and differs(components, "average", "average's counter"):
        fits = _average_powers(evidence, paths)
        wrong = [power for power in fits if power is not None and abs(power - 1) > 1e-3]
        counters = _counter_ratios(evidence)
        if wrong or (often and differs(components, "average")) or any(abs(one - 1) > 1e-9 for one in counters):
            seen = []
            if often:
                seen.append(f"it moved {more} times in an update instead of {base}")
            if wrong:
                seen.append(
                    f"decay per update to the power {', '.join(f'{one:.3g}' for one in fits if one is not None)}"
                )
            if any(abs(one - 1) > 1e-9 for one in counters):
                seen.append(f"its counter moved {', '.join(f'{one:g}' for one in counters)} times as far")
            made.append(cause(kind, "; ".join(seen), "average", "average's counter", "average's buffers"))
    if not made and differs(components, "average's buffers"):
        made += _buffers(evidence, components)
    return made


def _differing(evidence: Evidence, group: str) -> list[str]:
    """Paths of a group that differ after the last update of some split."""
    base, none = evidence.reference.updates[-1].tensors.get(group, {}), torch.zeros(0)
    return [path for path, one in base.items()
            if any(distance(s.updates[-1].tensors.get(group, {}).get(path, none), one) > evidence.tolerance
                   for s in evidence.splits)]  # fmt: skip


def _average_powers(evidence: Evidence, paths: list[str]) -> list[float | None]:
    """Return log(keep) of each split over that of the reference."""
    for path in sorted(paths, key=lambda p: -evidence.reference.updates[-1].tensors["average"][p].numel()):
        base = average_moves(evidence.reference, path)
        if base is None or not 0 < base.keep < 1 - 1e-9 or base.residual > 1e-6:
            continue
        found: list[float | None] = []
        for split in evidence.splits:
            fit = average_moves(split, path)
            good = fit is not None and 0 < fit.keep < 1 - 1e-12 and fit.residual < 1e-6
            found.append(math.log(fit.keep) / math.log(base.keep) if good and fit is not None else None)
        return found
    return []


def _counter_ratios(evidence: Evidence) -> list[float]:
    base = evidence.reference.updates[-1].change.get("average", {})
    found = []
    for split in evidence.splits:
        mine = split.updates[-1].change.get("average", {})
        ratios = [mine.get(path, 0.0) / step for path, step in base.items() if step]
        found.append(max(ratios, key=lambda one: abs(one - 1), default=1.0))
    return found


def _buffers(evidence: Evidence, components: dict[str, Component]) -> list[Cause]:
    """Whether an average's buffers stand in the same relation to the model's as in the reference."""

    def relation(update: Update, path: str) -> str | None:
        for name, now in update.tensors["buffers"].items():
            held = update.tensors["average buffers"][path]
            if path.endswith(f".{name}") and now.shape == held.shape:
                if distance(held, now) < 1e-12:
                    return "as after the update"
                return "as before it" if distance(held, update.earlier["buffers"][name]) < 1e-12 else "in between"
        return None

    for path in evidence.reference.updates[-1].tensors.get("average buffers", {}):
        base = relation(evidence.reference.updates[-1], path)
        others = [relation(split.updates[-1], path) for split in evidence.splits]
        if any(one != base for one in others):
            seen = f"{path} is {base} for one batch, {others[-1]} at {evidence.splits[-1].layout}"
            return [cause("buffers-wrong-moment", seen, "average's buffers")]
        more = [most_moves(split, [path]) for split in evidence.splits]
        if any(count > most_moves(evidence.reference, [path]) for count in more):
            seen = f"{path} moved {more} times in an update instead of {most_moves(evidence.reference, [path])}"
            return [cause("buffers-wrong-moment", seen, "average's buffers")]
    return []
