"""The running noise scale of a training loop: measured now and then, averaged on the sample clock, never in the way."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.gradients import Ranks, Tap, bare_optimizer, dressed, fitted, local, process_group_of, world_size
from isobatch.noise.capture import MODES, Declared, Mode
from isobatch.noise.columns import Columns, Groups
from isobatch.noise.estimate import NoiseEstimate
from isobatch.noise.geometry import Geometry, Name
from isobatch.noise.half_batches import backward_in_halves, check_mean, first_tensor, mixes_rows
from isobatch.noise.history import History
from isobatch.noise.independence import FIRST, KEPT, LATER, PairedStep, copied, facts_of
from isobatch.noise.measured_step import BucketHook, MeasuredStep, Measurement, Setup, reading_hook
from isobatch.noise.pace import Pace, Stopwatch, clock_of, stretch
from isobatch.noise.progress import Progress, Terms, checked, report
from isobatch.noise.rows import Owner, owners
from isobatch.noise.statistic import coverage
from isobatch.units import finite, whole

NOTHING_TRAINS = "no parameter needs a gradient now"


@final
class NoiseScale:
    r"""Gradient noise scale tr(Sigma)/|G|^2 of a training loop, with an interval and a verdict.

    Call update() after backward and before the optimizer step; before or after unscaling and clipping. Chunks are
    what the loop has: ranks under DDP, micro-batches under accumulation, otherwise single rows of the batch, seen by
    hooks on known layers. Gradients, weights and random numbers are never changed. What needs a gradient may change as
    the run goes: then the window starts again.

    Args:
        model: wrapped or bare; under DDP the wrapped one.
        optimizer: needed for geometry "adam" and groups "optimizer".
        half_life: H in samples of the average; None for a window that grows with the run.
        every: measure every so many steps; None follows the budget.
        budget: share of the run's time that measuring may take (and the time of one step once, at the start).
        between: (start, stop) in samples: every step that begins there is measured, no other one is. While the noise
            scale moves fast, as early in a run, steps in a row identify it where as many that are spread out do not.
        geometry: "euclidean", "adam" or "sign".
        groups: also estimate by "layer", "parameter", "optimizer" group, or a function from name to group.
        capture: "auto"; "chunks" (every backward pass), "prefix" (the first of a step), "rows" (single rows),
            "norms" (rows of norm layers alone, cheapest), "buckets" (DDP's, with `bucket_hook`).
        rows: rows a backward pass that are looked at.
        data_size: D, where the |G|^2 of a finite data set is meant, sampled without replacement.
        level: coverage of intervals.
        unit: what the clock counts, for the sentences.
        process_group: ranks whose gradients are averaged; None takes those of the DistributedDataParallel around the
            model, "alone" says that each rank trains for itself.

    Raises:
        InputError: a setting outside its range, nothing that trains, parameters that cannot be seen (FSDP1), or the
            optimizer of another model.

    Example:
        >>> net = nn.Linear(16, 1, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> noise = NoiseScale(net, every=1)
        >>> data = torch.randn(40, 32, 16, generator=torch.Generator().manual_seed(0))
        >>> for x in data:
        ...     net.zero_grad()
        ...     (net(x).squeeze(1) - x.sum(1)).square().mean().backward()
        ...     noise.update(samples=32)
        >>> noise.estimate().verdict
        <Identification.IDENTIFIED: 'identified'>

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
        between: tuple[float, float] | None = None,
        geometry: Name = "euclidean",
        groups: Groups = None,
        capture: Mode = "auto",
        rows: int = 8,
        data_size: float | None = None,
        level: float = 0.95,
        unit: str = "samples",
        process_group: Ranks = None,
    ):
        if capture not in MODES:
            raise InputError(f"capture={capture!r} must be one of {', '.join(MODES)}")
        optimizer = None if optimizer is None else bare_optimizer(optimizer)
        self.columns = Columns(model, groups, optimizer)
        self.columns.refuse_unmeasurable()
        self._terms = Terms(
            coverage(level), unit, None if data_size is None else finite("data_size", data_size, 2), capture
        )
        self.geometry = Geometry(geometry, optimizer)
        if half_life is not None and half_life != math.inf:
            finite("half_life", half_life, 0, open_low=True)
        self.history = History(half_life)
        self._device = local(next(self.columns.model.parameters())).device
        self.pace = Pace(every if between is None else 1, budget, clock_of(self._device))
        self._between = None if between is None else stretch(between, every)
        self._given: Ranks = process_group
        group = process_group_of(model, process_group, guess=False)
        self._declared = Declared()
        if self.columns.shards and capture in ("rows", "norms", "buckets"):
            raise InputError(
                f'capture="{capture}" looks at whole layers, of which a sharded model has parts; use "chunks" or "auto"'
            )
        if self.columns.compiled and capture in ("rows", "norms"):
            raise InputError(f'capture="{capture}" puts hooks on layers, which a compiled model passes by; use halves')
        few = whole("rows", rows)
        by_hand = group is not None and process_group_of(model, guess=False) is None
        self._setup = Setup(
            Tap(), self.columns, self.geometry, self._declared, group, few, capture, self._layers(), by_hand
        )
        self.progress = Progress(capture, mixes_rows(self.columns.model))
        if self._between is not None:
            self.progress.caveats += (f"measured from {self._between[0]:g} to {self._between[1]:g} {unit} alone",)
        self._loss_checked = False
        self._step: MeasuredStep | None = None
        self._pair: PairedStep | None = None
        self._spare: dict[Tensor, Tensor] = {}
        self._passes, self._looked = 0, False
        self._arm()

    @property
    def seen(self) -> float:
        """Samples on the clock."""
        return self.progress.seen

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError("a NoiseScale watches one model and cannot be copied; give its state_dict() to another's")

    def chunk(self, samples: float, *, rows: Sequence[float] | None = None) -> AbstractContextManager[None]:
        """Declare how many samples (or tokens) the one backward pass inside holds; needed where chunks are unequal.

        The loss inside is scaled as for any accumulation, so that `.grad` ends as the mean gradient: by n_j/n.

        Args:
            samples: n_j; a chunk of 0 (everything masked) does not count.
            rows: what each row of the batch holds, where rows are unequal.

        Returns:
            A context manager.
        """
        self._tapped()
        return self._declared.chunk(self._setup.tap, samples, rows)

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
        if self.columns.shards:
            raise InputError("halves() does not know what FSDP2 reduces; call backward inside noise.chunk(samples)")
        rows = len(first_tensor(x))
        if not self._loss_checked:
            self._loss_checked = True
            self.progress.caveats += check_mean(lambda _, batch: loss_fn(*batch), self.columns.model, (x, y))
        if self._step is None or rows < 2 or self._setup.group is not None:
            loss = loss_fn(x, y)
            loss.backward()
            return loss.detach()
        declare = partial(self._declared.chunk, self._setup.tap, counts=False)
        return backward_in_halves(loss_fn, x, y, rows, declare)

    def update(self, *, samples: float) -> None:
        """Take in one step; call it after backward and before the optimizer step.

        Args:
            samples: global samples (or tokens) of the step: over all ranks and micro-batches.

        Raises:
            InputError: samples not positive, or not what the chunks declared.
        """
        size = finite("samples", samples, 0, open_low=True)
        self.pace.arrive()
        self.progress.seen += size
        if self._step is not None:
            self._look_for_ranks()
        self._finish_pair(size)
        if self._step is not None:
            step, self._step = self._step, None
            step.setup = self._setup
            outcome, self._passes = step.finish(size), step.backwards
            with step.watch:
                self._take(outcome, size)
            copies = [] if self._setup.group is None else [self._setup.group]
            self.pace.measured(step.watch, [*self.columns.shards.groups, *copies], self._device)
        self._declared.step = 0.0
        if self._due():
            self._arm()
        self._leave()

    @property
    def armed(self) -> bool:
        """Whether the present step is measured."""
        return self._step is not None

    def discard(self) -> None:
        """Forget the present step, as a skipped step must be; clock and averages are left as they were."""
        self._declared.step = 0.0
        self._drop_pair()
        if self._step is not None:
            self._step.remove()
            self._arm()

    def back(self) -> None:
        """Say that the loop comes back from something else, such as an evaluation, which then is not a step's time."""
        self._leave()

    def bucket_hook(self, inner: BucketHook | None = None) -> BucketHook:
        """Return a DDP communication hook that reads each bucket before it is reduced: one chunk a rank.

        Register it once, with capture="buckets": `ddp.register_comm_hook(None, noise.bucket_hook())`.

        Args:
            inner: the hook that reduces; None averages over ranks as DDP does by itself.

        Returns:
            The hook.
        """

        def take(parameters: list[Tensor], gradients: list[Tensor]) -> None:
            if self._step is not None:
                self._step.bucket(parameters, gradients)

        return reading_hook(take, self._setup.group, inner)

    def estimate(self) -> NoiseEstimate:
        """Return the noise scale as of now; the only place where the host waits for measurements."""
        return report(self.progress, self.history, self.columns, self._terms)

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
        known = before.value if before.value is not None and math.isfinite(before.high) else self.progress.expected
        self.progress.expected = None if known is None else known / ratio
        self._begin_again()
        self.discard()
        if self._step is None:
            self._arm()

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": {name: tensor}, "values": JSON-able settings and clock}."""
        tensors, values = self.history.state()
        tensors |= self.progress.tensors(self.columns)
        pair = self._pair
        if pair is not None:
            tensors |= {f"pair/{self.columns.name_of(p)}": dressed(part, p) for p, part in pair.before.items()}
            tensors["pair"] = pair.facts
        return {
            "tensors": tensors,
            "values": {
                "class": "NoiseScale",
                "settings": self._settings(),
                "clock": self.progress.clock(armed=self.armed) | {"pair": None if pair is None else pair.samples},
                "pace": {"steps": self.pace.steps, "last": self.pace.last, "gap": self.pace.gap},
                "history": values,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over averages, window and clock; with a fixed `every` the run goes on bit for bit.

        Args:
            state: what state_dict() returned.

        Raises:
            InputError: a state of another geometry, capture, unit or grouping; nothing is loaded.
        """
        tensors, values = checked(state, self._settings())
        self.history.load(tensors, values["history"], len(self.columns), self._device)
        self.progress.load(tensors, values["clock"], self.columns)
        pace = values["pace"]
        self.pace.steps, self.pace.last, self.pace.gap = pace["steps"], pace["last"], pace["gap"]
        if self._step is not None:
            self._step.remove()
            self._step = None
        self._drop_pair()
        if values["clock"].get("pair") is not None:
            named = {self.columns.name_of(p): p for p in self.columns.model.parameters()}
            before: dict[Tensor, Tensor] = {
                p: fitted(tensors[f"pair/{n}"], p, n).to(self._device, copy=True)
                for n, p in named.items()
                if f"pair/{n}" in tensors
            }
            self._put_pair(before, tensors["pair"].to(self._device, copy=True), values["clock"]["pair"])
        if values["clock"]["armed"]:
            self._arm()

    def _settings(self) -> dict[str, Any]:
        return {
            "geometry": self.geometry.name,
            "unit": self._terms.unit,
            "data_size": self._terms.data_size,
            "half_life": self.history.half_life,
            "columns": self.columns.names,
        } | ({} if self._between is None else {"between": list(self._between)})

    def _due(self) -> bool:
        due = self.pace.due(ready=self.geometry.ready)
        return due if self._between is None else due and self._between[0] <= self.seen < self._between[1]

    def _arm(self) -> None:
        """Put hooks on the coming step; a window over other parameters than it trains starts again."""
        if not self.geometry.ready:
            return
        if self._between is not None and not self.history.cells:
            if not self._between[0] <= self.seen < self._between[1]:
                return
            self.history.clear(self.seen)
            self.progress.measured_at = self.seen
        trained = [self.columns.name_of(p) for p in self.columns.trainable()]
        if not trained:
            self.progress.reason = NOTHING_TRAINS
            return
        if self.progress.trained is not None and trained != self.progress.trained:
            self.columns.refuse_unmeasurable()
            if self.history.cells:
                self.progress.caveats += (
                    f"since {self.seen:g} {self._terms.unit}, when other parameters began to be trained",
                )
            self.progress.trusted, self.progress.mode = None, self._setup.mode
            self._setup = replace(self._setup, layers=self._layers())
            self._drop_pair()
            self._begin_again()
        self.progress.trained = trained
        self._tapped()
        progress, passes = self.progress, self._passes
        self._step = MeasuredStep(self._setup, progress.mode, progress.turn, progress.trusted, expected=passes)

    def _layers(self) -> list[Owner]:
        hidden = self.columns.compiled or self.columns.shards
        return [] if hidden else owners(self.columns.model, norms_only=self._terms.capture == "norms")

    def _tapped(self) -> None:
        """Share the tap of whoever else watches these parameters."""
        tap = Tap.of(self.columns.model.parameters(), self._setup.tap)
        if tap is not self._setup.tap:
            self._setup = replace(self._setup, tap=tap)
        tap.join(self._declared)

    def _begin_again(self) -> None:
        self.history.clear(self.seen)
        self.pace.restart()

    def _look_for_ranks(self) -> None:
        """Find a DistributedDataParallel that was made later than this object; once, because all of memory is read."""
        if self._looked or self._given is not None or world_size() == 1:
            return
        self._looked = True
        if self._setup.group is None:
            self._setup = replace(self._setup, group=process_group_of(self.columns.model, guess=False))

    def _leave(self) -> None:
        self.pace.leave(None if self._step is None else self._step.watch, plain=self._pair is None)

    def _take(self, outcome: Measurement, samples: float) -> None:
        progress = self.progress
        progress.mode, progress.reason = outcome.mode, outcome.reason
        progress.turn += 1
        if outcome.trusted is not None:
            progress.trusted = outcome.trusted
        if outcome.found is None or outcome.record is None:
            return
        progress.coverage = outcome.coverage
        self.history.add(outcome.found, seen=self.seen, span=self.seen - progress.measured_at, batch=samples)
        progress.measured_at = self.seen
        if len(progress.pairs) < FIRST or progress.turn % LATER == 0:
            self._put_pair(
                copied(outcome.record.covered, all_of_them=self._setup.group is not None, into=self._spare),
                facts_of(outcome.found),
                samples,
            )

    def _put_pair(self, before: dict[Tensor, Tensor], facts: Tensor, samples: float) -> None:
        """Compare the coming step with the one whose gradient this is."""
        if before:
            self._tapped()
            setup = self._setup
            trusted = self.progress.trusted if self.progress.mode in ("rows", "norms") else None
            self._pair = PairedStep(
                self.columns,
                self.geometry,
                setup.group,
                setup.tap,
                before,
                facts,
                samples,
                trusted,
                Stopwatch(self._device),
                by_hand=setup.by_hand,
                expected=self._passes,
            )

    def _finish_pair(self, samples: float) -> None:
        """Take what a pair of steps gave."""
        pair, self._pair = self._pair, None
        if pair is None:
            return
        with pair.watch:
            found = pair.finish(samples)
            if found is not None:
                self.progress.pairs = [*self.progress.pairs, found][-KEPT:]
        self.pace.followed(pair.watch)
        more = self._device.type == "cpu" and len(self.progress.pairs) < FIRST  # accelerators keep their memory anyway
        self._spare = pair.before if more else {}

    def _drop_pair(self) -> None:
        if self._pair is not None:
            self._pair.remove()
            self._pair = None
