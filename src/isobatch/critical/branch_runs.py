"""One main run and its branches: the same state, gone on from at several batches by the plan's rules."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isobatch.critical.trial import measured
from isobatch.errors import InputError, NonFiniteError
from isobatch.plan import Recipe
from isobatch.verify.cells import hashed, run_values

MARKS = 8
"""Evaluations of a branch; the smoothed last one counts."""


@dataclass(frozen=True)
class BranchJob:
    """One main run and its branches.

    Args:
        recipe: of the main run.
        factors: of the branches' batches.
        start: samples at which they branch off.
        span: samples of each branch.
        seed: of the weights, where the main run is trained here, and of the sample order.
        metric: followed in the branches.
        checkpoint: folder of a stored main run, None to train it.
        device: device and its options in one word, as `isobatch.train.Device.parse` reads it.
    """

    recipe: Recipe
    factors: tuple[int, ...]
    start: int
    span: int
    seed: int
    metric: str
    checkpoint: str | None
    device: str = "cpu"


@dataclass
class BranchCurves:
    """What one main run's branches gave.

    Args:
        seed: of the job.
        seen: samples at which they branched off.
        curves: factor -> metric at the marks; shorter where a branch was lost.
    """

    seed: int
    seen: int
    curves: dict[str, list[float]]


def train_branches(job: BranchJob) -> BranchCurves:
    """Train one main run, or load it, and its branches.

    Args:
        job: what to train.

    Returns:
        The branches' curves.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer
    from isobatch.train.persistence import restore, state_of

    def fresh() -> Trainer:
        run, device = make_run(job.recipe, job.seed), Device.parse(job.device)
        return Trainer(run, job.recipe, order_seed=job.seed, device=device)

    main = fresh()
    if job.checkpoint is not None:
        restore(main, _stored(job.checkpoint))
    else:
        main.train_to(job.start)
    state, curves = copy.deepcopy(state_of(main)), {}
    for factor in job.factors:
        trainer = fresh()
        restore(trainer, copy.deepcopy(state), copy.deepcopy(state))
        curves[str(factor)] = _follow(trainer, factor * job.recipe.batch.size, job)
    return BranchCurves(job.seed, main.seen, curves)


def _follow(trainer: Any, batch: int, job: BranchJob) -> list[float]:
    values, start = [], trainer.seen
    for mark in marks(job.span, job.recipe.batch.size * job.factors[-1]):
        try:
            while trainer.seen < start + mark:
                trainer.step(min(batch, start + mark - trainer.seen))
        except NonFiniteError:
            return values
        values.append(measured(trainer.run.evaluate(), job.metric))
    return values


def marks(span: int, grid: int) -> list[int]:
    """Return the samples of a branch at which it is evaluated: eight, on whole steps of the largest batch.

    Args:
        span: samples of the branch.
        grid: the largest batch.

    Returns:
        Rising samples.

    Example:
        >>> marks(1000, 100)
        [100, 200, 300, 500, 600, 700, 800, 1000]
    """
    return [span * (i + 1) // MARKS // grid * grid for i in range(MARKS)]


def newest(folder: Path) -> Path:
    """Return the newest checkpoint of a run.

    Args:
        folder: of its checkpoints.

    Returns:
        The checkpoint's own folder.

    Raises:
        InputError: there is none.
    """
    from isobatch.checkpoint import Checkpoints

    step = Checkpoints(folder).latest() if folder.is_dir() else None
    if step is None:
        raise InputError(f"{folder} holds no checkpoint; `isobatch train --out DIR` writes to DIR/checkpoints")
    return step.path.resolve()


def _stored(folder: str) -> dict[str, Any]:
    from isobatch.checkpoint import load

    state = dict(load(Path(folder), rank=0).state)
    for name in ("average", "noise", "follower"):
        state.pop(name, None)
    return state


def file_name(job: BranchJob) -> str:
    """Return the file name of a job's curves.

    Args:
        job: the job.

    Returns:
        A hash of everything that decides it.
    """
    return hashed("branch", {**asdict(job), "recipe": run_values(job.recipe)})
