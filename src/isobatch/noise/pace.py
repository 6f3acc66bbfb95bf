"""How often to measure: an interval that keeps the cost under a budget, denser at the start of a run."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from types import TracebackType
from typing import Any, final

import torch
import torch.distributed as dist

from isobatch.errors import InputError
from isobatch.noise.record import send
from isobatch.units import finite, whole

# Measurements early in a run are worth most; together they may cost this many steps' time beyond the budget, once.
ADVANCE = 1.0
_KEPT, _ENOUGH = 31, 8


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the clock by which steps and measurements are compared.

    On the CPU it is the processor time of this process: beside other processes the wall time of a long step grows more
    than that of a measurement's short parts, and measurements would look cheaper than they are.

    Args:
        device: of the model.

    Returns:
        A function that gives seconds.
    """
    return process_time if device.type == "cpu" else perf_counter


@final
class Stopwatch:
    """Time spent measuring: the host's, and the accelerator's where there is one, without waiting for it."""

    def __init__(self, device: torch.device):
        self.host = 0.0
        self._now = clock_of(device)
        self._cuda = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._started = 0.0

    def __enter__(self) -> None:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        self._started = self._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.host += self._now() - self._started
        if self._cuda:
            self._events[-1][1].record()

    def seconds(self) -> float:
        """Return the larger of both; the accelerator's part is left out where it has not got there yet."""
        if not self._events or not self._events[-1][1].query():
            return self.host
        return max(self.host, sum(start.elapsed_time(end) for start, end in self._events) / 1000)


