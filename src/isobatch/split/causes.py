"""From measured patterns to a cause: how loss, gradient, update and counts depend on the number of parts."""

import math
from collections.abc import Callable

import torch

from isobatch.split.cause import GRADIENT, Cause, cause
from isobatch.split.compare import DIFFERENT, IDENTICAL, Component, differs, distance, gradient
from isobatch.split.evidence import (
    Evidence,
    average_moves,
    most_moves,
    per_parts,
    randomly_changed,
    rows_lost,
)
from isobatch.split.layouts import Record
from isobatch.split.observe import Update
from isobatch.split.shares import clipping_causes, gradient_causes
from isobatch.split.sketch import joined

Components = dict[str, Component]
FOLLOWS = (
    "update",
    "weights after all updates",
    "optimizer state",
    "average",
    "loss as reported",
    "buffers of the model",
)
AS_A_WHOLE = ("optimizer-per-part", "step-missed", "mode-per-part")
"""Causes beside which a gradient says nothing."""
STEPS = ("optimizer counters", "optimizer steps", "learning rate")
BESIDE = ("loss-reported", "buffers-wrong-moment", "step-on-skip", "noise-per-part")
"""Causes that move no weight where random numbers are held and everything is finite."""


def find(evidence: Evidence, components: Components) -> list[Cause]:
    """Return the causes that the evidence shows, the one that comes first in a step first.

    Args:
        evidence: what was run.
        components: how each component compares.

    Returns:
        No causes where nothing differs.
    """
    found: list[Cause] = []
    for rule in (_samples, _steps, _missed, _modes, _states, _gradient, _clipping,
                 _writes, _noise, _schedulers, _averages, _skips, _reported):  # fmt: skip
        found += [one for one in rule(evidence, components, found) if one.name not in {c.name for c in found}]
    moving = any(one.name not in BESIDE for one in found)
    explained = {name for one in found for name in one.explains} | (set(FOLLOWS) if moving else set())
    differing = [name for name, one in components.items() if one.verdict == DIFFERENT]
    left = [name for name in differing if name not in explained]
    if left and not (moving and set(left) <= {*GRADIENT, "learning rate", "optimizer counters"}):
        left.sort(key=lambda name: name == "loss as reported")  # what is reported follows what is trained
        carried = "; the first update agrees: what differs is carried over, such as gradients that are not cleared"
        later = "weights after all updates" in left and not differs(components, *GRADIENT, "update")
        seen = f"first to differ: {left[0]}{carried if later else ''}"
        found.append(cause("unexplained", seen, *left, confidence="unknown"))
    return found


def _ratios(evidence: Evidence, measure: Callable[[Record], float]) -> list[float]:
    base = measure(evidence.reference)
    return [measure(one) / base if base else float("nan") for one in evidence.splits]


