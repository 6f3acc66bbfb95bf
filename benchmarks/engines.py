"""What an engine costs: 200 tiny runs through each, in one interleaved run, and a thousand workers that only sleep.

    python benchmarks/engines.py --json benchmarks/results/engines.json

A round makes `--runs` calls through every engine, one engine after the other in an order that turns, each with two
workers that are warm; the ratio of an engine is the median over rounds of its seconds over those of the local pool in
the same round, with its quartiles. `plain` is the standard library's own pool, what there was before executors could be
chosen. submitit starts a process a run, so it makes `--jobs` runs and is compared per run. The thousand workers are one
Dask scheduler with a thousand slots whose tasks sleep; measured is what the caller's process uses of a core, and its
memory.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from isobatch import Recipe
from isobatch.executors import LocalExecutor, Session, map_jobs, opened
from isobatch.executors.remote import Answer, Call
from isobatch.report import versions
from isobatch.verify.workers import Job, train_curve

RECIPE = {
    "task": "quadratic",
    "data_size": 256,
    "batch": {"size": 8},
    "optimizer": {"name": "sgd", "lr": 0.008},
    "schedule": {"length": "256 samples", "warmup": "0 samples"},
}
"""32 steps: a few milliseconds, so that what is timed is the engine."""
WORKERS, REST = 1000, 10.0
"""Slots of the scheduler, and seconds that each of its calls sleeps."""


def jobs(count: int) -> list[Job]:
    recipe = Recipe.parse(RECIPE)
    return [Job("a", recipe, seed, 0, (0, 256)) for seed in range(count)]


def dask(stack: ExitStack) -> Executor:
    from distributed import LocalCluster

    cluster = stack.enter_context(
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="tcp", dashboard_address=None)
    )
    return stack.enter_context(opened(cluster.scheduler_address.replace("tcp://", "dask://")))


def ray(stack: ExitStack) -> Executor:
    import ray as engine

    engine.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    stack.callback(engine.shutdown)
    return stack.enter_context(opened("ray"))


def plain(stack: ExitStack) -> Executor:
    context = multiprocessing.get_context("fork")
    return stack.enter_context(ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)))


def local(stack: ExitStack) -> Executor:
    return stack.enter_context(LocalExecutor(2))


def seconds(name: str, executor: Executor, made: list[Job]) -> float:
    """The local pool is used as `executor=None` uses it: without bundles and versions, like the plain one."""
    began = time.perf_counter()
    if name in ("local", "plain"):
        found = [future.result() for future in [executor.submit(train_curve, job) for job in made]]
    else:
        found = map_jobs(train_curve, made, executor=executor)
    assert len(found) == len(made)
    return time.perf_counter() - began


def interleaved(rounds: int, runs: int, wanted: list[str]) -> dict[str, list[float]]:
    makers = {"local": local, "plain": plain, "dask": dask, "ray": ray}
    made, times = jobs(runs), {name: [] for name in wanted}
    with ExitStack() as stack:
        engines = {name: makers[name](stack) for name in wanted}  # those that fork first, before any thread is there
        for name, executor in engines.items():
            seconds(name, executor, made[:20])
        for turn in range(rounds):
            order = [*wanted[turn % len(wanted) :], *wanted[: turn % len(wanted)]]
            for name in order:
                times[name].append(seconds(name, engines[name], made))
            print(turn, {name: round(found[-1], 2) for name, found in times.items()}, file=sys.stderr)
    return times


def submitit(count: int) -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(f"slurm:cluster=local,folder={folder}", workers=2) as executor,
    ):
        return seconds("submitit", executor, jobs(count))


def ratio(times: list[float], local: list[float]) -> dict[str, float]:
    found = sorted(mine / theirs for mine, theirs in zip(times, local, strict=True))
    low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return {
        "over local": round(statistics.median(found), 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "ms a run": round(1e3 * statistics.median(times) / 200, 2),
        "rounds": len(times),
    }


class Sleepers(Executor):
    """Sends every call to the engine as it is, where it is answered without being made."""

    def __init__(self, engine: Executor):
        self.engine = engine

    def submit(self, fn, /, *args, **kwargs) -> Future:
        return self.engine.submit(rest, *args)


def rest(made: Call) -> Answer:
    time.sleep(REST)
    return Answer(made.work, "asleep", made.versions)


def simulated(tasks: int) -> dict[str, float]:
    """A Dask scheduler in a process of its own with a thousand slots; what the caller spends."""
    code = (
        "import distributed, sys\n"
        "if __name__ == '__main__':\n"
        "    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1000, processes=False,\n"
        "                                       protocol='tcp', dashboard_address=None)\n"
        "    print(cluster.scheduler_address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = engine.stdout.readline().strip().replace("tcp://", "dask://")
        with opened(address) as executor:
            return spent(Sleepers(executor), tasks)
    finally:
        engine.kill()
        engine.wait()


def spent(executor: Executor, tasks: int) -> dict[str, float]:
    began, used = time.perf_counter(), time.process_time()
    with closing(Session(executor, workers=WORKERS)) as session:
        for index, job in enumerate(jobs(tasks)):
            session.add(index, train_curve, job)
        assert sum(1 for _ in session.done(range(tasks))) == tasks
    wall, core = time.perf_counter() - began, time.process_time() - used
    return {
        "tasks": tasks,
        "workers": WORKERS,
        "seconds": round(wall, 1),
        "cores of the caller": round(core / wall, 3),
        "caller's ms a task": round(1e3 * core / tasks, 2),
        "caller's peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=3000)
    parser.add_argument("--engines", default="local,plain,dask,ray")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    wide = simulated(chosen.tasks) if chosen.tasks else None
    times = interleaved(chosen.rounds, chosen.runs, chosen.engines.split(","))
    rows = {name: ratio(found, times["local"]) for name, found in times.items()}
    found = {"versions": versions(), "load before": os.getloadavg()[0], "runs": chosen.runs, "rows": rows}
    if chosen.jobs:
        each = submitit(chosen.jobs) / chosen.jobs
        base = statistics.median(times["local"]) / chosen.runs
        found["submitit"] = {"seconds a run": round(each, 2), "over local": round(each / base), "runs": chosen.jobs}
    found["a thousand workers"] = wide
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
