"""One step that is going to be measured: its hooks, and what came of them; DDP's buckets as chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.errors import InputError
from isobatch.gradients import PassNorms, Tap, Watch, local
from isobatch.noise.capture import Declared, Mode, Passes, Rows
from isobatch.noise.columns import Columns
from isobatch.noise.geometry import Geometry
from isobatch.noise.pace import Stopwatch
from isobatch.noise.record import Entry, Found, Record
from isobatch.noise.rows import Owner, trainable_part

ONE_CHUNK = (
    "only one chunk a step, so nothing to compare: accumulate micro-batches, train on several ranks, use noise.halves, "
    "or measure rows of layers that are known"
)
BucketHook = Callable[[Any, dist.GradBucket], torch.futures.Future[Tensor]]
CLEARED = "gradients were cleared between two backward passes of one step; call noise.discard() for a step not taken"
USED_OTHERWISE = (
    "no layer was used once in each backward pass, on the batch's own rows (torch.compile passes layers by); use "
    "noise.halves or accumulate micro-batches"
)
OTHER_SET = "other parameters need gradients than when this step was begun; it is left out"
UNLIKE = "FSDP2 reduced now one pass and now several at once; declare every pass by noise.chunk(samples)"
NO_PASS = "no backward pass was seen between two calls of update()"


@dataclass(frozen=True)
class Setup:
    """What all measured steps share.

    Args:
        tap: declares what backward passes hold.
        columns: which parameters count towards what.
        geometry: how norms are taken.
        declared: what the present backward pass holds.
        group: ranks whose gradients are averaged; None for one process.
        rows: rows a backward pass that are looked at.
        mode: which chunks are looked at.
        layers: whose rows can be told apart.
        by_hand: whether ranks are averaged by hand, so that gradients change between backward and update.
    """

    tap: Tap
    columns: Columns
    geometry: Geometry
    declared: Declared
    group: dist.ProcessGroup | None
    rows: int
    mode: Mode
    layers: list[Owner]
    by_hand: bool = False


class Measurement(NamedTuple):
    """What came of a measured step.

    Args:
        found: moments on the device; None where there are none.
        reason: why there are none.
        mode: what to look at next time.
        trusted: by parameter, which ones rows can be believed for; None where no check was made.
        coverage: share of the trainable parameters that was looked at, before trust.
        record: what was looked at, and how.
    """

    found: Found | None
    reason: str
    mode: Mode
    trusted: dict[Tensor, Tensor] | None
    coverage: float
    record: Record | None = None


@final
class MeasuredStep:
    """The hooks of one step.

    Args:
        setup: what all measured steps share.
        mode: what to look at; "auto" looks at chunks and rows, and keeps what there is.
        turn: counts measurements.
        trusted: as in Measurement; None makes a check where rows are looked at.
        expected: backward passes of a step, 0 where that is not known yet.
    """

    def __init__(self, setup: Setup, mode: Mode, turn: int, trusted: dict[Tensor, Tensor] | None, *, expected: int = 0):
        self.setup, self.mode = setup, mode
        self.watch = Stopwatch(local(next(setup.columns.model.parameters())).device)
        columns, geometry, declared = setup.columns, setup.geometry, setup.declared
        trainable = columns.trainable()
        self._set = trainable
        self._trainable = sum(p.numel() for p in trainable)
        self.rows: Rows | None = None
        self._watch: Watch | None = None
        # of a sharded gradient each rank has the norm of its part only
        comparable = not (setup.by_hand or mode == "buckets" or columns.shards)
        norms = PassNorms(trainable, expected=expected, watch=self.watch) if comparable else None
        with self.watch:
            if mode in ("rows", "norms") or (mode == "auto" and setup.group is None and not columns.shards):
                layers = [layer for layer in map(trainable_part, setup.layers) if layer is not None]
                covered = [p for layer in layers for p in layer.parameters.values()]
                record = Record(columns, geometry, covered, trusted, norms)
                if layers or mode != "auto":
                    self.rows = Rows(
                        record,
                        columns.model,
                        layers,
                        declared,
                        self.watch,
                        few=setup.rows,
                        turn=turn,
                        check=trusted is None,
                        enough=self._begun if mode == "auto" else None,
                    )
            take = {"auto": "all", "chunks": "all", "prefix": "first"}.get(mode, "none")
            everything = Record(columns, geometry, trainable, norms=norms)
            self.record = self.rows.record if self.rows and take == "none" else everything
            self.passes = Passes(self.record, declared, self.watch, take)  # ty: ignore[invalid-argument-type]
            if self.rows is not None:
                self.passes.checks = [self.record.check, self.rows.record.check][: 1 if take == "none" else 2]
                self.passes.sums = {} if trusted is None else None
            every = take != "none" or self.passes.sums is not None
            if mode != "buckets":
                chosen = [p for p in trainable if every or any(p in check for check in self.passes.checks)]
                self._watch = Watch(self.passes, setup.tap)
                self._watch.add(chosen)

    @property
    def backwards(self) -> int:
        """Backward passes of this step at whose end norms could be taken; 0 where none are."""
        return 0 if self.record.norms is None else self.record.norms.passes

    def remove(self) -> None:
        """Take all hooks away."""
        if self._watch is not None:
            self._watch.remove()
        if self.rows is not None:
            self.rows.remove()

    def _begun(self) -> bool:
        """Whether a backward pass of this step was seen."""
        return bool(self.passes.units)

    def bucket(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Take this rank's gradients from a bucket before it is reduced.

        Args:
            parameters: of the bucket.
            gradients: theirs, summed over the backward passes of the step.
        """
        with self.watch:
            if not self.record.entries:
                self.passes.units.append(self.setup.declared.step or 1.0)
                self.record.entries.append(Entry([self.passes.units[0]]))
            found = {p: [gradient.detach()] for p, gradient in zip(parameters, gradients, strict=True)}
            for parameter, (gradient,) in found.items():
                if parameter in self.record.check:
                    self.record.check.add(parameter, gradient)
            with torch.no_grad():
                self.record.add(self.record.entries[0], found)

    def finish(self, samples: float) -> Measurement:
        """Return what the step gave.

        Args:
            samples: of the step, on all ranks.

        Returns:
            The outcome; the hooks are gone.

        Raises:
            InputError: chunks whose declared samples are not the step's.
        """
        with self.watch:
            self.remove()
            passes = len(self.passes.units)
            declared = self.setup.declared
            group = self.setup.group
            total = sum(self.passes.units)
            now = self.setup.columns.trainable()
            if len(now) != len(self._set) or any(a is not b for a, b in zip(now, self._set, strict=True)):
                return Measurement(None, OTHER_SET, self.mode, None, 0.0)
            if declared.counts and group is None and passes and abs(total - samples) > 1e-6 * samples:
                raise InputError(
                    f"update(samples={samples:g}) but the chunks of this step declared {total:g}; "
                    "count both in the same unit"
                )
            if passes == 0 and group is None:
                return Measurement(None, NO_PASS, self.mode, None, 0.0)
            if self.passes.cleared and group is None:
                return Measurement(None, CLEARED, self.mode, None, 0.0)
            if len(self.passes.merged) > 1:
                return Measurement(None, UNLIKE, self.mode, None, 0.0)
            several = passes > 1 or group is not None or bool(self.setup.columns.shards)
            mode = self.mode if self.setup.mode != "auto" else ("chunks" if several else "rows")
            if self.rows is not None and (self.mode != "auto" or not several):
                return self._by_rows(self.rows, samples, passes, mode)
            with torch.no_grad():
                self.passes.flush()
            self.record.total_units = total
            found = self.record.finish(samples, group)
            return Measurement(found, "" if found else ONE_CHUNK, mode, None, 1.0, self.record)

    def _by_rows(self, rows: Rows, samples: float, passes: int, mode: Mode) -> Measurement:
        with torch.no_grad():
            rows.settle(passes)
        record = rows.record
        trusted = rows.trust(self.passes.sums) if self.passes.sums is not None else None
        if trusted is not None:
            record.trusted = trusted
        if record.trusted is not None:
            record.covered = [p for p in record.covered if p in record.trusted]
        if self.setup.group is not None:
            everything = [p for layer in rows.layers for p in layer.parameters.values()]
            trusted = record.agree(everything, self.setup.group, abstain=passes == 0)
        if not record.covered:
            return Measurement(None, USED_OTHERWISE if record.entries else ONE_CHUNK, mode, None, 0.0)
        found = record.finish(samples, self.setup.group)
        coverage = sum(p.numel() for p in record.covered) / self._trainable
        return Measurement(found, "" if found else ONE_CHUNK, mode, trusted, coverage, record)


def reading_hook(
    take: Callable[[list[Tensor], list[Tensor]], None], group: dist.ProcessGroup | None, inner: BucketHook | None
) -> BucketHook:
    """Return a DDP communication hook that shows each bucket before it is reduced.

    Args:
        take: given the bucket's parameters and this rank's gradients.
        group: the ranks.
        inner: the hook that reduces; None averages over ranks, as DDP does by itself.

    Returns:
        The hook.
    """

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        take(bucket.parameters(), bucket.gradients())
        if inner is not None:
            return inner(state, bucket)
        flat = bucket.buffer().div_(group.size() if group is not None else 1)
        work = dist.all_reduce(flat, group=group, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    return hook
