"""Real processes on this machine: forked gloo ranks that exchange, and that train the digits."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from isobatch.decentralized import Decentralized
from isobatch.decentralized.graphs import build
from isobatch.decentralized.mail import Mail
from isobatch.errors import IsobatchError
from isobatch.tasks import make_run
from isobatch_studies.decentlam.digits import RECIPE, Cell, batches, by_class, loss, rate_at

SIZES = (4_096, 65_536, 1_048_576, 4_194_304, 16_777_216)


def ranks(count: int, action: Callable[[int], Any], timeout: float = 300.0) -> list[Any]:
    """Run action(rank) in forked gloo ranks.

    Args:
        count: of processes.
        action: returns plain values.
        timeout: seconds for all of it.

    Returns:
        What each rank returned.

    Raises:
        IsobatchError: a rank failed, or the time is over.
    """
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # what it loads on first use is loaded here, not in every fork
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [context.Process(target=_rank, args=(rank, count, Path(folder), action)) for rank in range(count)]
        for job in jobs:
            job.start()
        deadline = time.monotonic() + timeout
        for job in jobs:
            job.join(max(0.0, deadline - time.monotonic()))
        failed = [rank for rank, job in enumerate(jobs) if job.exitcode != 0]
        for job in jobs:
            job.kill()
        if failed:
            raise IsobatchError(f"ranks {failed} of {count} failed or did not end within {timeout:g} s")
        return [json.loads((Path(folder) / f"{rank}.json").read_text("utf-8")) for rank in range(count)]


def measure(count: int = 4, repeats: int = 12) -> list[dict[str, Any]]:
    """Time exchanges with one and two neighbours and all-reduce, for several sizes.

    Args:
        count: of processes.
        repeats: of each; the best repeat of the slowest rank counts, because other work only ever slows one down.

    Returns:
        Rows: kind, degree, bytes, seconds.
    """
    found = ranks(count, lambda rank: _timed(rank, count, repeats))
    rows = []
    for place, row in enumerate(found[0]):
        slowest = [max(times) for times in zip(*(part[place]["seconds"] for part in found), strict=True)]
        rows.append({**row, "seconds": min(slowest)})
    return rows


def train_real(cell: Cell) -> list[float]:
    """Train a cell's first seed with one process a node.

    Args:
        cell: of as many nodes as processes.

    Returns:
        Accuracy and loss of the exact average.
    """
    make_run(RECIPE, 0)  # the data are loaded once, before the fork
    one = replace(cell, seeds=1)
    return ranks(cell.nodes, lambda rank: _digits(one, rank))[0]


def _rank(rank: int, count: int, folder: Path, action: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "meeting"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=120))
    (folder / f"{rank}.json").write_text(json.dumps(action(rank)), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _timed(rank: int, count: int, repeats: int) -> list[dict[str, Any]]:
    mail, rows, tag = Mail(), [], 0
    for size in SIZES:
        value = torch.zeros(size // 4)
        for degree in (1, 2, 0):
            times = []
            steps = (1, -1)[:degree]
            for _ in range(repeats):
                dist.barrier()
                began, tag = time.perf_counter(), tag + 1
                if degree:
                    sources, targets = ([(rank + sign * s) % count for s in steps] for sign in (-1, 1))
                    mail.post(value, tag, sources, targets).collect(time.monotonic() + 60)
                else:
                    dist.all_reduce(value)
                times.append(time.perf_counter() - began)
            kind = "exchange" if degree else "all-reduce"
            rows.append({"kind": kind, "degree": degree, "bytes": size, "seconds": times})
    mail.close(10.0)
    return rows


def _digits(cell: Cell, rank: int) -> list[float]:
    run = make_run(RECIPE, 0)
    beta = 0.0 if cell.method == "dsgd" else cell.beta
    inner = torch.optim.SGD(run.model.parameters(), lr=cell.rate, momentum=beta)
    optimizer = Decentralized(inner, build(cell.graph, cell.nodes), cell.method)
    x, y = by_class(run.samples, cell.nodes)
    for count, chosen in enumerate(batches(cell, y.shape[1])):
        for group in inner.param_groups:
            group["lr"] = rate_at(cell, count)
        inner.zero_grad()
        loss(run.model, (x[rank, chosen[rank]], y[rank, chosen[rank]])).backward()
        optimizer.step()
    with optimizer.averaged():
        metrics = run.evaluate()
    optimizer.close()
    return [metrics["accuracy"], metrics["loss"]]
