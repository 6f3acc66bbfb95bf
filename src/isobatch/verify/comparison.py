"""verify run: train every arm over several seeds, compare at matched samples, reach a verdict."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from isobatch.errors import InputError
from isobatch.plan import Plan, Recipe
from isobatch.units import finite, whole
from isobatch.verify import equivalence
from isobatch.verify.arms import ABLATIONS, arms, sizes
from isobatch.verify.equivalence import Comparison, Verdict
from isobatch.verify.workers import Curve, Job, map_jobs, processes, time_step, train_curve

MARKS = 10
BETWEEN = 2
"""Evaluations per mark; those between marks are for the pictures only."""


@dataclass(frozen=True)
class Comparisons:
    """What `verify run` found.

    Args:
        recipe: the reference.
        plan: the plan that was tested.
        seeds: seeds per arm.
        stops: samples at which every run was evaluated, from 0.
        marks: indices of the stops that the test uses.
        curves: arm -> seed -> curve.
        table: arm -> model ("raw", "average") -> comparison with the reference.
        metric: the metric that was compared.
        bases: margin of each model before the early allowance.
        seconds: wall time.
    """

    recipe: Recipe
    plan: Plan
    seeds: tuple[int, ...]
    stops: tuple[int, ...]
    marks: tuple[int, ...]
    curves: dict[str, list[Curve]]
    table: dict[str, dict[str, Comparison]]
    metric: str
    bases: dict[str, float]
    seconds: float

    @property
    def headline(self) -> str:
        """The model whose verdict counts: the averaged one where there is an average."""
        return "average" if self.recipe.ema is not None else "raw"

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict of every arm for the headline model."""
        return {arm: str(models[self.headline].verdict) for arm, models in self.table.items()}

    @property
    def verdict(self) -> Verdict:
        """Verdict of the plan."""
        return self.table["plan"][self.headline].verdict

    def series(self, arm: str, model: str) -> np.ndarray:
        """Return the compared metric of an arm, shape (seeds, stops)."""
        return np.array([curve.values[model][self.metric] for curve in self.curves[arm]])


