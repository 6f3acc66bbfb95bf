"""Why a gradient is another one: how much each sample weighs in it, and where it is clipped."""

import math

import torch

from isobatch.split.cause import GRADIENT, Cause, cause
from isobatch.split.compare import distance, gradient, parallel
from isobatch.split.evidence import (
    Evidence,
    Weights,
    first_meeting,
    per_parts,
    share_of,
    state_between,
    tampered,
    weights,
)
from isobatch.split.layouts import Record
from isobatch.split.sketch import Named, joined

CLOSE = 1e-6


def gradient_causes(evidence: Evidence) -> list[Cause]:
    """Return why the gradient of a split is another one, where clipping does nothing.

    Args:
        evidence: with a gradient that differs.

    Returns:
        At least one cause.
    """
    found: dict[str, Cause] = {}
    for one in evidence.optimizers():
        for made in _causes(one):
            found.setdefault(made.name, made)
    return list(found.values())


def _causes(evidence: Evidence) -> list[Cause]:
    places = range(len(evidence.splits))
    alone = [place for place in places if evidence.processes[place] == 1 and _off(evidence, place)]
    many = [place for place in places if evidence.processes[place] > 1 and _off(evidence, place)]
    found = _of(evidence, alone, over_processes=False) if alone else []
    if many and not alone:
        found += _of(evidence, many, over_processes=True)
    return found


def _off(evidence: Evidence, place: int) -> bool:
    whole, split = evidence.straight(place)
    like = evidence.gradient(whole)
    return distance(joined(evidence.gradient(split), like), joined(like, like)) > evidence.tolerance


def _of(evidence: Evidence, places: list[int], *, over_processes: bool) -> list[Cause]:
    factors = []
    for place in places:
        whole, split = evidence.straight(place)
        gaps = tampered(split.updates[0], evidence.gradient(whole), 10 * evidence.tolerance)
        if "scaled" in gaps and evidence.processes[place] == 1:
            seen = f"{gaps.count('scaled')} times at {evidence.name(place)}, where clipping does nothing"
            return [cause("unscale-per-part", seen, *GRADIENT)]
        whole, split = evidence.straight(place)
        like = evidence.gradient(whole)
        factor, left = parallel(joined(evidence.gradient(split), like), joined(like, like))
        factors.append(factor if left <= 10 * evidence.tolerance else None)
    straight = [one for one in factors if one is not None]
    if len(straight) == len(factors):
        return [_multiple(evidence, places, straight, over_processes)]
    for place in places:
        if made := _penalty(evidence, place) or _between(evidence, place):
            return [made]
    crooked = [place for place, factor in zip(places, factors, strict=True) if factor is None]
    found = [weights(evidence, place) for place in crooked]
    known = [(p, w) for p, w in zip(crooked, found, strict=True) if w is not None and w.residual < evidence.close]
    if len(known) == len(crooked):
        return _weighted(evidence, known, over_processes)
    return _unweighted(evidence, crooked)


def _multiple(evidence: Evidence, places: list[int], factors: list[float], over_processes: bool) -> Cause:
    """The gradient is a multiple of the whole batch's."""
    parts = [evidence.processes[p] if over_processes else evidence.parts(p) for p in places]
    seen = "gradient is " + ", ".join(
        f"{f:.6g} times at {evidence.name(p)}" for f, p in zip(factors, places, strict=True)
    )
    power = per_parts(factors, parts, evidence.close)
    summed = evidence.sums is not None and abs(evidence.sums - 2) < 1e-3
    if power in (1, 2):
        once = all(len(evidence.splits[p].updates[0].passes) == 1 for p in places)
        name = "sum-instead-of-mean" if once or over_processes else "missing-division"
        return cause(name, f"{seen}: k times the gradient at k parts", *GRADIENT)
    if power in (-1, -2):
        name = "sum-instead-of-mean" if summed else "doubled-division"
        more = "; the loss is a sum: it doubles with the samples" if summed else ""
        return cause(name, f"{seen}: 1/k of the gradient at k parts{more}", *GRADIENT)
    if all(abs(f) < CLOSE for f in factors):
        return cause("gradient-lost", f"{seen}: nothing is left", *GRADIENT)
    if all(evidence.splits[p].layout.batch % evidence.parts(p) for p in places):
        more = "equal parts agree, so it divides by a number of parts or rows that an uneven split does not have"
        return cause("mean-of-means", f"{seen}; {more}", *GRADIENT)
    steady = max(factors) - min(factors) <= CLOSE * abs(factors[0])
    rows = factors[0] / evidence.reference.layout.batch
    if steady and rows > 0.9 and abs(rows - round(rows)) < CLOSE * rows:
        more = "however many parts: a multiple of the batch's samples"
        return cause("sum-instead-of-mean", f"{seen}, {more}", *GRADIENT)
    lost = _only_last(evidence, places)
    return lost or cause("unexplained", seen, *GRADIENT, confidence="unknown")


