"""Training many short runs: one process a core, one thread a process."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from isobatch.errors import NonFiniteError
from isobatch.plan import Recipe
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


def train_curve(job: Job) -> Curve:
    """Train one run and evaluate it at its stops.

    Args:
        job: the run.

    Returns:
        Its curve.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    began = time.perf_counter()
    run = make_run(job.recipe, job.seed)
    trainer = Trainer(run, job.recipe, order_seed=job.order_seed, device=Device.parse(job.device))
    seen: list[dict[str, dict[str, float]]] = []
    stopped = ""
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
    return Curve(job.arm, job.seed, values, trainer.steps, time.perf_counter() - began, stopped, run.facts)


def time_step(job: Job) -> tuple[float, float, float]:
    """Measure a run's cost on a few steps.

    Args:
        job: the run; job.limit steps are timed.

    Returns:
        Seconds to make it, seconds per step, seconds per evaluation.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    began = time.perf_counter()
    device = Device.parse(job.device)
    trainer = Trainer(make_run(job.recipe, job.seed), job.recipe, order_seed=job.order_seed, device=device)
    trainer.step()
    made = time.perf_counter()
    steps = job.limit or 10
    try:
        for _ in range(steps):
            trainer.step()
    except NonFiniteError:
        return made - began, 0.0, 0.0
    trained = time.perf_counter()
    trainer.evaluate()
    return made - began, (trained - made) / steps, time.perf_counter() - trained


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
    todo, count = list(jobs), processes(workers)
    results: dict[int, _Result] = {}
    if not todo:
        return []
    if count == 1:
        for index, job in enumerate(todo):
            results[index] = function(job)
            if on_done is not None:
                on_done(results[index])
        return [results[index] for index in range(len(todo))]
    method = "fork" if fork and "fork" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "fork":
        _load()
    context = multiprocessing.get_context(method)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(count, len(todo)), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(function, job): index for index, job in enumerate(todo)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                if on_done is not None:
                    on_done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
    return [results[index] for index in range(len(todo))]


def _load() -> None:
    """Load torch and what its optimizers load on first use, once here instead of once a process."""
    import torch

    torch.optim.SGD([torch.zeros(1)], lr=0.1)


def _one_thread() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
