"""Training many short runs: one process a core, one thread a process."""

import math
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from isobatch.errors import InputError, IsobatchError, NonFiniteError
from isobatch.plan import Recipe
from isobatch.tasks.metric import Metric
from isobatch.units import whole

_ARM_STRIDE = 1_000_003
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Job:
    """One run to train.

    Args:
        arm: name of the arm.
        recipe: its numbers.
        seed: of the initial weights, shared by all arms.
        stream: of the sample order, its own for every arm.
        stops: samples at which to evaluate, rising, the first may be 0.
        limit: stop after this many steps (timing only), None for the whole run.
        device: device and its options in one word, as `isobatch.train.Device.parse` reads it.
    """

    arm: str
    recipe: Recipe
    seed: int
    stream: int
    stops: tuple[int, ...]
    limit: int | None = None
    device: str = "cpu"

    @property
    def order_seed(self) -> int:
        """Seed of the sample order: independent between arms."""
        return self.seed + _ARM_STRIDE * (self.stream + 1)


@dataclass
class Curve:
    """What one run gave.

    Args:
        arm: name of the arm.
        seed: of the initial weights.
        values: model ("raw", "average") -> metric -> value at each stop; NaN after a divergence.
        steps: optimizer steps.
        seconds: time spent.
        stopped: why the run stopped early, empty when it did not.
        facts: what the task says of its data.
    """

    arm: str
    seed: int
    values: dict[str, dict[str, list[float]]]
    steps: int
    seconds: float
    stopped: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """What is known of a kind of run before any is trained.

    Args:
        making: seconds to make it.
        step: seconds per step; 0 where the first steps already left the finite.
        evaluation: seconds per evaluation.
        declared: what the task says of its metrics.
        first: model -> metric -> value before the first step.
    """

    making: float
    step: float
    evaluation: float
    declared: dict[str, Metric]
    first: dict[str, dict[str, float]]


def train_curve(job: Job) -> Curve:
    """Train one run and evaluate it at its stops; its random numbers are its own, so that it can be made again.

    Args:
        job: the run.

    Returns:
        Its curve.

    Raises:
        InputError: a task of the user's that fails.
    """
    began = time.perf_counter()
    seen: list[dict[str, dict[str, float]]] = []
    stopped = ""
    with _own_numbers(job), _named(job):
        trainer = _trainer(job)
        for stop in job.stops:
            try:
                trainer.train_to(stop)
            except NonFiniteError as error:
                stopped = str(error)
                break
            seen.append(trainer.evaluate())
    values: dict[str, dict[str, list[float]]] = {}
    for model, metrics in (seen[0] if seen else {}).items():
        values[model] = {name: [point[model][name] for point in seen] for name in metrics}
        for series in values[model].values():
            series.extend([math.nan] * (len(job.stops) - len(seen)))
    return Curve(job.arm, job.seed, values, trainer.steps, time.perf_counter() - began, stopped, trainer.run.facts)


def probe(job: Job) -> Probe:
    """Evaluate a run before its first step, and measure its cost on a few.

    Args:
        job: the run; job.limit steps are timed.

    Returns:
        Times, declared metrics and first values.
    """
    with _own_numbers(job), _named(job):
        began = time.perf_counter()
        trainer = _trainer(job)
        made = time.perf_counter()
        first = trainer.evaluate()
        evaluated = time.perf_counter()
        steps, spent = job.limit or 10, 0.0
        try:
            trainer.step()
            warm = time.perf_counter()
            for _ in range(steps):
                trainer.step()
            spent = (time.perf_counter() - warm) / steps
        except NonFiniteError:
            spent = 0.0
    return Probe(made - began, spent, evaluated - made, dict(trainer.run.declared), first)


def _trainer(job: Job) -> Any:
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    run = make_run(job.recipe, job.seed)
    _seed_all(job.order_seed)
    return Trainer(run, job.recipe, order_seed=job.order_seed, device=Device.parse(job.device))


@contextmanager
def _own_numbers(job: Job) -> Generator[None]:
    """Give a run random numbers of its own (torch, numpy, random), and leave the process's alone."""
    import numpy as np
    import torch

    cuda = list(range(torch.cuda.device_count())) if job.device.startswith("cuda") else []
    before, held = np.random.get_state(), random.getstate()  # noqa: NPY002 - what tasks may use
    with torch.random.fork_rng(devices=cuda):
        _seed_all(job.seed)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
            random.setstate(held)


def _seed_all(seed: int) -> None:
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def _named(job: Job) -> Generator[None]:
    """Turn what a user's task raises into bad input that says which run it was."""
    try:
        yield
    except (IsobatchError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # whatever the user's task does
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"task={job.recipe.task!r} failed in arm {job.arm}, seed {job.seed}: {type(error).__name__}: {error} "
            f"({last.filename}:{last.lineno}, in {last.name}); ISOBATCH_TRACEBACK=1 shows the whole traceback"
        ) from error


def processes(workers: int | None) -> int:
    """Return how many processes to use.

    Args:
        workers: as asked; None for one a core.

    Returns:
        At least 1.

    Raises:
        InputError: not a positive whole number.
    """
    if workers is not None:
        return whole("workers", workers)
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def map_jobs(
    function: Callable[[_Item], _Result],
    jobs: Iterable[_Item],
    *,
    workers: int | None = None,
    on_done: Callable[[_Result], None] | None = None,
    fork: bool = True,
) -> list[_Result]:
    """Run jobs in parallel processes of one thread each.

    Args:
        function: of one job; it must be importable by name.
        jobs: the jobs; the longest should come first.
        workers: processes; one a core unless given, 1 stays in this process.
        on_done: called in this process with each result as it comes.
        fork: fork processes where the system can; a GPU needs them spawned.

    Returns:
        Results in the order of the jobs.
    """
    todo = list(jobs)
    results: dict[int, _Result] = {}
    for index, result in as_done(function, todo, workers=workers, fork=fork):
        results[index] = result
        if on_done is not None:
            on_done(result)
    return [results[index] for index in range(len(todo))]


def as_done(
    function: Callable[[_Item], _Result], jobs: Sequence[_Item], *, workers: int | None = None, fork: bool = True
) -> Generator[tuple[int, _Result]]:
    """Run jobs as `map_jobs` does and yield each result as it comes; whoever stops early ends what still runs.

    Args:
        function: of one job.
        jobs: the jobs.
        workers: processes.
        fork: as in `map_jobs`.

    Yields:
        Index of the job and its result.
    """
    count = processes(workers)
    if not jobs:
        return
    if count == 1:
        for index, job in enumerate(jobs):
            yield index, function(job)
        return
    method = "fork" if fork and "fork" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "fork":
        _load()
    context = multiprocessing.get_context(method)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(count, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(function, job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


def _load() -> None:
    """Load torch and what its optimizers load on first use, once here instead of once a process."""
    import torch

    torch.optim.SGD([torch.zeros(1)], lr=0.1)


def _one_thread() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