def _samples(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Rows that did not pass through the model, or passed more often."""
    if not differs(components, *GRADIENT):
        return []  # passed again for something else, such as a metric
    worst = (0, 0)
    for place, split in enumerate(evidence.splits):
        counts = rows_lost(evidence.reference.updates[0], split.updates[0])
        if counts is not None and sum(counts) > sum(worst):
            worst, where = counts, evidence.name(place)
    if not sum(worst):
        return []
    return [cause("samples-lost", f"{where}: {worst[0]} samples dropped, {worst[1]} duplicated", *GRADIENT)]


def _steps(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """More optimizer steps in an update."""
    ratios = _ratios(evidence, lambda record: max(len(u.stepped) for u in record.updates))
    if all(one <= 1 or one != one for one in ratios):
        return []
    words = ", ".join(f"{len(s.updates[0].stepped)} steps at {evidence.name(i)}" for i, s in enumerate(evidence.splits))
    return [cause("optimizer-per-part", words, *GRADIENT, *FOLLOWS, *STEPS)]


def _missed(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Fewer optimizer steps in the same updates."""
    base = _total_steps(evidence.reference)
    fewer = [f"{_total_steps(split)} at {evidence.name(place)}" for place, split in enumerate(evidence.splits)
             if _total_steps(split) < base]  # fmt: skip
    if not fewer:
        return []
    seen = f"optimizer steps in {len(evidence.reference.updates)} updates: {base} with one batch, {', '.join(fewer)}"
    return [cause("step-missed", seen, *GRADIENT, *FOLLOWS, *STEPS)]


def _total_steps(record: Record) -> int:
    return sum(len(update.stepped) for update in record.updates)


def _modes(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Modules that are in training mode for other shares of the samples."""
    made = modes(evidence)
    return [cause("mode-per-part", made.reason, made.name, *GRADIENT, *FOLLOWS)] if made is not None else []


def _states(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """State that the loss depends on and that moves between micro-batches: teacher, centre, running statistics."""
    if not differs(components, "other state"):
        return []
    moved = []
    for path, one in evidence.reference.updates[-1].tensors.get("other", {}).items():
        off = any(
            distance(split.updates[u].tensors.get("other", {}).get(path, torch.zeros(0)),
                     evidence.reference.updates[u].tensors["other"].get(path, torch.zeros(0))) > evidence.tolerance
            for split in evidence.splits for u in range(len(split.updates))
        )  # fmt: skip
        if one.numel() and off and evidence.influence.get(path, True):
            more = [most_moves(split, [path]) for split in evidence.splits]
            if any(count > most_moves(evidence.reference, [path]) for count in more):
                moved.append(
                    f"{path}: moved {more} times in an update instead of {most_moves(evidence.reference, [path])}"
                )
    return [cause("centre-per-part", "; ".join(moved), "other state")] if moved else []


def _gradient(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """How much each sample weighs in the gradient."""
    if not evidence.seen:
        return []
    pairs = [evidence.straight(place) for place in range(len(evidence.splits))]
    off = [distance(joined(gradient(s), gradient(r)), joined(gradient(r), gradient(r))) for r, s in pairs]
    if max(off, default=0.0) <= evidence.tolerance or {one.name for one in found} & {*AS_A_WHOLE}:
        return []
    if any(one.updates[0].outside > evidence.reference.updates[0].outside for one in evidence.splits):
        return []  # weights that move between micro-batches: see _writes
    made = gradient_causes(evidence)
    if any(one.name == "samples-lost" for one in found):
        made = [one for one in made if one.name not in ("unexplained", "in-batch-loss", "mean-of-means")]
    if any(one.name == "centre-per-part" for one in found) or (_teaches(evidence) and early_averages(evidence)):
        made = [one for one in made if one.name not in ("unexplained", "in-batch-loss")]
    return made


def _clipping(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Clipping that sees a micro-batch, or a gradient that is not divided yet."""
    names = {one.name for one in found}
    if len(evidence.amplified) < 2 or names & {*AS_A_WHOLE, "decay-per-part"}:
        return []
    if any(one.updates[0].outside > evidence.reference.updates[0].outside for one in evidence.splits):
        return []  # weights that move between micro-batches bend the gradient too: see _writes
    return next((made for one in evidence.optimizers() if (made := clipping_causes(one))), [])


def _writes(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Weights that move outside of the optimizer's step, or a gradient with a multiple of the weights in it."""
    if any(one.name in (*AS_A_WHOLE, "decay-per-part") for one in found):
        return []
    first = evidence.reference.updates[0]
    for split in evidence.splits:
        mine = split.updates[0]
        if mine.outside <= first.outside:
            continue
        times = f"weights moved {mine.outside} times outside of the step at {split.layout} instead of {first.outside}"
        follows = ("update", "weights after all updates", *GRADIENT)
        if all(factor == factor for factor in mine.shrinks):
            return [cause("decay-per-part", f"{times}, each time to {mine.shrinks[0]:.6g} of themselves", *follows)]
        if first.outside and mine.outside == first.outside * split.layout.parts:
            more = "there and back, once for each micro-batch"
            return [cause("perturbation-per-part", f"{times}, {more}", *follows, confidence="derived")]
        if first.stepped:
            return [cause("unexplained", times, *follows, confidence="unknown")]
    return []


def _noise(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Random changes of gradients or weights, per micro-batch instead of per update."""
    if len(evidence.natural) < 2:
        return []
    whole, split = evidence.natural[0].updates[0], evidence.natural[1].updates[0]
    like = gradient(evidence.natural[0])
    counts = [randomly_changed(one, like, 1e-7) for one in (whole, split)]
    still = [randomly_changed(one.updates[0], like, 1e-7) for one in (evidence.reference, evidence.splits[-1])]
    outside = [one.outside for one in (whole, split)]
    calm = [one.updates[0].outside for one in (evidence.reference, evidence.splits[-1])]
    if counts[1] - still[1] > max(counts[0] - still[0], 0) and counts[0] - still[0] >= 0 and counts[1] > 1:
        seen = f"gradients changed at random {counts[1]} times at {evidence.natural[1].layout} instead of {counts[0]}"
        return [cause("noise-per-part", seen, "randomness")]
    if outside[1] - calm[1] > outside[0] - calm[0]:
        seen = f"weights changed at random {outside[1]} times at {evidence.natural[1].layout} instead of {outside[0]}"
        return [cause("noise-per-part", seen, "randomness")]
    return []


def _schedulers(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Counters of schedulers and scalers that move more often."""
    made = []
    for group, component, name in (("scheduler", "scheduler", "scheduler-per-part"),
                                   ("scaler", "gradient scaler", "scaler-per-part")):  # fmt: skip
        if not differs(components, component):
            continue
        base = evidence.reference.updates[0].change.get(group, {})
        for path, step in base.items():
            ratios = [s.updates[0].change.get(group, {}).get(path, 0.0) / step for s in evidence.splits if step]
            if any(abs(ratio - 1) > 1e-9 for ratio in ratios):
                words = ", ".join(f"{r:g} times at {evidence.name(i)}" for i, r in enumerate(ratios))
                alone = [r for r, p in zip(ratios, evidence.processes, strict=True) if p == 1]
                if group == "scheduler" and all(abs(r - 1) < 1e-9 for r in alone) and max(evidence.processes) > 1:
                    name = "scheduler-per-process"
                made.append(cause(name, f"{path} moved {words}", component, "learning rate", *FOLLOWS))
                break
    if not made and differs(components, "learning rate") and not {c.name for c in found} & {*AS_A_WHOLE}:
        base = max(u.moves.get("rates", 0) for u in evidence.reference.updates)
        more = [max(u.moves.get("rates", 0) for u in s.updates) for s in evidence.splits]
        if any(count > base for count in more):
            seen = f"the learning rate moved {more} times in an update instead of {base}"
            made.append(cause("scheduler-per-part", seen,
                              "learning rate", "scheduler", *FOLLOWS))  # fmt: skip
    return made


def _skips(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """What a trainer does with an update that holds a sample that is not finite."""
    if len(evidence.poisoned) < 2 or {one.name for one in found} & {*AS_A_WHOLE}:
        return []
    moved = [
        distance(joined(r.updates[0].after, r.start), joined(r.updates[0].before, r.start)) > 0
        for r in evidence.poisoned
    ]
    whole, split = (record.updates[0] for record in evidence.poisoned)
    if not moved[0] and moved[1]:
        seen = f"one sample is infinite: one batch is skipped, {evidence.poisoned[1].layout} moves the weights"
        return [cause("step-on-skip", seen, "skipped step")]
    back = any(value < 0 for value in whole.change.get("scaler", {}).values())
    if back and moved[0] and whole.finite is split.finite is False:
        return [
            cause(
                "step-on-skip",
                "the scaler backed off, and the weights took the gradient that is not finite",
                "skipped step",
            )
        ]
    return []


def _reported(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """A reported loss that moves otherwise than what is differentiated."""
    if not differs(components, "loss as reported"):
        return []
    base = evidence.reference.updates[0]
    if base.reported is None or any(split.updates[0].reported is None for split in evidence.splits):
        return []
    said = [
        (split.updates[0].reported or 0.0) / base.reported if base.reported else float("nan")
        for split in evidence.splits
    ]
    trained = [
        _trained(split.updates[0]) / _trained(base) if _trained(base) else float("nan") for split in evidence.splits
    ]
    if all(abs(s - t) <= 1e-6 * abs(t) for s, t in zip(said, trained, strict=True)):
        return []  # the gradient's own cause
    if all(abs(s - 1) <= 1e-9 for s in said):
        return []  # later updates differ only
    parts = [evidence.parts(i) for i in range(len(said))]
    apart = [s / t if t else float("nan") for s, t in zip(said, trained, strict=True)]
    if differs(components, *GRADIENT) and per_parts(apart, parts) is not None:
        return []  # reported as it should be: what is trained is the gradient's own cause
    if any(t != t for t in trained) and differs(components, *GRADIENT):
        return []  # no loss was seen: the gradient says it
    power = per_parts(said, parts)
    words = {1: "grows with the number of parts: shares are added, not averaged", -1: "falls with it: divided twice"}
    last = [_last(split.updates[0]) for split in evidence.splits]
    shown, true = (", ".join(f"{one:.4g}" for one in row) for row in (said, trained))
    seen = f"reported {shown} times that of one batch, trained {true}"
    if power in words:
        seen += f"; it {words[power]}"
    elif all(
        value is not None and _multiple(split.updates[0].reported, value)
        for split, value in zip(evidence.splits, last, strict=True)
    ):
        seen += "; it is the last micro-batch's"
    return [cause("loss-reported", seen, "loss as reported")]


def _trained(update: Update) -> float:
    return sum(one.loss for one in update.passes) if update.passes else float("nan")


def _last(update: Update) -> float | None:
    return update.passes[-1].loss if update.passes else None


def _multiple(value: float | None, of: float) -> bool:
    ratio = value / of if value is not None and of else float("nan")
    return abs(ratio - round(ratio)) < 1e-9 and round(ratio) > 0


def calls(evidence: Evidence) -> Component:
    """Return how often the optimizer was called, as a component.

    Args:
        evidence: what was run.

    Returns:
        IDENTICAL where every split made the reference's number of steps.
    """
    base, steps = _total_steps(evidence.reference), [_total_steps(split) for split in evidence.splits]
    if all(one == base for one in steps):
        return Component("optimizer steps", IDENTICAL)
    reason = f"{steps} in {len(evidence.reference.updates)} updates instead of {base}"
    return Component("optimizer steps", DIFFERENT, ratio=max(steps) / base if base else None, reason=reason)


def modes(evidence: Evidence) -> Component | None:
    """Return a component that tells of modules in training mode for other shares of their forward passes.

    Args:
        evidence: what was run.

    Returns:
        None where every split has the reference's shares.
    """
    base = evidence.reference.updates[0].training
    for place, split in enumerate(evidence.splits):
        for name, (on, passes) in split.updates[0].training.items():
            was, whole = base.get(name, (on, passes))
            if on * whole != was * passes:
                seen = f"`{name}` is in training mode in {on} of {passes} forward passes at {evidence.name(place)}"
                return Component("training mode", DIFFERENT, where=evidence.name(place),
                                 reason=f"{seen}, in {was} of {whole} with one batch")  # fmt: skip
    return None


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


def _teaches(evidence: Evidence) -> bool:
    return any(update.calls for update in evidence.reference.updates)


def _averages(evidence: Evidence, components: Components, found: list[Cause]) -> list[Cause]:
    """Averages that move more often than the weights, or take buffers at another moment."""
    made: list[Cause] = []
    paths = _differing(evidence, "average") or list(evidence.reference.updates[-1].tensors.get("average", {}))
    base, more = most_moves(evidence.reference, paths), [most_moves(s, paths) for s in evidence.splits]
    kind = "teacher-per-part" if _teaches(evidence) else "average-per-part"
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


def _buffers(evidence: Evidence, components: Components) -> list[Cause]:
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