@final
class Later:
    """Numbers summed over ranks now and read at the next measurement, when no host has to wait for them any more.

    Args:
        numbers: this rank's.
        groups: the ranks, whose products are all of them.
        device: where their backend wants its message.
    """

    def __init__(self, numbers: list[float], groups: Sequence[dist.ProcessGroup], device: torch.device):
        sums = send(numbers, device)
        for group in groups:
            dist.all_reduce(sums, group=group)
        self._host, self._done = sums, None
        if device.type == "cuda":
            self._host = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
            self._host.copy_(sums, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def read(self) -> list[float]:
        """Return the sums."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.tolist()


@final
class Pace:
    """Decides which steps are measured.

    Without `every`, the gap between measurements approaches cost/(budget * step time); before that it grows with the
    run, so that early measurements are spread evenly over log time and cost one step's time in all beyond the budget. A
    measurement costs what its own parts take, or what its step took longer than the plain steps before it, whichever
    is more: hooks also cost the backward pass around them. What some measurements cost in the step after theirs is
    spread over all.

    Args:
        every: fixed gap in steps, None to follow the budget.
        budget: share of the run's time that measuring may take.
        now: the clock, `clock_of` the model's device.

    Example:
        >>> pace = Pace(every=3, budget=0.003)
        >>> [pace.due() for _ in range(6)]
        [False, False, True, False, False, True]
    """

    def __init__(self, every: int | None, budget: float, now: Callable[[], float] = perf_counter):
        self._now = now
        self.every = None if every is None else whole("every", every)
        self.budget = finite("budget", budget, 0, 1, open_low=True)
        self.steps = 0
        self.last = 0
        self.gap = self.every or 1
        self._costs: deque[float] = deque(maxlen=_KEPT)
        self._longer: deque[float] = deque(maxlen=_KEPT)
        self._later: deque[Stopwatch | None] = deque(maxlen=_KEPT)
        self._steps: deque[float] = deque(maxlen=_KEPT)
        self._agreed: Later | None = None
        self._ended: float | None = None
        self._plain, self._beside = True, 0.0

    def due(self, *, ready: bool = True) -> bool:
        """Count one step; return whether the next one is to be measured.

        Args:
            ready: whether it could be; if not, the turn is kept for later.

        Returns:
            Whether it is.
        """
        self.steps += 1
        if self.steps - self.last < self.gap or not ready:
            return False
        self.last = self.steps
        return True

    def arrive(self) -> None:
        """Note that a step's gradients are complete; the time since the last step is taken."""
        now = self._now()
        if self._ended is not None and self._plain:
            self._steps.append(now - self._ended)

    def leave(self, watch: Stopwatch | None, *, plain: bool = True) -> None:
        """Note that the measurement of this step is done.

        Args:
            watch: what the next step's measurement will be timed by; None when it is not measured.
            plain: whether nothing else is looked at in it.
        """
        self._plain, self._beside = plain and watch is None, 0.0
        self._ended = self._now()

    def followed(self, watch: Stopwatch) -> None:
        """Note what the last measurement cost in the step after it.

        Args:
            watch: its time.
        """
        self._beside = watch.host
        if self._later:
            self._later[-1] = watch

    def measured(self, watch: Stopwatch, groups: Sequence[dist.ProcessGroup], device: torch.device) -> None:
        """Take the cost of a measurement into account, and choose the next gap; the same on every rank.

        Args:
            watch: its time.
            groups: the ranks that must agree, whose products are all of them; none for one process.
            device: where their backend wants its message.
        """
        if self._ended is not None:
            took = self._now() - self._ended - self._beside
            if len(self._steps) < _ENOUGH:
                self._steps.append(max(took - watch.host, 0.0))
            else:
                self._longer.append(took - statistics.median(self._steps))
        self._costs.append(watch.seconds())
        self._later.append(None)
        if self.every is not None:
            return
        cost, step = self._typical()
        if groups:
            before, self._agreed = self._agreed, Later([cost, step], groups, device)
            if before is None:
                return
            cost, step = before.read()
        self.gap = gap(cost / step if step > 0 else 0.0, self.budget, self.steps)

    def restart(self) -> None:
        """Measure densely again, as at the start of a run."""
        self.steps = self.last = 0
        self.gap = self.every or 1

    def _typical(self) -> tuple[float, float]:
        costs = list(self._costs)
        cost = statistics.median(costs[1:] or costs)
        if len(self._longer) >= _ENOUGH:
            cost = max(cost, statistics.median(self._longer))
        cost += sum(watch.seconds() for watch in self._later if watch is not None) / max(1, len(self._later))
        return cost, statistics.median(self._steps) if self._steps else 0.0


def gap(relative: float, budget: float, steps: int) -> int:
    r"""Return how many steps from one measurement to the next.

    I = c/budget keeps the budget for a measurement of c steps' time; before that, steps/q with q = A/(c max(1, ln I)),
    which spends A steps' time beyond the budget in all.

    Args:
        relative: c.
        budget: share of time.
        steps: since the start.

    Returns:
        At least 1.

    Example:
        >>> [gap(0.06, 0.003, steps) for steps in (1, 20, 100, 10_000)]
        [1, 3, 17, 20]
    """
    if relative <= budget:
        return 1
    most = math.ceil(relative / budget)
    dense = ADVANCE / (relative * max(1.0, math.log(most)))
    return max(1, min(most, math.floor(steps / dense)))


def stretch(between: tuple[float, float], every: int | None) -> tuple[float, float]:
    """Return a stretch of the clock in which every step is measured, or refuse it.

    Args:
        between: samples before its first step, and samples before the first step that is not measured any more.
        every: the fixed gap asked for beside it.

    Returns:
        The stretch.

    Raises:
        InputError: a gap beside it, or ends that do not rise.

    Example:
        >>> stretch((2304, 3264), None)
        (2304.0, 3264.0)
    """
    if every is not None:
        raise InputError(f"every={every!r} beside between={between!r}: there every step is measured; drop one of them")
    start, stop = (finite("between", end, 0) for end in between)
    if not start < stop:
        raise InputError(
            f"between=({start:g}, {stop:g}) must rise; give samples before the first step and after the last"
        )
    return start, stop