def _only_last(evidence: Evidence, places: list[int]) -> Cause | None:
    """The gradient is that of the last micro-batch alone."""
    for place in places:
        _, split = evidence.straight(place)
        passes = split.updates[0].passes
        like = evidence.gradient(split)
        if len(passes) < 2 or parallel(joined(like, like), joined(passes[-1].gives, like))[1] > CLOSE:
            return None
    return cause("gradient-lost", "the gradient at the step is the last micro-batch's alone", *GRADIENT)


def _penalty(evidence: Evidence, place: int) -> Cause | None:
    """The difference is a multiple of the weights: a penalty that is added once a micro-batch."""
    whole, split = evidence.straight(place)
    like = evidence.gradient(whole)
    gap = joined(evidence.gradient(split), like) - joined(like, like)
    gap /= whole.layout.amplify
    start = joined(whole.updates[0].before, like)
    factor = share_of(gap, start, 1e-5)
    if factor is None or int((gap.abs() > 1e-6 * gap.abs().max()).sum()) < 0.2 * len(gap):
        return None
    times = evidence.parts(place) - 1
    each = f"{factor / times:.4g} for each part more"
    seen = f"gradient at {evidence.name(place)} has {factor:.4g} times the weights in it, {each}"
    return cause("decay-per-part", seen, *GRADIENT)


def _between(evidence: Evidence, place: int) -> Cause | None:
    """Buffers of the model move with every forward pass: the first part's outputs agree, those after it do not."""
    whole, split = evidence.reference.updates[0], evidence.splits[place].updates[0]
    more = [path for path, count in split.moves.items()
            if path.startswith("buffers:") and count > whole.moves.get(path, 0)]  # fmt: skip
    name = state_between(whole, split, evidence.tolerance) if more else None
    if name is None:
        return None
    moved = f"{more[0].removeprefix('buffers:')} moved {split.moves[more[0]]} times in an update"
    seen = f"{moved} at {evidence.name(place)}; what `{name}` returns agrees in the first micro-batch only"
    return cause("centre-per-part", seen, *GRADIENT, "buffers of the model", "average's buffers")


