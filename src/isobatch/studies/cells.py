"""Resumable work: every finished run is a small file, and a second call trains only what is missing."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from isobatch.report import prepare, write
from isobatch.verify.workers import Curve, Job, map_jobs, train_curve


def train_all(
    groups: Sequence[Sequence[Job]],
    folder: Path | None,
    *,
    workers: int | None = None,
    budget: float | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> dict[str, list[Curve]]:
    """Train groups of jobs in order, keeping each finished curve in a folder; those found there are not trained again.

    Args:
        groups: runs that belong together, each with its own (arm, seed); no group is begun after the budget.
        folder: where curves are kept; None keeps nothing.
        workers: processes, one a core unless given.
        budget: seconds; groups that it does not reach are left for the next call.
        on_done: called with each curve, found or trained.

    Returns:
        arm -> curves by seed, of complete groups only.
    """
    place = None if folder is None else prepare(folder / "cells")
    began, curves = time.monotonic(), {}
    for jobs in groups:
        found = {
            (job.arm, job.seed): curve for job in jobs if place and (curve := _read(place / name(job))) is not None
        }
        for curve in found.values():
            if on_done is not None:
                on_done(curve)
        missing = [job for job in jobs if (job.arm, job.seed) not in found]
        if missing and budget is not None and time.monotonic() - began > budget:
            continue
        files = {(job.arm, job.seed): name(job) for job in missing}

        def keep(curve: Curve, files: dict[tuple[str, int], str] = files) -> None:
            if place is not None:
                write(place / files[curve.arm, curve.seed], json.dumps(asdict(curve)))
            if on_done is not None:
                on_done(curve)

        for curve in map_jobs(train_curve, missing, workers=workers, on_done=keep) if missing else ():
            found[curve.arm, curve.seed] = curve
        for key in sorted(found):
            curves.setdefault(key[0], []).append(found[key])
    return curves


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
