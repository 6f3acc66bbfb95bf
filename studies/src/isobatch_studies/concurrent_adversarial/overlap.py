"""The time of an update: clean, on twice the rows, with directions made before it, and made by another process."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.workers import Curve

ARMS = ("clean", "same rows", "sequential", "concurrent")


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Args:
        rounds: of all arms, in turn.
        steps: updates of an arm in a round, after one that is not timed.
        width: channels of the first layer.
        batch: B.
    """

    rounds: int
    steps: int
    width: int
    batch: int


def timed(job: Timing) -> Curve:
    """Time the four arms in a process of its own beside one that helps; both have one thread.

    Args:
        job: the measurement.

    Returns:
        A curve whose values are milliseconds an update by round, the bytes that travel, and the machine's load.

    Raises:
        RuntimeError: one of the two processes failed.
    """
    context, began = multiprocessing.get_context("spawn"), time.perf_counter()
    here, there = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        both = [context.Process(target=_process, args=(job, rank, meeting, there)) for rank in range(2)]
        for process in both:
            process.start()
        there.close()
        try:
            values = here.recv()
        except EOFError:
            values = None
        for process in both:
            process.join()
    if values is None or any(process.exitcode for process in both):
        raise RuntimeError(f"the timing failed: exit codes {[process.exitcode for process in both]}")
    return Curve("overlap", 0, {"raw": values}, job.rounds * job.steps, time.perf_counter() - began)


def summary(curve: Curve) -> dict[str, Any]:
    """Return the ratios of a timing: medians over rounds of ratios within a round.

    Args:
        curve: from `timed`.

    Returns:
        sequential and concurrent over the same rows, what is hidden, over a clean update, bytes, load, rounds.
    """
    values = curve.values["raw"]
    rounds = [dict(zip(ARMS, found, strict=True)) for found in zip(*(values[arm] for arm in ARMS), strict=True)]
    sequential = statistics.median(r["sequential"] / r["same rows"] for r in rounds)
    concurrent = statistics.median(r["concurrent"] / r["same rows"] for r in rounds)
    return {
        "rounds": len(rounds),
        "sequential": round(sequential, 4),
        "concurrent": round(concurrent, 4),
        "hidden": round((sequential - concurrent) / (sequential - 1), 4) if sequential > 1 else 0.0,
        "over_clean": round(statistics.median(r["concurrent"] / r["clean"] for r in rounds), 4),
        "sequential_over_clean": round(statistics.median(r["sequential"] / r["clean"] for r in rounds), 4),
        "milliseconds": {arm: round(statistics.median(values[arm]), 3) for arm in ARMS},
        "rounds_by_arm": {arm: [round(v, 3) for v in values[arm]] for arm in ARMS},
        "bytes": {name: int(values[name][0]) for name in ("sent", "received")},
        "load": values["load"][0],
        "cores": int(values["cores"][0]),
    }


def _process(job: Timing, rank: int, meeting: str, out: Connection) -> None:
    import torch
    import torch.distributed as dist

    from isobatch.tasks import make_run
    from isobatch.train.pairs import Pair, help_out
    from isobatch.train.world import Device

    torch.set_num_threads(1)
    store = dist.FileStore(meeting, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=10))
    try:
        pair = Pair.current()
        if pair.helps:
            out.close()
            recipe = _recipe(job, adversary=True)
            help_out(make_run(recipe, 0), recipe, pair, device=Device())
        else:
            out.send(_measure(job, pair))
            out.close()
    finally:
        dist.destroy_process_group()


def _measure(job: Timing, pair: Any) -> dict[str, list[float]]:
    import torch

    from isobatch.augment.concurrently import DirectionProvider
    from isobatch.tasks import make_run
    from isobatch.train import Trainer
    from isobatch.train.pairs import helped

    class Ready(DirectionProvider):
        """Directions at hand: what the update itself costs on twice the rows."""

        def __call__(self, segment: tuple[int, int]) -> Callable[[], torch.Tensor]:
            return lambda: torch.ones(segment[1], 64, dtype=torch.int8)

        def settle(self) -> None:
            return None

    trainers = {}
    for arm in ARMS:
        recipe = _recipe(job, adversary=arm != "clean")
        trainers[arm] = Trainer(make_run(recipe, 0), recipe, world=pair.world)
    if trainers["same rows"].passes is not None:
        trainers["same rows"].passes.ahead_by(Ready())
    carrier = helped(trainers["concurrent"], pair)
    values: dict[str, list[float]] = {arm: [] for arm in ARMS}
    load = os.getloadavg()[0]
    for number in range(-2, job.rounds):  # two rounds to warm up
        shift = number % len(ARMS)
        for arm in ARMS[shift:] + ARMS[:shift]:
            trainers[arm].step()
            began = time.perf_counter()
            for _ in range(job.steps):
                trainers[arm].step()
            spent = time.perf_counter() - began
            carrier.drain()
            if number >= 0:
                values[arm].append(1e3 * spent / job.steps)
    carrier.close()
    travels = {"sent": [carrier.sent / carrier.requests], "received": [carrier.received / carrier.requests]}
    return values | travels | {"load": [load], "cores": [float(os.cpu_count() or 1)]}


def _recipe(job: Timing, *, adversary: bool) -> Recipe:
    return Recipe.parse(
        {
            "task": "digits-cnn",
            "batch": {"size": job.batch},
            "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
            "schedule": {"length": "1000 epochs"},
            "data_size": 1437,
            "options": {"width": job.width},
            **({"adversary": {"eps": 0.1, "weights": [0.5, 0.5], "bounds": [0.0, 1.0]}} if adversary else {}),
        }
    )
