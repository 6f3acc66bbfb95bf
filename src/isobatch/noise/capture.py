"""The hooks of one measured step: chunks as they are accumulated, and rows of a batch where there is one chunk only."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isobatch.errors import InputError
from isobatch.gradients import LayerHook, Reading, RescaleCheck, Tap, refuse_sparse
from isobatch.noise.half_batches import length
from isobatch.noise.pace import Stopwatch
from isobatch.noise.record import Entry, Record
from isobatch.noise.rows import Owner, Work, few_of, run_again, take_rows, wide

Mode = Literal["auto", "chunks", "prefix", "rows", "norms", "buckets"]
# Gradients up to so many numbers wait for the end of their pass, so that their norms take one launch together.
_LARGE = 2**16
MODES: tuple[Mode, ...] = ("auto", "chunks", "prefix", "rows", "norms", "buckets")


@final
class Declared:
    """What the backward pass that runs now holds, in samples; nothing outside a chunk.

    `ever` is set by the first chunk that the noise scale itself was given, `counts` where chunks are counted on the
    clock's own unit, `step` is the sum over the present step.
    """

    def __init__(self) -> None:
        self.samples: float | None = None
        self.rows: list[float] | None = None
        self.opened_by: object | None = None
        self.ever = False
        self.counts = False
        self.step = 0.0
        self._halves = False

    def chunk(
        self, tap: Tap, samples: float, rows: Sequence[float] | None = None, *, counts: bool = True
    ) -> AbstractContextManager[None]:
        """Declare the one backward pass inside.

        Args:
            tap: of the model's parameters.
            samples: of the chunk.
            rows: of each of its rows; None for equal ones.
            counts: whether samples are counted as the clock counts them.

        Returns:
            A context manager. Entering it raises InputError inside another chunk, or with rows that do not add up to
            the samples.
        """
        self._halves = not counts
        return tap.chunk(samples, self, rows)

    def begin(self, samples: float, rows: Sequence[float] | None, *, own: bool) -> None:
        """Take note that a chunk is open.

        Args:
            samples: of the chunk.
            rows: of each of its rows.
            own: whether it was declared here; somebody else's may count in another unit.
        """
        if self.samples is not None:
            self.step -= self.samples
        self.samples, self.rows = samples, None if rows is None else list(rows)
        self.ever = self.ever or own
        self.counts = self.counts or (own and not self._halves)
        self.step += samples

    def end(self, samples: float) -> None:
        """Take note that its backward pass is done.

        Args:
            samples: of the chunk.
        """
        self.samples = self.rows = None


@final
class Passes:
    """Takes each backward pass's gradients; one pass is one chunk.

    Args:
        record: where chunks go.
        declared: what the present pass holds.
        watch: times it.
        take: which passes' norms are wanted: "all", "first", or "none" (only the check of rescaling).
    """

    def __init__(self, record: Record, declared: Declared, watch: Stopwatch, take: Literal["all", "first", "none"]):
        self.record = record
        self.declared = declared
        self.watch = watch
        self.take = take
        self.checks: list[RescaleCheck] = [record.check]
        self.units: list[float] = []
        self.sums: dict[Tensor, Tensor] | None = None
        self.cleared = False
        self.merged: set[int] = set()  # how many undeclared passes FSDP2 has reduced at once
        self._declared_before = declared.step
        self._calls: dict[Tensor, int] = {}
        self._waiting: dict[Tensor, Sequence[Tensor]] = {}
        self._entry: Entry | None = None
        self._counts: list[list[float]] = []

    def receive(self, parameter: Tensor, gradients: Sequence[Tensor], reading: Reading | None = None) -> None:
        """Take what one backward pass adds to a parameter's `.grad`.

        Args:
            parameter: a watched one.
            gradients: what is about to be added; of each rank of a shard group where FSDP2 reduces.
            reading: where it reduces.

        Raises:
            InputError: a sparse gradient, or passes inside and outside `chunk` in one step.
        """
        for gradient in gradients:
            if gradient.layout is not torch.strided:
                refuse_sparse(f"parameter {self.record.columns.name_of(parameter)!r}", gradient)
        if self.record.norms is not None:
            self.record.norms.arrive()
        declared = self.declared.samples
        if declared is None and self.declared.ever:
            raise InputError("a backward pass outside noise.chunk() follows one inside; declare every pass of a run")
        if declared == 0 and reading is None:
            return
        with self.watch, torch.no_grad():
            turn = self._calls.get(parameter, 0)
            self._calls[parameter] = turn + 1
            while len(self.units) <= turn:
                self._counts.append(self._units(declared, len(gradients), reading))
                self.units.append(sum(self._counts[-1]))
            self._take(parameter, gradients, turn)

    def _units(self, declared: float | None, ranks: int, reading: Reading | None) -> list[float]:
        """Return what each gradient of a pass, or of a reduction of FSDP2, holds."""
        if reading is None:
            return [1.0 if declared is None else declared]
        if declared is None:
            self.merged.add(reading.passes)
            return [1.0] * ranks
        since, self._declared_before = self.declared.step - self._declared_before, self.declared.step
        return reading.counts(since)

    def _take(self, parameter: Tensor, gradients: Sequence[Tensor], turn: int) -> None:
        self.cleared = self.cleared or (turn > 0 and parameter.grad is None)
        for check in self.checks:
            if parameter in check:
                for gradient in gradients:
                    check.add(parameter, gradient)
        if self.sums is not None and (turn == 0 or self.take != "all"):  # several chunks need no trust in rows
            known, gradient = self.sums.get(parameter), gradients[0]
            self.sums[parameter] = gradient.clone() if known is None else known + gradient
        if self.take == "none" or (self.take == "first" and turn):
            return
        units = self._counts[turn]
        if len(self.record.entries) <= turn:
            self.flush()
            self._entry = Entry([unit for unit in units if unit > 0])
            self.record.entries.append(self._entry)
        if self._entry is None or not self._entry.units:
            return
        kept = [gradient for gradient, unit in zip(gradients, units, strict=True) if unit > 0]
        if gradients[0].numel() * len(kept) > _LARGE:
            self.record.add(self._entry, {parameter: kept})
        else:
            # The tensor itself, not a view of it: while it is held, autograd copies it into .grad and leaves it alone.
            self._waiting[parameter] = kept

    def flush(self) -> None:
        """Take the norms of the small gradients of a pass together."""
        if self._waiting and self._entry is not None:
            self.record.add(self._entry, self._waiting)
        self._waiting = {}


@final
class Rows:
    """Takes a few rows of each backward pass, layer by layer.

    Args:
        record: where rows go, as chunks of one row.
        model: whose first input says how many rows a batch has.
        layers: whose rows can be told apart.
        declared: what the present pass holds.
        watch: times it.
        few: rows a pass.
        turn: counts measurements, so that other rows come next time.
        check: whether to compare each layer's gradient with what autograd adds, and trust it only where they agree.
        enough: whether there is another chunk already, so that further passes need not be looked at.
    """

    def __init__(
        self,
        record: Record,
        model: nn.Module,
        layers: Sequence[Owner],
        declared: Declared,
        watch: Stopwatch,
        *,
        few: int,
        turn: int,
        check: bool,
        enough: Callable[[], bool] | None = None,
    ):
        self.record = record
        self.watch = watch
        self.enough, self._idle = enough, False
        self.layers = list(layers)
        self.declared = declared
        self.few, self.turn = few, turn
        self.totals: dict[Tensor, Tensor] | None = {} if check else None
        self._uses: dict[str, set[int]] = {}
        self._entries: dict[int, Entry] = {}
        self._work: list[Work] = []
        self._forward = 0
        self._odd: set[str] = set()
        self._batch: int | None = None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(LayerHook(self._count), with_kwargs=True)
        ]
        for owner in self.layers:
            self._handles.append(owner.module.register_forward_hook(LayerHook(self._before(owner))))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def settle(self, passes: int) -> None:
        """Take the rows of the layers that were used once in every pass, on the batch's own rows.

        Args:
            passes: backward passes of the step.
        """
        kept = [o for o in self.layers if len(self._uses.get(o.name, ())) == passes and o.name not in self._odd]
        self.record.covered = [p for owner in kept for p in owner.parameters.values()]
        names = {owner.name for owner in kept}
        take_rows(self.record, [work for work in self._work if work.owner.name in names])

    def trust(self, added: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return 1 for each parameter whose layer explains the gradient that autograd added, else 0; on the device.

        Args:
            added: sums of what the passes added.

        Returns:
            Scalars in float64.
        """
        trusted = {}
        for parameter, total in (self.totals or {}).items():
            whole = added[parameter].to(total.dtype) if parameter in added else torch.zeros_like(total)
            tolerance = 1e-6 if whole.dtype == torch.float64 else 0.02
            gap = torch.linalg.vector_norm(total - whole)
            trusted[parameter] = (gap <= tolerance * torch.linalg.vector_norm(whole)).double()
        return trusted

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._idle = self._idle or (self.enough is not None and self.enough())
            self._forward, self._batch = self._forward + 1, length([*inputs, *named.values()])

    def _before(self, owner: Owner) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled() and output.requires_grad and not self._idle and not torch.jit.is_tracing():
                x = inputs[0].detach()
                output.register_hook(partial(self._backward, owner, x, self._forward, self._batch))

        return forward

    def _backward(self, owner: Owner, x: Tensor, forward: int, batch: int | None, delta: Tensor) -> None:
        if self.declared.samples != 0:
            with self.watch, torch.no_grad():
                self._take(owner, x, forward, batch, delta)

    def _take(self, owner: Owner, x: Tensor, forward: int, batch: int | None, delta: Tensor) -> None:
        uses = self._uses.setdefault(owner.name, set())
        if forward in uses or x.ndim == 0 or len(x) != len(delta) or len(x) != (batch or len(x)):
            self._odd.add(owner.name)
            return
        uses.add(forward)
        if forward not in self._entries:
            self._entries[forward] = self._open(len(x))
        entry = self._entries[forward]
        if self.totals is not None:
            for key, total in run_again(owner.module, wide(x), wide(delta)).items():
                if key in owner.parameters:
                    known = self.totals.get(owner.parameters[key])
                    self.totals[owner.parameters[key]] = total if known is None else known + total
        chosen = few_of(len(x), self.few, self.turn)
        # Clones, so that whole activations are not kept until the end of the step.
        self._work.append(Work(owner, entry, wide(x[chosen].clone()), wide(delta[chosen].clone())))

    def _open(self, rows: int) -> Entry:
        """Open the entry of a pass of so many rows."""
        samples = float(rows) if self.declared.samples is None else self.declared.samples
        counts = self.declared.rows or [samples / rows] * rows
        if len(counts) != rows:
            raise InputError(f"chunk() was given the counts of {len(counts)} rows, but the batch has {rows}")
        entry = Entry(counts[few_of(rows, self.few, self.turn)])
        self.record.entries.append(entry)
        self.record.total_units += samples
        return entry
