"""The sample clock of a training loop: micro-batches go in, global sums of a step come out, and drive all who count."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Literal, cast, final

from torch import nn
from torch.optim import Optimizer

from isobatch.average import ModelAverage
from isobatch.checkpoint.live import load_together
from isobatch.control import BatchSchedule
from isobatch.errors import InputError
from isobatch.gradients import bare_optimizer
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.train.noise_monitor import NoiseReader
from isobatch.train.sample_scheduler import SampleScheduler, refuse_rivals
from isobatch.train.world import World
from isobatch.units import finite

Unit = Literal["samples", "tokens"]
_COUNTERS = ("seen", "drawn", "steps", "skips")
_INSTEAD = {
    "average": "isobatch.ModelEMA(model, half_life=...) or another average of isobatch, or a list of them",
    "noise": "isobatch.NoiseScale(model), or a list of them",
    "scheduler": "isobatch.SampleScheduler(scheduler, batch_size=...), or a list of them, one an optimizer",
}


@final
class SampleClock:
    """Counts the samples (or tokens) of optimizer steps in any training loop, and drives what counts by them.

    One step is micro() around each backward pass, ready() when the gradient is complete, then applied() after
    optimizer.step(), or skipped() where the step was refused. Every setting follows `seen`; `drawn` moves with every
    step. Under torch.distributed ready() sums over ranks.

    A micro-batch without a weight says that the loss is the plain mean of its micro-batches' means (Lightning,
    Accelerate); with a weight, that the loss of the step is the mean over all weights, such as the mean over all
    tokens of the step (causal language models in the HF Trainer). The noise scale is counted in these weights.

    Args:
        average: one weight average, or several; updated by each applied step.
        noise: one noise scale, or several; told of each step that is ready.
        optimizer: an invariant one is told of each weighted micro-batch, unless a noise scale tells it.
        scheduler: one `SampleScheduler`, or several, one an optimizer; each gets the true samples of a step before it
            is made. Several of one optimizer become one torch scheduler first (SequentialLR, ChainedScheduler).
        batches: the global batch by samples seen, a `BatchSchedule` or a function.
        unit: what `seen` counts: rows ("samples") or weights ("tokens").
        steps_scheduler: whether applied() steps the schedulers; False where a trainer does.
        world: the ranks whose gradients are averaged; all of the job unless given.

    Raises:
        InputError: another unit, members of another kind, one of them twice, or two schedulers of one optimizer.

    Example:
        >>> import torch
        >>> from isobatch import ModelEMA
        >>> net = torch.nn.Linear(1, 1)
        >>> clock = SampleClock(average=ModelEMA(net, half_life=100))
        >>> for x in torch.ones(2, 4, 1):
        ...     with clock.micro(rows=len(x)):
        ...         (net(x).mean() / 2).backward()
        >>> clock.ready()
        8
        >>> clock.applied()  # after optimizer.step()
        >>> clock.seen, clock.average.seen
        (8, 8)
    """

    def __init__(
        self,
        *,
        average: ModelAverage | Sequence[ModelAverage] | None = None,
        noise: NoiseReader | Sequence[NoiseReader] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: SampleScheduler | Sequence[SampleScheduler] | None = None,
        batches: BatchSchedule | Callable[[int], int] | None = None,
        unit: Unit = "samples",
        steps_scheduler: bool = True,
        world: World | None = None,
    ):
        if unit not in ("samples", "tokens"):
            raise InputError(f'unit={unit!r} must be "samples" or "tokens"')
        self.averages: tuple[ModelAverage, ...] = _members("average", average, ModelAverage)
        self.noises: tuple[Any, ...] = _members("noise", noise, NoiseReader)
        bare = None if optimizer is None else bare_optimizer(optimizer)
        self.invariant = bare if isinstance(bare, InvariantOptimizer) else None
        self.schedulers: tuple[SampleScheduler, ...] = _members("scheduler", scheduler, SampleScheduler)
        if not (batches is None or callable(batches) or isinstance(batches, BatchSchedule)):
            raise InputError(f"batches={batches!r} must be a BatchSchedule, or a function of the samples seen")
        self.steps_scheduler = steps_scheduler
        self.batches = batches.at if isinstance(batches, BatchSchedule) else batches
        self.unit: Unit = unit
        self.world = world or World.current()
        self.seen: float = 0
        self.drawn: float = 0
        self.steps = self.skips = 0
        self._open: _Open | None = None
        self._rows: float = 0
        self._weights: float | None = None
        self._micro = 0
        self._ready: tuple[float, float | None] | None = None
        self._updates: list[int] = []
        self._steps_of = self._counts()

    @property
    def average(self) -> Any:
        """The first average, None without one."""
        return self.averages[0] if self.averages else None

    @property
    def noise(self) -> Any:
        """The first noise scale, None without one."""
        return self.noises[0] if self.noises else None

    @property
    def scheduler(self) -> Any:
        """The first scheduler, None without one."""
        return self.schedulers[0] if self.schedulers else None

    @property
    def next_batch(self) -> int | None:
        """Global batch of the next step by `batches`, None without them."""
        return None if self.batches is None else self.batches(int(self.seen))

    @property
    def pending(self) -> bool:
        """Whether micro-batches were counted, or a step was ready, and nobody has said yet what became of it."""
        return self._micro > 0 or self._ready is not None

    @property
    def ready_size(self) -> float:
        """Samples of the step that is ready, in the clock's unit.

        Raises:
            InputError: ready() was not called.
        """
        return self._counted()

    def micro(self, rows: float, weight: float | Sequence[float] | None = None) -> AbstractContextManager[None]:
        """Count one micro-batch of this rank; it is open until the block ends, the next one begins, or ready().

        A block that is left by an exception takes its count back.

        Args:
            rows: samples in it; 0 on a rank without any.
            weight: n_j, what its mean loss weighs in the loss of the step, or a list (tensor, array) of what each row
                weighs; None where micro-batches weigh alike.

        Returns:
            A context manager around its backward pass, which need not be used.

        Raises:
            InputError: numbers below 0, or a step in which some micro-batches weigh and others do not.
        """
        self._close()
        if getattr(weight, "ndim", 0):
            weight = cast(Any, weight).tolist()
        plain = weight is None or isinstance(weight, int | float)
        each = [float(w) for w in weight] if not plain and isinstance(weight, Sequence) else None
        total: Any = weight if each is None else sum(each)
        if self._ready is not None:
            raise InputError("micro() after ready(): say first whether that step was applied() or skipped()")
        if self._micro and (total is None) != (self._weights is None):
            raise InputError("some micro-batches of this step have a weight and others none; give it for all, or none")
        counted, weights = finite("rows", rows, 0), 0.0 if total is None else finite("weight", total, 0)
        opened = self._open = _Open(self, (self._rows, self._weights, self._micro))
        self._rows, self._micro = self._rows + counted, self._micro + 1
        if total is None:
            return opened
        self._weights = (self._weights or 0) + weights
        stack = opened.stack
        for noise in self.noises:
            stack.enter_context(noise.chunk(total) if each is None else noise.chunk(total, rows=each))
        if self.invariant is not None and not self.noises:
            stack.enter_context(self.invariant.chunk(total))
        return opened

    def ready(self, rows: float | None = None, weight: float | None = None, *, noise: int | None = None) -> float:
        """Take the gradient of a step as complete: sum its samples over ranks and measure the noise scale.

        Call it before optimizer.step(); before or after unscaling and clipping. Where several optimizers step one after
        the other, the sums are taken once, and `noise` says whose turn it is.

        Args:
            rows: global samples where the loop knows them, instead of the sum over ranks and micro-batches.
            weight: global weights where the loop knows them; equal to rows unless given.
            noise: number of the noise scale that is told; all of them unless given.

        Returns:
            Samples of the step, in the clock's unit.

        Raises:
            InputError: no micro-batch in this step, or tokens without weights.
        """
        self._close()
        if self._ready is None:
            self._ready = self._sums(rows, weight)
            self._refuse_twice()
            self._updates = [average.n_averaged for average in self.averages]
            self._prepare_schedulers()
        total, weights = self._ready
        measured = total if weights is None else weights
        for number, reader in enumerate(self.noises):
            if noise is None or noise == number:
                if measured > 0:
                    reader.update(samples=measured)
                else:  # everything was masked
                    reader.discard()
        return self._counted()

    def applied(self, *, half_life: float | None = None) -> None:
        """Take a step as made: averages, schedulers and `seen` move. Call it after optimizer.step().

        Args:
            half_life: of the averages in this step alone, such as a schedule's.

        Raises:
            InputError: ready() was not called, or an average or a scheduler was moved for this step by somebody else.
        """
        if self._ready is not None:
            self._refuse_twice(self.averages)
        size = self._finish()
        if size > 0:
            for average in self.averages:
                average.update(samples=size, half_life=half_life)
        self.seen, self.steps = self.seen + size, self.steps + 1
        for scheduler in self.schedulers if self.steps_scheduler and size > 0 else ():
            scheduler.step(samples=size, next_samples=self.next_batch)
        self._steps_of = self._counts()

    def skipped(self, rows: float | None = None) -> None:
        """Take a step as refused, such as by a gradient scaler or a guard: `drawn` moves, and nothing else.

        It may come instead of ready(), or after it: a noise scale that was told already leaves out by itself what is
        not finite.

        Args:
            rows: global samples where the loop knows them, as in ready().

        Raises:
            InputError: no micro-batch in this step.
        """
        told = self._ready is not None
        self._close()
        if not told:
            self._ready = self._sums(rows, None)
            for reader in self.noises:
                reader.discard()
        self._finish()
        self.skips += 1

    def discard(self) -> None:
        """Forget the micro-batches since the last step, such as passes that are repeated in smaller parts."""
        self._close(discard=True)
        self._clear()
        for reader in self.noises:
            reader.discard()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the states of averages, noise scales and schedulers; tensors are not copies."""
        state: dict[str, Any] = {"clock": {name: getattr(self, name) for name in _COUNTERS} | {"unit": self.unit}}
        state["averages"] = [average.state_dict() for average in self.averages]
        state["noises"] = [noise.state_dict() for noise in self.noises]
        state["schedulers"] = [scheduler.state_dict() for scheduler in self.schedulers]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; batch size and world may have changed since.

        Args:
            state: what state_dict() returned.

        Raises:
            InputError: another unit, other members, or no state of a clock; nothing was loaded.
        """
        state = _opened(state, self.unit)
        for name, word, saved, own in (
            ("averages", "average", len(state["averages"]), len(self.averages)),
            ("noise scales", "noise", len(state["noises"]), len(self.noises)),
            ("schedulers", "scheduler", len(state["schedulers"]), len(self.schedulers)),
        ):
            if saved != own:
                raise InputError(
                    f"{name}: {saved} in the state, {own} here; give {word}= as the run that saved the state did"
                )
        held = [*state["noises"], *state["schedulers"], *state["averages"]]
        load_together(list(zip([*self.noises, *self.schedulers, *self.averages], held, strict=True)))
        for name in _COUNTERS:
            setattr(self, name, state["clock"][name])
        self._steps_of = self._counts()
        self._close(discard=True)
        self._clear()

    def follow(self, before: "SampleClock") -> None:
        """Count on from where another clock stopped, such as that of an earlier fit of the same model.

        Args:
            before: in the same unit.

        Raises:
            InputError: another unit.
        """
        if before.unit != self.unit:
            raise InputError(f"the clock before counts {before.unit}, this one {self.unit}; build it alike")
        for name in _COUNTERS:
            setattr(self, name, getattr(before, name))

    def _counts(self) -> list[int]:
        return [scheduler._step_count for scheduler in self.schedulers]

    def _refuse_twice(self, averages: Sequence[ModelAverage] = ()) -> None:
        """Refuse what the loop moves itself and applied() would move once more."""
        for average, updates in zip(averages, self._updates, strict=False):
            if average.n_averaged > updates:
                raise InputError(
                    f"the {type(average).__name__} was updated since ready(), by attach() or by the loop itself, and "
                    "applied() would do it again; leave that out, or leave average= out of the clock"
                )
        if self.steps_scheduler and self._counts() != self._steps_of:
            raise InputError(
                "a scheduler of this clock was stepped by attach() or by a step() of the loop's own, and applied() "
                "steps it too; leave that out, or give SampleClock(steps_scheduler=False)"
            )

    def _sums(self, rows: float | None, weight: float | None) -> tuple[float, float | None]:
        if rows is not None:
            given = finite("rows", rows, 0)
            return _plain(given), _plain(given if weight is None else finite("weight", weight, 0))
        if not self._micro:
            raise InputError("no micro-batch since the last step: call micro(rows=...) before each backward pass")
        weighs = self._weights is not None
        if self.unit == "tokens" and not weighs:
            raise InputError('a clock that counts tokens needs them: micro(rows=..., weight=tokens), or unit="samples"')
        total, weights = self.world.total([float(self._rows), float(self._weights or 0)])
        return _plain(total), _plain(weights) if weighs else None

    def _counted(self) -> float:
        if self._ready is None:
            raise InputError("call ready() when the gradient of the step is complete, before optimizer.step()")
        rows, weights = self._ready
        return rows if self.unit == "samples" or weights is None else weights

    def _finish(self) -> float:
        self._close()
        size = self._counted()
        self.drawn += size
        self._clear()
        return size

    def _clear(self) -> None:
        self._rows, self._weights, self._micro, self._ready = 0, None, 0, None

    def _prepare_schedulers(self) -> None:
        """Write the settings of the coming step for the samples that it really has."""
        size = self._counted()
        for scheduler in self.schedulers:
            if size > 0 and scheduler.samples != size:
                scheduler.samples = size
                scheduler.write()

    def _close(self, discard: bool = False) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            error = _Discarded() if discard else None
            opened.stack.__exit__(type(error) if error else None, error, None)


class _Discarded(Exception):
    """Closes a chunk as one that did not happen."""


@final
class _Open:
    """One open micro-batch, what follows it, and the counts before it."""

    def __init__(self, clock: SampleClock, before: tuple[float, float | None, int]):
        self._clock, self._before, self.stack = clock, before, ExitStack()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        clock = self._clock
        if clock._open is self:
            clock._open = None
            self.stack.__exit__(kind, error, traceback)
            if kind is not None:
                clock._rows, clock._weights, clock._micro = self._before


def _members(name: str, given: Any, kind: type) -> tuple[Any, ...]:
    """Return one member or several as a tuple; what would fail or count twice at the first step is refused here."""
    if given is None:
        return ()
    single = isinstance(given, (kind, nn.Module, str)) or not isinstance(given, Iterable)
    found = (given,) if single else tuple(given)
    for one in found:
        if not isinstance(one, kind):
            raise InputError(f"{name}={type(one).__name__} does not count samples; give {_INSTEAD[name]}")
    # a SwitchEMA and the ModelEMA in it share their engine
    if len({id(getattr(one, "_engine", one)) for one in found}) < len(found):
        raise InputError(f"{name}= holds the same {type(found[0]).__name__} twice, and would move it twice a step")
    if kind is SampleScheduler:
        refuse_rivals(found)
    return found


def _opened(state: Any, unit: str) -> dict[str, Any]:
    """Return the parts of a state, its counters checked; older ones hold one scheduler or None."""
    found = dict(state) if isinstance(state, Mapping) else {}
    if "scheduler" in found:
        one = found.pop("scheduler")
        found.setdefault("schedulers", [] if one is None else [one])
    lists = [found.get(key) for key in ("averages", "noises", "schedulers")]
    clock = found.get("clock")
    if not isinstance(clock, Mapping) or not all(isinstance(one, list | tuple) for one in lists):
        raise InputError("this is no state of a SampleClock; give what its state_dict() returned")
    missing = sorted({*_COUNTERS, "unit"} - clock.keys())
    if missing:
        raise InputError(f"the clock in the state lacks {missing}; it was written by another version or damaged")
    if clock["unit"] != unit:
        raise InputError(f"the state counts {clock['unit']}, this clock {unit}; build it alike")
    for name in _COUNTERS:
        finite(f"{name} in the state", clock[name], 0)
    return found


def _plain(number: float) -> float:
    """Return whole numbers as ints, which JSON and users read as such."""
    return int(number) if number == int(number) else number
