"""Resumable work: every finished run is a small file, and a second call trains only what is missing."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from isobatch.report import prepare, write
from isobatch.verify.workers import Curve, Job, map_jobs, train_curve


def train_all(
    jobs: Iterable[Job],
    folder: Path | None,
    *,
    workers: int | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> list[Curve]:
    """Train jobs, keeping each finished curve in a folder; those found there are not trained again.

    Args:
        jobs: the runs, each with its own (arm, seed).
        folder: where curves are kept; None keeps nothing.
        workers: processes, one a core unless given.
        on_done: called with each curve, found or trained.

    Returns:
        Curves in the order of the jobs.
    """
    todo = list(jobs)
    if folder is None:
        return map_jobs(train_curve, todo, workers=workers, on_done=on_done)
    place = prepare(folder / "cells")
    names = {(job.arm, job.seed): name(job) for job in todo}
    found = {key: curve for key, file in names.items() if (curve := _read(place / file)) is not None}
    for curve in found.values():
        if on_done is not None:
            on_done(curve)

    def keep(curve: Curve) -> None:
        write(place / names[curve.arm, curve.seed], json.dumps(asdict(curve)))
        if on_done is not None:
            on_done(curve)

    missing = [job for job in todo if (job.arm, job.seed) not in found]
    missing.sort(key=lambda job: job.recipe.batch.size)
    for curve in map_jobs(train_curve, missing, workers=workers, on_done=keep) if missing else ():
        found[curve.arm, curve.seed] = curve
    return [found[job.arm, job.seed] for job in todo]


def name(job: Job) -> str:
    """Return the file name of a job's curve: a hash of everything that decides it.

    Args:
        job: the run.

    Returns:
        A file name.
    """
    values = [job.recipe.model_dump(mode="json"), job.seed, job.stream, job.stops]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24] + ".json"


def _read(path: Path) -> Curve | None:
    try:
        return Curve(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
