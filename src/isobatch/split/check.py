"""The check: the same samples in one batch and in parts, component by component, with the cause named."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from isobatch.errors import InputError
from isobatch.split.cause import GRADIENT
from isobatch.split.causes import calls, early_averages, find, modes
from isobatch.split.compare import (
    DIFFERENT,
    EQUIVALENT,
    IDENTICAL,
    NOT_COMPARABLE,
    Component,
    Floor,
    Vector,
    contributed,
    distance,
    gradient,
    parallel,
    unsure_elements,
    vectors,
)
from isobatch.split.evidence import Evidence, named, weights
from isobatch.split.layouts import EPS, Layout, Record, run_layout
from isobatch.split.result import SplitReport
from isobatch.split.sketch import Named, joined

Runner = Callable[[list[Layout]], list[Record]]
LOUD, LOW, RAGGED, UPDATES = 1e6, 1e-6, 3, 3


def check(run: Runner, parts: Sequence[int], batch: int, worlds: dict[int, Runner], double: bool | None) -> SplitReport:
    """Run every layout that a verdict needs, and judge.

    Args:
        run: makes layouts on one process.
        parts: numbers of equal parts.
        batch: samples an update.
        worlds: number of processes -> what makes layouts on them.
        double: float64, the trainer's own types, or None for float64 where it can be.

    Returns:
        The report.
    """
    began = time.perf_counter()
    session = Session(run, batch, double)
    splits = session.splits(parts)
    processes = [1] * len(splits)
    for count, world in worlds.items():
        base = session.base.but(quiet=session.quiet)
        splits += world([base, *[base.but(parts=p) for p in sorted(parts) if batch % (count * p) == 0][:1]])
        processes += [count] * (len(splits) - len(processes))
    good = [i for i, one in enumerate(splits) if not one.failed]
    if not good:
        raise InputError(f"no split could be made: {splits[0].failed}")
    failed = [(named(one.layout, count), one) for one, count in zip(splits, processes, strict=True) if one.failed]
    session.notes += [f"{name}: {one.failed}" for name, one in failed]
    evidence = Evidence(session.reference, [splits[i] for i in good], [processes[i] for i in good])
    report = session.judge(evidence, began)
    # uneven parts are tried unasked, and a trainer may refuse them
    report.components += [Component(name, NOT_COMPARABLE, reason=one.failed)
                          for name, one in failed if not batch % one.layout.parts]  # fmt: skip
    return report


class Session:
    """The runs of one check.

    Args:
        run: makes layouts.
        batch: samples an update.
        double: as in check.
    """

    def __init__(self, run: Runner, batch: int, double: bool | None):
        self.run, self.notes = run, list[str]()
        self.base = Layout(batch, updates=UPDATES, double=double is not False)
        self.reference = self._first(double)
        self.quiet = False
        self.natural: list[Record] = []
        again, counted = run([self.base, self.base.but(updates=1, counted=True)])
        self.again, self.coarsest = again, max(counted.coarsest, _eps(self.reference))
        self.drawn = sorted({name for u in self.reference.updates for name in u.drew})
        self.unheld = sorted(({*self.drawn} - {"torch", "cuda"}) | {*counted.loose})
        self._same_start(again)
        if counted.operations or self.drawn:
            self.quiet = True
            self.natural.append(self.reference)
            self.reference = self._ran(self.base.but(quiet=True))

    def _first(self, double: bool | None) -> Record:
        record = self.run([self.base])[0]
        if record.failed and double is None:
            self.base = self.base.but(double=False)
            second = self.run([self.base])[0]
            if not second.failed:
                self.notes.append(f"in the trainer's own types: float64 is not possible ({record.failed})")
            record = second if not second.failed else record
        if record.failed:
            raise InputError(f"the update of one whole batch raised {record.failed}")
        if not record.updates or not record.updates[0].passes:
            raise InputError("no backward pass reached the model's parameters; is `model` the one that update trains?")
        first, last = record.updates[0], record.updates[-1]
        if not all(one.finite for one in record.updates):
            raise InputError("one whole batch makes weights that are not finite; look at its data and its loss first")
        given = gradient(record)
        if not any(bool(one.any()) for one in given.values()):
            way = "its gradient is zero where the optimizer steps; is zero_grad called before the step?"
            none = "no optimizer step is made and no weight moves: it is left out, or a gradient scaler skips it"
            raise InputError(f"one whole batch cannot be compared: {way if first.stepped else none}")
        if distance(joined(last.after, first.before), joined(first.before, first.before)) == 0:
            raise InputError("three updates of one whole batch move no weight; is the learning rate 0?")
        return record

    def _ran(self, layout: Layout) -> Record:
        record = self.run([layout])[0]
        if record.failed:
            raise InputError(f"the update raised {record.failed}")
        return record

    def _same_start(self, again: Record) -> None:
        for what, one, other in (
            ("weights", again.start, self.reference.start),
            ("samples", again.data, self.reference.data),
        ):
            if distance(joined(one, other), joined(other, other)) > 0 or one.keys() != other.keys():
                raise InputError(
                    f"make gives other {what} each time, so nothing can be compared; seed what they are drawn from"
                )

    def splits(self, parts: Sequence[int]) -> list[Record]:
        """Run the splits.

        Args:
            parts: numbers of equal parts.

        Returns:
            Their records, uneven parts last.
        """
        base = self.base.but(quiet=self.quiet)
        numbers, batch = sorted(set(parts)), self.base.batch
        if batch % RAGGED:
            if -(-batch // -(-batch // RAGGED)) == RAGGED:
                numbers = sorted({*numbers, RAGGED})
            else:  # loaders cut such a batch into fewer parts
                self.notes.append(f"no uneven parts of {batch}; a --batch-size of 8 or more has them")
        records = self.run([base.but(parts=number) for number in numbers])
        if self.natural:
            self.natural += self.run([self.base.but(parts=max(parts))])
        return sorted(records, key=lambda record: bool(record.layout.batch % record.layout.parts))

    def judge(self, evidence: Evidence, began: float) -> SplitReport:
        """Compare, find causes, and report.

        Args:
            evidence: reference and splits.
            began: when the check began.

        Returns:
            The report.
        """
        base = self.base.but(quiet=self.quiet)
        small = 4 * (EPS if base.double else 2.0**-23)
        nudged = self.run([base.but(nudge=small), base.but(nudge=-small), base.but(turned=True)])
        others = [one for one in nudged if not one.failed]
        floor = Floor(
            self.reference, [one for one in others if not one.layout.turned or self._additive(one)], self.coarsest
        )
        floor.unsure = unsure_elements([self.reference, *others, *evidence.splits], self.reference, self.coarsest)
        self._coarse(floor)
        steady = self._steady(floor)
        components = {
            name: self._compare(name, vector, floor, evidence, steady) for name, vector in vectors(floor).items()
        }
        components = {name: one for name, one in components.items() if one is not None}
        evidence.tolerance = components["gradient at the step"].tolerance
        steps = calls(evidence)
        components[steps.name] = steps
        if (mode := modes(evidence)) is not None:
            components[mode.name] = mode
        if self.coarsest > EPS and "average" in components and early_averages(evidence):
            # in three updates an average moves less than a coarse type can tell
            components["average"].verdict = DIFFERENT
            components["average"].reason = "it moves more often than once an update"
        if not steady:
            return self._report(components, [_unsteady()], evidence, began)
        if self._loose(evidence):
            for one in components.values():
                if one.verdict == DIFFERENT:
                    one.verdict = NOT_COMPARABLE
                    one.reason = f"random numbers of {', '.join(self.unheld)} cannot be held still; use rand of torch"
            return self._report(components, [], evidence, began)
        self._probe(evidence, components)
        causes = find(evidence, components)
        self._amend(components, causes, evidence)
        return self._report(components, causes, evidence, began)

    def _coarse(self, floor: Floor) -> None:
        """Say what a coarse type hides."""
        if self.coarsest <= EPS:
            return
        name = next((str(one).removeprefix("torch.") for one in (torch.float32, torch.float16, torch.bfloat16)
                     if torch.finfo(one).eps >= self.coarsest), "a coarse type")  # fmt: skip
        hidden = sum(int(one.sum()) for one in floor.unsure.values())
        share = hidden / sum(len(one) for one in self.reference.start.values())
        limit = floor.tolerance(vectors(floor)["gradient at the step"])
        if limit >= 0.01:
            self.notes.append(f"something computes in {name}: differences of less than {limit:.0%} are not seen")
        if share > 0.5:
            small = f"{share:.0%} of the gradient's elements are too small for {name} to tell their sign"
            self.notes.append(f"{small}; their weights, moments and averages are not compared")

    def _additive(self, turned: Record) -> bool:
        like = gradient(self.reference)
        return distance(joined(gradient(turned), like), joined(like, like)) < 1e-3

    def _steady(self, floor: Floor) -> bool:
        """Whether the same update twice gives the same weights."""
        base = self.natural[0] if self.natural else self.reference
        limit = floor.tolerance(vectors(floor)["gradient at the step"])
        for one, other in zip(self.again.updates, base.updates, strict=False):
            if distance(joined(one.after, other.after), joined(other.after, other.after)) > limit:
                return False
        return True

    def _compare(self, name: str, vector: Vector, floor: Floor, evidence: Evidence, steady: bool) -> Component | None:
        base = vector(self.reference, self.reference)
        if base is None or not len(base):
            return None
        limit = floor.tolerance(vector)
        if bool(base.isnan().any()):
            return Component(name, NOT_COMPARABLE, reason="it is no number for one whole batch")
        if not bool(base.any()) and floor.hides(name):
            return Component(name, NOT_COMPARABLE, reason="no gradient is large enough for the type to tell its sign")
        worst = Component(name, IDENTICAL, 0.0, limit)
        for place, split in enumerate(evidence.splits):
            mine = vector(split, self.reference)
            if mine is None:
                return Component(name, NOT_COMPARABLE, reason=f"absent at {evidence.name(place)}")
            gap = distance(mine, base)
            if gap > worst.distance:
                factor, left = parallel(mine, base) if mine.shape == base.shape else (0.0, 1.0)
                worst = Component(name, IDENTICAL, gap, limit, factor if left < 1e-3 else None, evidence.name(place))
        if worst.distance > limit:
            worst.verdict = DIFFERENT
        if not steady and worst.distance > limit:
            worst.verdict, worst.reason = NOT_COMPARABLE, "the same update twice gives two results"
        return worst

    def _probe(self, evidence: Evidence, components: dict[str, Component]) -> None:
        """Run what tells causes apart: large, small and infinite gradients, single samples."""
        base = self.base.but(quiet=self.quiet, updates=1)
        alone = [r.layout.parts for r, p in zip(evidence.splits, evidence.processes, strict=True) if p == 1]
        if not alone:
            return
        # the last of `linear` and of `amplified` is the split into most equal parts
        equal = [p for p in alone if base.batch % p == 0] or alone
        evidence.natural = [one for one in self.natural if not one.failed]
        loud = self.run([base.but(parts=p, amplify=LOUD) for p in (1, max(equal))])
        low = self.run([base.but(parts=p, amplify=LOW) for p in (1, *alone)])
        low.append(low[1 + alone.index(max(equal))])
        if self.reference.updates[0].stepped and not any(one.failed for one in (*loud, *low)):
            evidence.amplified, evidence.linear = loud, low
        bad = self.run([base.but(parts=p, poison=True) for p in (1, max(equal))])
        if not any(one.failed for one in bad):
            evidence.poisoned = bad
        if components["gradient at the step"].verdict == DIFFERENT or self._clipped_apart(evidence):
            evidence.samples = self._alone(base.but(amplify=LOW))
            evidence.sums = self._sums(base)
            evidence.means = self._means(evidence)
        if "other state" in components and components["other state"].verdict == DIFFERENT:
            evidence.influence = self._influence(evidence)
            if evidence.influence and not any(evidence.influence.values()):
                components["other state"].verdict = EQUIVALENT
                components["other state"].reason = "it differs, and has no effect on later weights"

    def _alone(self, base: Layout) -> list[Named]:
        """What each sample contributes: as many parts as samples, or batches of one."""
        one = self.run([base.but(parts=base.batch)])[0]
        if not one.failed and len(one.updates[0].passes) == base.batch:
            return _finite([each.gives for each in one.updates[0].passes])
        alone = self.run([base.but(batch=1, first=place) for place in range(base.batch)])
        if any(one.failed or not one.updates[0].passes for one in alone):
            return []
        several = len(self.reference.updates[0].stepped) > 1  # a pass may reach weights that another optimizer holds
        return _finite([gradient(one) if several else contributed(one.updates[0]) for one in alone])

    def _loose(self, evidence: Evidence) -> bool:
        """Whether random numbers that cannot be held still move the gradient."""
        if not self.unheld:
            return False
        other = self.run([self.base.but(quiet=True, seed=2, updates=1)])[0]
        like = gradient(self.reference)
        return other.failed != "" or distance(joined(gradient(other), like), joined(like, like)) > evidence.tolerance

    def _influence(self, evidence: Evidence) -> dict[str, bool]:
        """Path of other state that differs -> whether changing it changes later weights."""
        base, found = self.base.but(quiet=self.quiet), dict[str, bool]()
        last = self.reference.updates[-1]
        for path, one in list(last.tensors.get("other", {}).items())[:8]:
            others = [split.updates[-1].tensors.get("other", {}).get(path, one) for split in evidence.splits]
            if all(distance(other, one) <= evidence.tolerance for other in others):
                continue
            moved = self.run([base.but(disturb=path)])[0]
            if not moved.failed:
                gap = distance(joined(moved.updates[-1].after, last.after), joined(last.after, last.after))
                found[path] = gap > evidence.tolerance
        return found

    def _clipped_apart(self, evidence: Evidence) -> bool:
        if not evidence.linear:
            return False
        like = gradient(evidence.linear[0])
        return any(
            distance(joined(gradient(one), like), joined(like, like)) > evidence.tolerance
            for one in evidence.linear[1:]
        )

    def _means(self, evidence: Evidence) -> dict[int, list[Named]]:
        """Gradients of the parts as batches of their own, for splits whose samples cannot be told apart."""
        found: dict[int, list[Named]] = {}
        for place, split in enumerate(evidence.splits):
            if evidence.processes[place] > 1 or weights(evidence, place) is not None:
                continue
            sizes, start, means = split.updates[0].sizes, 0, list[Named]()
            if sum(sizes) != split.layout.batch:  # forward passes say nothing: as loaders cut a batch
                sizes = [len(part) for part in torch.arange(split.layout.batch).chunk(split.layout.parts)]
            for size in sizes:
                one = self.run([split.layout.but(batch=size, first=start, parts=1, updates=1, amplify=LOW)])[0]
                start += size
                means += [] if one.failed else _finite([gradient(one)])
            if len(means) == len(sizes):
                found[place] = means
        return found

    def _sums(self, base: Layout) -> float | None:
        twice, half = self.run([base.but(twice=True, amplify=LOW), base.but(batch=base.batch // 2, amplify=LOW)])
        if twice.failed or half.failed:
            return None
        like = gradient(half)
        factor, left = parallel(joined(gradient(twice), like), joined(like, like))
        return factor if left < 1e-6 else None

    def _amend(self, components: dict[str, Component], causes: list[Any], evidence: Evidence) -> None:
        """Add what only the probes or the natural random numbers show."""
        names = {one.name for one in causes}
        if names & {"clip-per-part", "clip-before-division"} or ("missing-division" in names):
            step = components["gradient at the step"]
            if step.verdict != DIFFERENT:
                step.verdict, step.reason = (
                    DIFFERENT,
                    "where clipping is active"
                    if names & {"clip-per-part", "clip-before-division"}
                    else "where clipping is not active",
                )
        elif causes and self._clipped_apart(evidence) and components["gradient at the step"].verdict != DIFFERENT:
            components["gradient at the step"].verdict = DIFFERENT
            components["gradient at the step"].reason = "where clipping is not active"
        if "step-on-skip" in names:
            components["skipped step"] = Component(
                "skipped step", DIFFERENT, reason="the update is skipped in one batch only"
            )
        if not self.quiet:
            return
        natural = [one for one in self.natural if not one.failed]
        same = True
        if len(natural) == 2:
            like = gradient(natural[0])
            same = distance(joined(gradient(natural[1]), like), joined(like, like)) <= evidence.tolerance
        words = "the same distribution, other random numbers (dropout and the like)"
        verdict = DIFFERENT if "noise-per-part" in names else (IDENTICAL if same else EQUIVALENT)
        components["randomness"] = Component("randomness", verdict, reason="" if verdict == IDENTICAL else words)
        if verdict == EQUIVALENT:
            for name in (*GRADIENT, "update", "loss as reported"):
                if name in components and components[name].verdict == IDENTICAL:
                    components[name].verdict, components[name].reason = EQUIVALENT, words

    def _taken_apart(self, split: Record) -> bool:
        """Whether anything but the number of parts tells a split from the whole batch."""
        whole, mine = self.reference.updates[0], split.updates[0]
        alone = bool(whole.sizes) and max(whole.sizes) == 1  # no parts are smaller than a pass for every sample
        return (
            alone
            or len(mine.passes) != len(whole.passes)
            or mine.sizes != whole.sizes
            or len(mine.stepped) != len(whole.stepped)
        )

    def _report(
        self, components: dict[str, Component], causes: list[Any], evidence: Evidence, began: float
    ) -> SplitReport:
        layouts = [evidence.name(place) for place in range(len(evidence.splits))]
        alone = [s for s, p in zip(evidence.splits, evidence.processes, strict=True) if p == 1]
        if alone and not any(self._taken_apart(s) for s in alone):
            text = "the number of parts changed nothing: every layout makes the same passes; does update use `parts`?"
            for one in components.values():
                if one.verdict in (IDENTICAL, EQUIVALENT):
                    one.verdict, one.reason = NOT_COMPARABLE, text
        types = "float64" if self.base.double else "own types"
        return SplitReport(list(components.values()), causes, layouts, self.base.batch, UPDATES, types, self.notes,
                           time.perf_counter() - began)  # fmt: skip


def _finite(gradients: list[Named]) -> list[Named]:
    """The gradients of samples, none where one alone has none (a deviation of one sample)."""
    return gradients if all(bool(one.isfinite().all()) for each in gradients for one in each.values()) else []


def _eps(record: Record) -> float:
    return max(torch.finfo(getattr(torch, u.dtype)).eps for u in record.updates) if record.updates else EPS


def _unsteady() -> Any:
    from isobatch.split.cause import cause

    return cause(
        "non-determinism", "one whole batch, twice from the same state and seeds, moves the weights differently"
    )


def runner(make: Callable[..., Any], seed: int) -> Runner:
    """Return what makes layouts in this process.

    Args:
        make: makes the trainer.
        seed: under which it is made.

    Returns:
        A function of layouts.
    """
    return lambda layouts: [run_layout(make, layout, seed) for layout in layouts]
