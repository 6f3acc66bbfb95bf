"""Calls in flight on one executor: tried again when their worker is lost, reported as they go, cancelled at the end."""

import math
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from isobatch.errors import EngineError, InputError, WorkerLost, warn
from isobatch.executors.local import LocalExecutor, processes
from isobatch.executors.progress import State, report
from isobatch.executors.remote import Answer, answered, call, invoke
from isobatch.executors.shipping import Bundle, bundle
from isobatch.tasks.sources import module_of

RETRIES = 2
"""Times that a call is made again after its worker was lost; Dask counts its own (its allowed-failures, 3)."""
POISONED = 3
"""Calls given up before the rest is given up too."""
_ENGINES = ("distributed", "ray", "submitit")
_NOTHING: Any = object()
"""No result: the call is tried again, or given up."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class _Flight:
    function: Callable[[Any], Any]
    job: Any
    attempt: int = 0
    future: Future[Any] | None = None


class Session:
    """Calls in flight, by key.

    Args:
        executor: makes the calls, any `concurrent.futures.Executor`, left open; None for processes of this machine.
        workers: processes of this machine, one a core or a GPU unless given; 1 stays in this process.
        device: where the calls compute.
        ends: time of `time.monotonic` after which no call is begun; those that run then come in, the others are left.
    """

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        workers: int | None = None,
        device: str = "cpu",
        ends: float = math.inf,
    ):
        self.width = width(executor, workers, device)
        self.early: dict[Any, Any] = {}
        """Results that came before anybody wanted them."""
        self._given, self._device, self._ends, self._over = executor, device, ends, False
        self._ahead = 0.0  # seconds that a worker's clock is ahead of this one, at most
        self._own: LocalExecutor | None = None
        self._flights: dict[Hashable, _Flight] = {}
        self._ended: SimpleQueue[Hashable] = SimpleQueue()
        self._bundles: dict[tuple[str, ...], Bundle] = {}
        self._machines: dict[str, str] = {}
        self._gone: list[str] = []
        self._state = State(width=self.width)

    def add(self, key: Hashable, function: Callable[[_Item], Any], job: _Item) -> None:
        """Start a call, unless one of that key is in flight.

        Args:
            key: of the call.
            function: of one job, importable by name.
            job: plain values.
        """
        if key in self._flights:
            return
        self._flights[key] = flight = _Flight(function, job)
        self._state.total += 1
        if self._given is not None or self.width > 1:
            self._submit(key, flight)

    def done(self, wanted: Iterable[Any]) -> Generator[tuple[Any, Any]]:
        """Yield results as they come, of other calls too, until those that are wanted have ended or are left.

        Args:
            wanted: keys of calls that were added.

        Yields:
            Key and result.

        Raises:
            InputError: what a call raised, or calls whose worker was lost every time, by name.
            EngineError: the executor is gone.
        """
        left = set(wanted)
        report(self._state)
        while left:
            if self._given is None and self.width == 1:
                key = next(key for key in self._flights if key in left)
                found = self._flights[key]
                result = found.function(found.job) if time.monotonic() < self._ends else _NOTHING
                self._leave(key) if result is _NOTHING else self._flights.pop(key)
            else:
                key, result = self._next()
            left.discard(key)
            if result is not _NOTHING:
                self._state.done += 1
                self._state.failed += bool(getattr(result, "stopped", ""))
                yield key, result
                report(self._state)
        if self._gone:
            raise self._poison()

    def close(self) -> None:
        """Cancel what is left."""
        for flight in self._flights.values():
            if flight.future is not None:
                flight.future.cancel()
        self._flights.clear()
        if self._own is not None:
            self._own.shutdown(cancel_futures=True)

    def _submit(self, key: Hashable, flight: _Flight) -> None:
        if self._given is None:
            self._own = self._own or LocalExecutor(self.width, self._device)
            flight.future = self._own.submit(flight.function, flight.job)
        else:
            ends = time.time() + self._ends - time.monotonic() + self._ahead
            made = call(flight.function, flight.job, self._bundle(flight), flight.attempt, ends)
            try:
                flight.future = self._given.submit(invoke, made)
            except Exception as error:
                if not (isinstance(error, (RuntimeError, OSError)) or _gone(error)):
                    raise
                raise _engine_gone(error) from error
        flight.future.add_done_callback(lambda _: self._ended.put(key))

    def _bundle(self, flight: _Flight) -> Bundle:
        function = flight.function.func if isinstance(flight.function, partial) else flight.function
        modules = {function.__module__, type(flight.job).__module__}
        if (recipe := getattr(flight.job, "recipe", None)) is not None:
            modules.add(module_of(recipe))
        names = tuple(sorted(name for name in modules - {"", "__main__"} if name.split(".")[0] != "isobatch"))
        if names not in self._bundles:
            self._bundles[names] = bundle(*names)
        return self._bundles[names]

    def _next(self) -> tuple[Hashable, Any]:
        """Wait for the end of a call; no result where it is tried again, given up or left."""
        try:
            key = self._ended.get(timeout=self._patience())
        except Empty:
            return self._cut(), _NOTHING
        flight = self._flights.get(key)
        if flight is None or flight.future is None or not flight.future.done():
            return None, _NOTHING
        try:
            result = flight.future.result()
        except (Exception, CancelledError) as error:
            if self._over and (_lost(error) or isinstance(error, CancelledError)):
                return self._leave(key), _NOTHING
            if _lost(error):
                return self._again(key, flight, error), _NOTHING
            if _gone(error):
                return self._last(error)
            raise
        if isinstance(result, Answer) and result.left is not None:
            if not self._over and time.monotonic() < self._ends:
                return self._too_early(key, flight, result.where, result.left - time.time()), _NOTHING
            return self._leave(key), _NOTHING
        del self._flights[key]
        return key, self._read(result) if isinstance(result, Answer) else result

    def _patience(self) -> float | None:
        """Seconds until no call may be begun any more; None where nothing is to be done then."""
        return None if self._over or self._ends == math.inf else max(0.0, self._ends - time.monotonic())

    def _cut(self) -> None:
        """Leave what no worker has begun; an executor that cannot tell asks its workers, who look at the time."""
        self._over = True
        drop = getattr(self._own if self._given is None else self._given, "drop_waiting", None)
        if drop is not None:
            drop()

    def _leave(self, key: Hashable) -> Hashable:
        del self._flights[key]
        self._state.total -= 1
        return key

    def _too_early(self, key: Hashable, flight: _Flight, where: str, ahead: float) -> None:
        """Submit a call once more that a worker left because its clock is ahead of this one."""
        if ahead > self._ahead:
            if not self._ahead:
                warn(f"the clock of worker {where} is {ahead:.0f} s ahead of this machine's; set them by one source")
            self._ahead = ahead
        self._submit(key, flight)

    def _again(self, key: Hashable, flight: _Flight, error: BaseException) -> Hashable:
        """Submit a call whose worker was lost once more, or give it up; the key that has ended."""
        flight.attempt += 1
        self._state.lost += 1
        if flight.attempt <= RETRIES and type(error).__name__ != "KilledWorker":
            self._submit(key, flight)
            report(self._state)
            return None
        del self._flights[key]
        self._state.done += 1
        self._state.failed += 1
        self._gone.append(f"{title(flight.job)} ({error})")
        report(self._state)
        if len(self._gone) >= POISONED:
            raise self._poison() from error
        return key

    def _poison(self) -> InputError:
        return InputError(
            f"{'; '.join(self._gone)}: the process that trained was ended from outside every time, by the system where "
            "memory ran out or by the task itself; what else was finished is kept: give runs more memory or call again "
            "with fewer --workers"
        )

    def _last(self, error: BaseException) -> tuple[Hashable, Any]:
        """Hand out what had come in before the engine went, one by one, then raise."""
        for key, flight in self._flights.items():
            future = flight.future
            if future is not None and future.done() and not future.cancelled() and future.exception() is None:
                del self._flights[key]
                self._ended.put(next(iter(self._flights), None))
                return key, self._read(future.result())
        raise _engine_gone(error) from error

    def _read(self, answer: Answer) -> Any:
        for name, value in answer.versions.items():
            if self._machines.setdefault(name, value) != value:
                warn(
                    f"workers differ in {name}: {self._machines[name]} and {value} ({answer.where}); curves may differ "
                    "in their last digits"
                )
                self._machines[name] = value
        return answered(answer)


def width(executor: Executor | None, workers: int | None, device: str = "cpu") -> int:
    """Return how many calls run at once.

    Args:
        executor: as given to a Session.
        workers: as given to a Session; said of an executor, it is believed.
        device: where the calls compute.

    Returns:
        At least 1; 1 where an executor does not say.
    """
    if executor is None or workers is not None:
        return processes(workers, device)
    client = getattr(executor, "_client", None)  # of Dask's own executor
    if client is not None:
        return max(1, len(client.nthreads()))  # a run has a process to itself, whatever its threads
    told = getattr(executor, "workers", None) or getattr(executor, "_max_workers", None)
    return told if isinstance(told, int) else 1


def title(job: Any) -> str:
    """Return what a job is called.

    Args:
        job: of a call.

    Returns:
        Its arm or batch, and its seed, where it has them.

    Example:
        >>> title(7)
        '7'
    """
    parts = []
    if (arm := getattr(job, "arm", None)) is not None:
        parts.append(f"arm {arm}")
    elif (recipe := getattr(job, "recipe", None)) is not None:
        parts.append(f"batch {recipe.batch.size}, lr {recipe.optimizer.lr:g}")
    if (seed := getattr(job, "seed", None)) is not None:
        parts.append(f"seed {seed}")
    return ", ".join(parts) or str(job)[:80]


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _lost(error: BaseException) -> bool:
    return isinstance(error, WorkerLost) or "distributed.KilledWorker" in _names(error)


def _gone(error: BaseException) -> bool:
    """Whether an error is one of the engine, and not of a call."""
    kind = isinstance(error, (BrokenExecutor, CancelledError, EngineError))
    return kind or any(name.split(".")[0] in _ENGINES for name in _names(error))


def _engine_gone(error: BaseException) -> EngineError:
    why = str(error).strip() or "its calls were cancelled from outside"
    return EngineError(
        f"what runs the calls is gone ({type(error).__name__}: {why}); finished runs are kept, and the same command "
        "trains only what is missing once it is back"
    )


def as_done(
    function: Callable[[_Item], _Result],
    jobs: Sequence[_Item],
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
) -> Generator[tuple[int, _Result]]:
    """Run jobs and yield each result as it comes; whoever stops early ends what still runs.

    Args:
        function: of one job, importable by name.
        jobs: the jobs; the longest should come first.
        workers: as in Session.
        executor: as in Session.
        device: as in Session.

    Yields:
        Index of the job and its result.
    """
    with closing(Session(executor, workers=workers, device=device)) as session:
        for index, job in enumerate(jobs):
            session.add(index, function, job)
        yield from session.done(range(len(jobs)))


def map_jobs(
    function: Callable[[_Item], _Result],
    jobs: Iterable[_Item],
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    on_done: Callable[[_Result], None] | None = None,
) -> list[_Result]:
    """Run jobs in parallel, one thread each.

    Args:
        function: of one job, importable by name.
        jobs: the jobs; the longest should come first.
        workers: as in Session.
        executor: as in Session.
        device: as in Session.
        on_done: called in this process with each result as it comes.

    Returns:
        Results in the order of the jobs.
    """
    todo = list(jobs)
    results: dict[int, _Result] = {}
    for index, result in as_done(function, todo, workers=workers, executor=executor, device=device):
        results[index] = result
        if on_done is not None:
            on_done(result)
    return [results[index] for index in range(len(todo))]