def _weighted(evidence: Evidence, known: list[tuple[int, Weights]], over_processes: bool) -> list[Cause]:
    """Samples weigh otherwise than in the whole batch."""
    totals, shares, means = [], [], []
    for place, found in known:
        factors = found.factors
        lost = [i for i in range(len(factors)) if abs(float(factors[i])) < CLOSE]
        if lost:
            return [_lost(evidence, place, lost, over_processes)]
        kinds = factors / factors.abs().min()
        whole_numbers = bool(((kinds - kinds.round()).abs() < 1e-6).all()) and float(kinds.max()) > 1.5
        groups = [group for group in found.groups if group]
        rows = [factors[group] for group in groups]
        even = all(float((row - row.mean()).abs().max()) < 10 * evidence.close * abs(float(row.mean())) for row in rows)
        covered = sorted(i for group in groups for i in group) == list(range(len(factors)))
        if not even or not covered:
            if whole_numbers and float(abs(factors.min() - 1)) < CLOSE:
                return [cause("samples-lost", f"some samples count {float(kinds.max()):.0f} times", *GRADIENT)]
            words = ", ".join(f"{float(f):.4g}" for f in factors)
            return [cause("unexplained", f"samples weigh {words} times as in one batch at {evidence.name(place)}",
                          *GRADIENT, confidence="unknown")]  # fmt: skip
        # part j of n_j weighs f N / (k n_j); the n_j add up to N, the mean of the reciprocals is 1 / f
        totals.append(len(found.groups) / float(torch.stack([1 / row.mean() for row in rows]).sum()))
        # a mean of its own weights, times n_j / N: the n_j weigh in the mean
        held = [count for group, count in zip(found.groups, found.rows, strict=True) if group]
        shares.append(sum(found.rows) / float(sum(count / row.mean() for count, row in zip(held, rows, strict=True))))
        least, most = float(factors.min()), float(factors.max())
        means.append(f"{evidence.name(place)}: samples weigh {least:.4g} to {most:.4g} times as in one batch")
    parts = [evidence.processes[p] if over_processes else evidence.parts(p) for p, _ in known]
    seen = "; ".join(means)
    if all(float((found.factors - 1).abs().max()) < 10 * evidence.close for _, found in known):
        return [cause("unexplained", f"{seen}, which is too little to tell", *GRADIENT, confidence="unknown")]
    if all(abs(one - 1) < 10 * evidence.close for one in shares):
        totals = shares
    plain = all(abs(total - 1) < 10 * evidence.close for total in totals)
    if not plain and per_parts(totals, parts, 1e-4) is None:
        return [cause("unexplained", seen, *GRADIENT, confidence="unknown")]
    result = cause("mean-of-means", f"{seen}; every micro-batch the same", *GRADIENT)
    together = "together they weigh " + ", ".join(f"{one:.4g}" for one in totals)
    once = over_processes or all(len(evidence.splits[p].updates[0].passes) == 1 for p, _ in known)
    return [*_also(totals, parts, together, once=once), result]


def _lost(evidence: Evidence, place: int, lost: list[int], over_processes: bool) -> Cause:
    """Some samples do not weigh at all."""
    split = evidence.splits[place]
    seen = f"{len(lost)} of {split.layout.batch} samples have no weight in the gradient at {evidence.name(place)}"
    if over_processes:
        return cause("processes-apart", f"{seen}; weights of processes differ by {split.drift:.3g}", *GRADIENT)
    rows = len(split.updates[0].rows)
    if rows and rows < len(evidence.reference.updates[0].rows):
        return cause("samples-lost", f"{seen}; they never reach the model", *GRADIENT)
    return cause("gradient-lost", f"{seen}; they reach the model", *GRADIENT)


def _unweighted(evidence: Evidence, places: list[int]) -> list[Cause]:
    """The whole batch's gradient is no weighted sum of the samples' own."""
    if lost := _only_last(evidence, places):
        return [lost]
    whole = evidence.reference.updates[0]
    for place in places:
        if evidence.processes[place] > 1 and evidence.splits[place].drift > CLOSE:
            return [
                cause(
                    "processes-apart", f"weights of processes differ by {evidence.splits[place].drift:.3g}", *GRADIENT
                )
            ]
        met = first_meeting(whole, evidence.splits[place].updates[0], evidence.close)
        if met is not None:
            name, written = met
            more = "and writes buffers in its forward pass" if written else "with no buffer of its own"
            seen = f"what `{name}` returns for a sample depends on the samples beside it, {more}"
            return [
                cause(
                    "batch-norm",
                    seen,
                    *GRADIENT,
                    "buffers of the model",
                    "average's buffers",
                    confidence="measured" if written else "derived",
                )
            ]
    if all(place in evidence.means for place in places) and (made := _by_means(evidence, places)):
        return made
    own = _own_parts(evidence, places)
    if own is not None:
        return own
    size = sum(len(one) for one in evidence.gradient(evidence.reference).values())
    if size < evidence.reference.layout.batch:
        seen = f"{size} parameters are too few to tell the samples of a batch apart; check a larger model"
        return [cause("unexplained", seen, *GRADIENT, confidence="unknown")]
    seen = "each sample's output is the same, the gradient is no weighted sum of the samples' own"
    return [cause("in-batch-loss", seen, *GRADIENT, confidence="derived")]


