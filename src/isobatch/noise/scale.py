"""The running noise scale of a training loop: measured now and then, averaged on the sample clock, never in the way."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.errors import InputError
from isobatch.noise.armed import Armed, Outcome, Setup
from isobatch.noise.capture import MODES, Declared, Mode
from isobatch.noise.columns import Columns, Groups
from isobatch.noise.coupling import check_mean, first_tensor, mixes_rows
from isobatch.noise.estimate import NoiseEstimate
from isobatch.noise.geometry import Geometry, Name
from isobatch.noise.history import History
from isobatch.noise.interval import coverage
from isobatch.noise.pace import Pace, Stopwatch, clock_of
from isobatch.noise.report import report
from isobatch.noise.rows import owners
from isobatch.noise.state import compare, restore, values_of
from isobatch.noise.ways import BucketHook, backward_in_halves, reading_hook
from isobatch.units import finite, whole


@final
class NoiseScale:
    r"""Gradient noise scale tr(Sigma)/|G|^2 of a training loop, with an interval and a verdict.

    Call update() after backward and before the optimizer step; before or after unscaling and clipping. Chunks are
    what the loop has: ranks under DDP, micro-batches under accumulation, otherwise single rows of the batch, seen by
    hooks on known layers. Gradients, weights and random numbers are never changed.

    Args:
        model: wrapped or bare; under DDP the wrapped one.
        optimizer: needed for geometry "adam" and groups "optimizer".
        half_life: H in samples of the average; None for a window that grows with the run.
        every: measure every so many steps; None follows the budget.
        budget: share of the run's time that measuring may take (and the time of one step once, at the start).
        geometry: "euclidean", "adam" or "sign".
        groups: also estimate by "layer", "parameter", "optimizer" group, or a function from name to group.
        capture: "auto"; "chunks" (every backward pass), "prefix" (the first of a step), "rows" (single rows),
            "norms" (rows of norm layers alone, cheapest), "buckets" (DDP's, with `bucket_hook`).
        rows: rows a backward pass that are looked at.
        data_size: D, where the |G|^2 of a finite data set is meant, sampled without replacement.
        level: coverage of intervals.
        unit: what the clock counts, for the sentences.
        process_group: ranks whose gradients are averaged; None takes DDP's own.

    Raises:
        InputError: a setting outside its range, nothing that trains, or sharded (FSDP2) parameters.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> noise = NoiseScale(net, every=1)
        >>> data = torch.randn(40, 32, 2, generator=torch.Generator().manual_seed(0))
        >>> for x in data:
        ...     net.zero_grad()
        ...     (net(x).squeeze(1) - x.sum(1)).square().mean().backward()
        ...     noise.update(samples=32)
        >>> noise.estimate().verdict
        <Verdict.IDENTIFIED: 'identified'>

    References:
        arXiv 1812.06162.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        half_life: float | None = None,
        every: int | None = None,
        budget: float = 0.003,
        geometry: Name = "euclidean",
        groups: Groups = None,
        capture: Mode = "auto",
        rows: int = 8,
        data_size: float | None = None,
        level: float = 0.95,
        unit: str = "samples",
        process_group: dist.ProcessGroup | None = None,
    ):
        if capture not in MODES:
            raise InputError(f"capture={capture!r} must be one of {', '.join(MODES)}")
        self.columns = Columns(model, groups, optimizer)
        self.columns.refuse_unmeasurable()
        self.level, self.unit = coverage(level), unit
        self.data_size = None if data_size is None else finite("data_size", data_size, 2)
        self.geometry = Geometry(geometry, optimizer)
        if half_life is not None and half_life != math.inf:
            finite("half_life", half_life, 0, open_low=True)
        self.history = History(half_life)
        self.pace = Pace(every, budget, clock_of(next(self.columns.model.parameters()).device))
        group = process_group
        if group is None and isinstance(model, DistributedDataParallel):
            group = model.process_group
        group = group if group is not None and group.size() > 1 else None
        self._declared = Declared()
        layers = [] if self.columns.compiled else owners(self.columns.model, norms_only=capture == "norms")
        if self.columns.compiled and capture in ("rows", "norms"):
            raise InputError(f'capture="{capture}" puts hooks on layers, which a compiled model passes by; use halves')
        self._setup = Setup(self.columns, self.geometry, self._declared, group, whole("rows", rows), capture, layers)
        self.caveats = mixes_rows(self.columns.model)
        self.seen = 0.0
        self.measured_at = 0.0
        self.turn = 0
        self.mode: Mode = capture
        self.trusted: dict[Tensor, Tensor] | None = None
        self.coverage = 1.0
        self.expected: float | None = None
        self.reason = ""
        self._loss_checked = False
        self._armed: Armed | None = None
        self._arm()

    def chunk(self, samples: float, *, rows: Sequence[float] | None = None) -> AbstractContextManager[None]:
        """Declare how many samples (or tokens) the one backward pass inside holds; needed where chunks are unequal.

        The loss inside is scaled as for any accumulation, so that `.grad` ends as the mean gradient: by n_j/n.

        Args:
            samples: n_j; a chunk of 0 (everything masked) does not count.
            rows: what each row of the batch holds, where rows are unequal.

        Returns:
            A context manager.
        """
        return self._declared.chunk(samples, rows)

    def halves(self, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Tensor:
        """Run backward over one batch, in two halves where this step is measured: the same operations, the same result.

        Args:
            loss_fn: loss_fn(x, y) is the mean loss over the rows it is given, and uses the model.
            x: inputs, rows on axis 0 of every tensor in it.
            y: targets, likewise.

        Returns:
            The batch's mean loss, detached.

        Raises:
            InputError: the loss is a sum over rows.
        """
        rows = len(first_tensor(x))
        if not self._loss_checked:
            self._loss_checked = True
            self.caveats += check_mean(lambda _, batch: loss_fn(*batch), self.columns.model, (x, y))
        if self._armed is None or rows < 2 or self._setup.group is not None:
            loss = loss_fn(x, y)
            loss.backward()
            return loss.detach()
        return backward_in_halves(loss_fn, x, y, rows, self._declared)

    def update(self, *, samples: float) -> None:
        """Take in one step; call it after backward and before the optimizer step.

        Args:
            samples: global samples (or tokens) of the step: over all ranks and micro-batches.

        Raises:
            InputError: samples not positive, or not what the chunks declared.
        """
        size = finite("samples", samples, 0, open_low=True)
        self.pace.arrive()
        self.seen += size
        if self._armed is not None:
            armed, self._armed = self._armed, None
            outcome = armed.finish(size)
            with armed.watch:
                self._take(outcome, size)
            device = next(self.columns.model.parameters()).device
            self.pace.measured(armed.watch, self._setup.group, device)
        self._declared.step = 0.0
        if self.pace.due(ready=self.geometry.ready):
            self._arm()
        self.pace.leave(self._watch())

    @property
    def armed(self) -> bool:
        """Whether the present step is measured."""
        return self._armed is not None

    def discard(self) -> None:
        """Forget the present step, as a skipped step must be; clock and averages are left as they were."""
        self._declared.step = 0.0
        if self._armed is not None:
            self._armed.remove()
            self._arm()

    def back(self) -> None:
        """Say that the loop comes back from something else, such as an evaluation, which then is not a step's time."""
        self.pace.leave(self._watch())

    def bucket_hook(self, inner: BucketHook | None = None) -> BucketHook:
        """Return a DDP communication hook that reads each bucket before it is reduced: one chunk a rank.

        Register it once, with capture="buckets": `ddp.register_comm_hook(None, noise.bucket_hook())`.

        Args:
            inner: the hook that reduces; None averages over ranks as DDP does by itself.

        Returns:
            The hook.
        """

        def take(parameters: list[Tensor], gradients: list[Tensor]) -> None:
            if self._armed is not None:
                self._armed.bucket(parameters, gradients)

        return reading_hook(take, self._setup.group, inner)

    def estimate(self) -> NoiseEstimate:
        """Return the noise scale as of now; the only place where the host waits for measurements."""
        return report(self)

    def rescale(self, *, temperature: float = 1.0) -> None:
        r"""Follow a change of settings: the noise scale goes as 1/T, T ~ lr/batch for SGD, over (1 - momentum).

        A change of batch with the temperature kept needs nothing: |G|^2 and tr(Sigma) are those of one sample. Another
        temperature makes the old averages history: the window starts again, and the old value divided by the ratio is
        kept as what to expect.

        Args:
            temperature: new T over old T, positive.

        Raises:
            InputError: a ratio that is not positive.

        References:
            arXiv 1812.06162, appendix C.
        """
        ratio = finite("temperature", temperature, 0, open_low=True)
        if ratio == 1:
            return
        before = self.estimate()
        known = before.value if before.value is not None and math.isfinite(before.high) else self.expected
        self.expected = None if known is None else known / ratio
        self.history.clear(self.seen)
        self.pace.restart()
        self.discard()
        if self._armed is None:
            self._arm()

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": {name: tensor}, "values": JSON-able settings and clock}."""
        tensors, values = self.history.state()
        for parameter, trust in (self.trusted or {}).items():
            tensors[f"trusted/{self.columns.name_of(parameter)}"] = trust
        return {"tensors": tensors, "values": values_of(self, values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over averages, window and clock; with a fixed `every` the run goes on bit for bit.

        Args:
            state: what state_dict() returned.

        Raises:
            InputError: a state of another geometry, capture, unit or grouping; nothing is loaded.
        """
        compare(self, state["values"])
        restore(self, state)
        if self._armed is not None:
            self._armed.remove()
            self._armed = None
        if state["values"]["clock"]["armed"]:
            self._arm()

    def _arm(self) -> None:
        if self.geometry.ready:
            self._armed = Armed(self._setup, self.mode, self.turn, self.trusted)

    def _watch(self) -> Stopwatch | None:
        return None if self._armed is None else self._armed.watch

    def _take(self, outcome: Outcome, samples: float) -> None:
        self.mode, self.reason = outcome.mode, outcome.reason
        self.turn += 1
        if outcome.trusted is not None:
            self.trusted = outcome.trusted
        if outcome.found is not None:
            self.coverage = outcome.coverage
            self.history.add(outcome.found, seen=self.seen, span=self.seen - self.measured_at, batch=samples)
            self.measured_at = self.seen