def stops_for(length: int, *batches: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where runs are evaluated: 0, ten marks, and points between them, on whole steps of every batch.

    Args:
        length: samples of the run.
        *batches: batches of the arms.

    Returns:
        Stops in samples, and the indices of the ten marks among them.

    Raises:
        InputError: fewer than twenty steps of the largest batch.
    """
    largest, grid = max(batches), math.lcm(*batches)
    if largest * MARKS * BETWEEN > length:
        raise InputError(
            f"batch {largest} leaves {length // largest} steps in a run of {length} samples; {MARKS} marks need at "
            f"least {MARKS * BETWEEN}: lower the batch or lengthen schedule.length"
        )
    if grid * MARKS * BETWEEN > length:
        # no common multiple is fine enough: the smaller batch's steps are cut at the stops, by the rules of the plan
        grid = largest
    points = [length * i // (MARKS * BETWEEN) // grid * grid for i in range(MARKS * BETWEEN + 1)]
    return tuple(points), tuple(range(BETWEEN, MARKS * BETWEEN + 1, BETWEEN))


def run(
    recipe: Recipe,
    batch_size: int,
    *,
    seeds: int = 10,
    ablate: tuple[str, ...] = ABLATIONS,
    margin: float | None = None,
    budget: float | None = None,
    workers: int | None = None,
    optimizer: str | None = None,
    extra: dict[str, Recipe] | None = None,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> Comparisons:
    """Train reference, plan and ablations over several seeds and test each against the reference.

    Seed s gives every arm the same initial weights and an independent sample order. The number of seeds is fixed
    before the run; adding seeds after a look is a new run.

    Args:
        recipe: the reference; its task is trained.
        batch_size: the batch of the plan.
        seeds: seeds per arm, at least 8.
        ablate: ablations to train besides the plan.
        margin: margin of the headline model in log loss (0.03 averaged, 0.10 raw unless given).
        budget: refuse to start when the estimate exceeds this many seconds.
        workers: processes, one a core unless given.
        optimizer: "invariant" plans for the batch-size invariant form of the recipe's optimizer.
        extra: further arms by name.
        on_estimate: called with estimated seconds and number of runs before training.
        on_done: called with each finished curve.

    Returns:
        Curves, comparisons and verdicts.

    Raises:
        InputError: bad arguments, a recipe that cannot be trained or diverges, or an estimate above the budget.
    """
    if whole("seeds", seeds) < equivalence.LEAST_SEEDS:
        raise InputError(f"seeds={seeds} must be at least {equivalence.LEAST_SEEDS} for a verdict")
    if margin is not None:
        finite("margin", margin, 0, open_low=True)
    plan = recipe.at(batch_size, optimizer=optimizer)
    chosen = arms(recipe, batch_size, ablate, optimizer) | (extra or {})
    taken = set().union(*map(sizes, chosen.values()))
    stops, marks = stops_for(math.floor(recipe.staircase().length), *taken)
    jobs = [
        Job(name, arm, seed, stream, stops)
        for stream, (name, arm) in enumerate(chosen.items())
        for seed in range(seeds)
    ]
    jobs.sort(key=lambda job: job.recipe.batch.size)
    began = time.perf_counter()
    seconds = estimate(jobs, workers)
    if on_estimate is not None:
        on_estimate(seconds, len(jobs))
    if budget is not None and seconds > budget:
        raise InputError(
            f"estimated {seconds / 60:.1f} minutes exceed the budget of {budget / 60:.1f}; "
            "raise --budget, lower --seeds (8 at least), or shorten schedule.length"
        )

    def finished(curve: Curve) -> None:
        if curve.arm == "reference" and curve.stopped:
            raise InputError(f"the reference run diverged: {curve.stopped}; lower optimizer.lr in the recipe")
        if on_done is not None:
            on_done(curve)

    trained = map_jobs(train_curve, jobs, workers=workers, on_done=finished)
    curves = {name: sorted((c for c in trained if c.arm == name), key=lambda c: c.seed) for name in chosen}
    table, metric, bases = judge(curves, marks, margin, "average" if recipe.ema is not None else "raw")
    took = time.perf_counter() - began
    return Comparisons(recipe, plan, tuple(range(seeds)), stops, marks, curves, table, metric, bases, took)


def estimate(jobs: list[Job], workers: int | None = None) -> float:
    """Estimate the wall time of jobs by timing a few steps of one job per batch size.

    Args:
        jobs: the jobs.
        workers: processes, one a core unless given.

    Returns:
        Seconds.
    """
    sizes = {_kind(job): replace(job, limit=20) for job in reversed(jobs)}
    timed = dict(zip(sizes, map_jobs(time_step, sizes.values(), workers=workers), strict=True))
    total = 0.0
    for job in jobs:
        _, step, evaluation = timed[_kind(job)]
        total += step * job.stops[-1] / job.recipe.batch.size + evaluation * len(job.stops)
    return max(making for making, _, _ in timed.values()) + total / min(processes(workers), len(jobs))


def _kind(job: Job) -> tuple[int, str]:
    return job.recipe.batch.size, job.recipe.optimizer.name


def judge(
    curves: dict[str, list[Curve]], marks: tuple[int, ...], margin: float | None, headline: str
) -> tuple[dict[str, dict[str, Comparison]], str, dict[str, float]]:
    """Compare every arm with the reference at the marks.

    Args:
        curves: arm -> curves in the order of seeds.
        marks: indices of the stops that count.
        margin: margin of the headline model, None for the fixed one.
        headline: "average" or "raw".

    Returns:
        arm -> model -> comparison, the metric, and the base margins.

    Raises:
        InputError: a reference that diverged before its first mark.
    """
    reference = curves["reference"]
    if any(not curve.values for curve in reference):
        raise InputError(f"the reference run cannot start: {reference[0].stopped}")
    models = reference[0].values
    metric = "loss" if "loss" in models["raw"] else next(iter(models["raw"]))
    ratio = metric == "loss"
    picked = list(marks)
    bases = dict(equivalence.MARGINS) if ratio else dict.fromkeys(models, equivalence.POINTS)
    if margin is not None:
        bases[headline] = finite("margin", margin, 0, open_low=True)
    table: dict[str, dict[str, Comparison]] = {}
    for name, runs in curves.items():
        if name == "reference":
            continue
        table[name] = {}
        for model in models:
            base_values = np.array([curve.values[model][metric] for curve in reference])
            values = np.array([_values(curve, model, metric, base_values.shape[1]) for curve in runs])
            initial = float(base_values[:, 0].mean())
            ceiling = equivalence.CEILING * abs(initial) if ratio else 100.0
            gap = equivalence.gaps(values[:, picked], base_values[:, picked], ceiling, ratio=ratio)
            level = base_values[:, picked].mean(0)
            limit = equivalence.margins(bases[model], initial, level) if ratio else np.full(len(picked), bases[model])
            table[name][model] = equivalence.compare(gap, limit)
    return table, metric, {model: bases[model] for model in models}


def _values(curve: Curve, model: str, metric: str, stops: int) -> list[float]:
    return curve.values[model][metric] if curve.values else [math.nan] * stops