def _by_means(evidence: Evidence, places: list[int]) -> list[Cause] | None:
    """Whether the gradient is a multiple of the sum of its parts' own gradients, each taken as a batch of its own."""
    factors = []
    for place in places:
        whole, split = evidence.straight(place)
        like = evidence.gradient(whole)
        own = torch.stack([joined(one, like) for one in evidence.means[place]], 1)
        factor, left = parallel(joined(evidence.gradient(split), like), own.mean(1))
        found = torch.linalg.lstsq(own, joined(like, like)[:, None], driver="gelsd").solution[:, 0]
        rest = distance(own @ found, joined(like, like))
        # the whole batch's gradient must be a weighted mean of its parts' own, or its samples are coupled
        if max(left, rest, abs(float(found.sum()) - 1)) > evidence.close or len(own) <= own.shape[1]:
            return None
        factors.append(factor)
    seen = (
        "gradient is " + ", ".join(f"{f:.4g}" for f in factors) + " times the mean of the micro-batches' own gradients"
    )
    return [
        *_also(factors, [evidence.parts(p) for p in places], seen, once=False),
        cause("mean-of-means", seen, *GRADIENT),
    ]


def _also(factors: list[float], parts: list[int], seen: str, *, once: bool) -> list[Cause]:
    """The cause of a factor beside a mean of means."""
    power = per_parts(factors, parts, 1e-4) if any(abs(factor - 1) > 1e-5 for factor in factors) else None
    if power in (1, 2):
        return [cause("sum-instead-of-mean" if once else "missing-division", seen, *GRADIENT)]
    return [cause("doubled-division", seen, *GRADIENT)] if power in (-1, -2) else []


def _own_parts(evidence: Evidence, places: list[int]) -> list[Cause] | None:
    """Where samples cannot be taken one by one: weights of the split's own micro-batches."""
    for place in places:
        whole, split = evidence.straight(place)
        like = evidence.gradient(whole)
        columns = [joined(one.gives, like) for one in split.updates[0].passes]
        if len(columns) < 2 or evidence.samples:
            return None
        basis, target = torch.stack(columns, 1), joined(like, like)
        found = torch.linalg.lstsq(basis, target[:, None], driver="gelsd").solution[:, 0]
        left = float((basis @ found - target).norm()) / float(target.norm())
        if left > evidence.close:
            return None
    return [cause("mean-of-means", "micro-batches weigh otherwise than their samples do in one batch", *GRADIENT,
                  confidence="derived")]  # fmt: skip


def clipping_causes(evidence: Evidence) -> list[Cause]:
    """Return why a gradient is another one where clipping is active.

    Args:
        evidence: with gradients made large and small.

    Returns:
        No causes where nothing is clipped, or the clipped gradients agree.
    """
    like = evidence.gradient(evidence.amplified[0])
    loud, quiet = evidence.amplified, (evidence.linear[0], evidence.linear[-1])
    whole, split = (joined(evidence.gradient(one), like) for one in loud)
    base, part = (joined(evidence.gradient(one), like) for one in quiet)
    limit = 10 * evidence.tolerance
    _, bent = parallel(whole, base)
    change = float(whole.norm()) / (float(base.norm()) or 1.0) / (loud[0].layout.amplify / quiet[0].layout.amplify)
    if bent <= limit and abs(change - 1) <= limit:
        return []  # nothing is clipped
    if distance(split, whole) <= limit:
        return []
    same = distance(part, base) <= limit
    gaps = tampered(loud[1].updates[0], like, limit)
    between = gaps.count("scaled") + (gaps.count("changed") if bent > limit else 0)
    _, left = parallel(split, whole if same else part)
    size = _length(loud[1], like) / (_length(loud[0], like) or 1.0)
    if not same and bent <= limit and left <= limit and abs(size - 1) <= limit:
        return []  # clipped once, to the same length; what differs was there before
    clips = [max(u.clips for u in record.updates) for record in loud]
    parts = loud[1].layout.parts
    if left <= limit and not between and bent <= limit:
        seen = f"where clipping is active the gradient at {loud[1].layout} is {size:.4g} times that of one batch"
        return [cause("clip-before-division", seen, *GRADIENT)]
    calls = f", clipping called {clips[1]} times instead of {clips[0]}" if clips[1] > clips[0] else ""
    seen = f"with {parts} parts the clipped gradient is no multiple of the whole batch's{calls}"
    return [cause("clip-per-part", seen, *GRADIENT)]


def _length(record: Record, like: Named) -> float:
    norms = record.updates[0].norms
    return (
        math.hypot(*(norms.get(name, 0.0) for name in like)) if norms else float(joined(gradient(record), like).norm())
    )
