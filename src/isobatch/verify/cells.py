"""Resumable work: every finished run is a small file, and a second call runs only what is missing."""

import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from isobatch.executors import Session
from isobatch.plan import Recipe
from isobatch.report import prepare, write
from isobatch.verify.workers import Curve, Job, read_curve, train_curve

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Key = tuple[str, int]


def train_all(
    groups: Sequence[Sequence[Job]],
    folder: Path | None,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    budget: float | None = None,
    on_done: Callable[[Curve], None] | None = None,
    checkpoints: bool = False,
) -> dict[str, list[Curve]]:
    """Train groups of jobs in order, keeping each finished curve in a folder; those found there are not trained again.

    Args:
        groups: runs that belong together, each with its own (arm, seed).
        folder: where curves are kept; None keeps nothing.
        workers: processes, one a core unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        budget: seconds after which no run is begun; groups that it does not complete are left for the next call.
        on_done: called with each curve, found or trained.
        checkpoints: keep a run at each of its stops too, in the folder's `unfinished`, by workers that share its disk;
            for runs of many minutes.

    Returns:
        arm -> curves by seed, of complete groups only.
    """
    curves: dict[str, list[Curve]] = {}
    ends = until(budget)
    function = partial(train_on, folder=folder) if checkpoints and folder is not None else train_curve
    for jobs in groups:
        found = run_all(
            function,
            jobs,
            folder,
            name=name,
            read=read_curve,
            workers=workers,
            executor=executor,
            device=jobs[0].device if jobs else "cpu",
            ends=ends,
            on_done=on_done,
        )
        # one run may be kept for several arms: it bears the name of the one that asks
        named = [replace(curve, arm=job.arm) for job, curve in zip(jobs, found or (), strict=found is not None)]
        for curve in sorted(named, key=lambda curve: (curve.arm, curve.seed)):
            curves.setdefault(curve.arm, []).append(curve)
        if found and checkpoints and folder is not None:
            for job in jobs:
                shutil.rmtree(_unfinished(job, folder), ignore_errors=True)
    return curves


def until(budget: float | None) -> float:
    """Return when a budget that begins now is over.

    Args:
        budget: seconds; None for no end.

    Returns:
        A time of `time.monotonic`.

    Example:
        >>> until(None)
        inf
    """
    return math.inf if budget is None else time.monotonic() + budget


def train_on(job: Job, folder: Path) -> Curve:
    """Train one run, from the last of its stops that an earlier call reached.

    Args:
        job: the run.
        folder: of all runs; `unfinished` in it holds a folder for each that has begun.

    Returns:
        Its curve.
    """
    shared = folder.is_dir()  # made by the caller: a worker on another disk keeps nothing, and starts again when lost
    return train_curve(job, _unfinished(job, folder) if shared else None)


def _unfinished(job: Job, folder: Path) -> Path:
    return folder / "unfinished" / name(job).removesuffix(".json")


def run_all(
    function: Callable[[_Item], _Result],
    jobs: Sequence[_Item],
    folder: Path | None,
    *,
    name: Callable[[_Item], str],
    read: Callable[[dict[str, Any]], _Result],
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    session: Session | None = None,
    ahead: Sequence[_Item] = (),
    ends: float = math.inf,
    on_done: Callable[[_Result], None] | None = None,
) -> list[_Result] | None:
    """Run the jobs whose results are not kept in a folder yet, and keep theirs.

    Args:
        function: of one job, importable by name; its result is a dataclass of plain values.
        jobs: that belong together.
        folder: where results are kept, in its `cells`; None keeps nothing.
        name: file name of a job's result: a hash of everything that decides it. The caller's process alone writes.
        read: a result from its plain values; ValueError or TypeError means that the job is run again. A result that is
            kept under the same name for another job bears what that job wrote into it.
        workers: processes, one a core unless given.
        executor: runs the jobs, any `concurrent.futures.Executor`; None for processes of this machine.
        device: where the jobs compute.
        session: of an executor, kept open by the caller, instead of one for this call.
        ahead: jobs that a later call with the same session will want: they run where nothing else waits.
        ends: time of `time.monotonic` after which nothing missing is begun.
        on_done: called with each result, found or new.

    Returns:
        Results in the order of the jobs; None where some are missing because the time was over.
    """
    place = None if folder is None else prepare(folder / "cells")
    results: dict[_Key, _Result] = {}
    wanted, later = _keyed(jobs, name), _keyed(ahead, name)

    def arrived(key: _Key, result: _Result) -> None:
        results[key] = result
        if on_done is not None:
            on_done(result)

    with ExitStack() as stack:
        made = session or stack.enter_context(closing(Session(executor, workers=workers, device=device, ends=ends)))
        for key in wanted:
            found = made.early.pop(key, None) or (None if place is None else _read(place / key[0], read))
            if found is not None:
                arrived(key, found)
        if len(results) < len(wanted) and time.monotonic() >= ends:
            return None
        for key, job in {**wanted, **later}.items():
            if key not in results and not (key in later and place is not None and _read(place / key[0], read)):
                made.add(key, function, job)
        for key, result in made.done(key for key in wanted if key not in results):
            if place is not None:
                write(place / key[0], json.dumps(asdict(result)))
            if key in wanted:
                arrived(key, result)
            else:
                made.early[key] = result
    return [results[key] for key in wanted] if len(results) == len(wanted) else None


def _keyed(jobs: Sequence[_Item], name: Callable[[_Item], str]) -> dict[_Key, _Item]:
    """Jobs by file name, and by a number where several are one run under other names."""
    seen: Counter[str] = Counter()
    keyed = {}
    for job in jobs:
        file = name(job)
        keyed[file, seen[file]] = job
        seen[file] += 1
    return keyed


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Return the jobs whose curves are not kept yet.

    Args:
        jobs: of a comparison.
        folder: where curves are kept, in its `cells`.

    Returns:
        Those still to be trained.
    """
    return [job for job in jobs if not (folder / "cells" / name(job)).is_file()]


def name(job: Job) -> str:
    """Return the file name of a job's curve: a hash of everything that decides it.

    Args:
        job: the run.

    Returns:
        A file name.
    """
    where = () if job.device == "cpu" else (job.device,)
    return hashed(run_values(job.recipe), job.seed, job.stream, job.stops, *where)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, defaults left out: a field that comes later changes no name.

    Args:
        recipe: the recipe.

    Returns:
        Nested plain values.
    """
    return recipe.model_dump(mode="json", exclude_defaults=True)


def run_values(recipe: Recipe) -> dict[str, Any]:
    """Return what decides a recipe's run: its values without the stamp of a plan, which only the next plan reads.

    Args:
        recipe: of the run.

    Returns:
        Nested plain values.
    """
    return {key: value for key, value in recipe_values(recipe).items() if key != "planned"}


def hashed(*values: object) -> str:
    """Return a file name that plain values decide.

    Args:
        *values: everything that decides a run.

    Returns:
        A file name.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24] + ".json"


def _read(path: Path, read: Callable[[dict[str, Any]], _Result]) -> _Result | None:
    try:
        return read(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
