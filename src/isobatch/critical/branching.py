"""Branched training: from one state of a run, go on at larger batches by the plan, and see where the loss suffers."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.critical.branch_runs import MARKS, BranchCurves, BranchJob, file_name, newest, train_branches
from isobatch.critical.trial import plain_recipe, sign_of, smoothed
from isobatch.critical.words import FEWEST_SEEDS, branch_sentence
from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.student import student_t
from isobatch.units import finite, whole
from isobatch.verify.cells import run_all, until

_DRAWS = 2000


@dataclass(frozen=True)
class Branching:
    """What branched training found.

    Args:
        recipe: of the main run.
        metric: that was compared.
        sign: 1 where it should fall, -1 where it should rise.
        start: samples at which the branches began.
        span: samples of each.
        factors: k of each branch; its batch is k times the recipe's.
        losses: smoothed last value of each branch, by factor and seed; infinite where it was lost.
        batch: k*B, the largest batch within the tolerance of all smaller ones.
        low: lower end of its interval over seeds; the least batch below three of them.
        high: upper end of its interval over seeds; the largest that was tried below three of them.
        largest: whether it is the largest that was tried, so that the critical batch may lie beyond.
        tolerance: what counts as no worse.
        level: coverage of the interval.
        seeds: main runs, or orders from one checkpoint.
        sentence: the same in words.
    """

    recipe: Recipe
    metric: str
    sign: int
    start: int
    span: int
    factors: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    batch: int
    low: int
    high: int
    largest: bool
    tolerance: float
    level: float
    seeds: int
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "recipe"}
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "unit": self.recipe.batch.unit,
            **found,
        }


def branch(
    recipe: Recipe,
    *,
    start: int | None = None,
    span: int,
    factors: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    tolerance: float = 0.01,
    smoothing: float = 0.5,
    metric: str = "loss",
    checkpoint: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    budget: float | None = None,
    device: str = "cpu",
    level: float = 0.95,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[BranchCurves], None] | None = None,
) -> Branching:
    """Find the largest batch at which a run may go on without losing quality for the same samples.

    From one state, every branch trains `span` samples at k times the batch, with settings and optimizer state moved
    by the plan's rules. k* is the largest k whose smoothed metric is within the tolerance of every smaller k's. The
    interval resamples seeds, of which it takes three at least.

    Args:
        recipe: with a task and a schedule.
        start: samples of the main run; where `checkpoint` is given it says itself.
        span: samples of every branch, at least 8 steps of the largest batch.
        factors: k, from 1 on.
        seeds: main runs to train; from a checkpoint, sample orders.
        tolerance: absolute, in the metric: 0.01 in the paper's loss.
        smoothing: share of the old in the average over 8 evaluations of a branch.
        metric: it should fall or rise as the task declares it; without that "loss" falls, any other rises.
        checkpoint: folder of a run's checkpoints, as `isobatch train --out DIR` writes to DIR/checkpoints.
        out: folder whose `cells` keep finished jobs.
        workers: processes, one a core unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        budget: seconds after which no further job is begun.
        device: where the runs compute, and how: "cuda,bf16".
        level: coverage of the interval.
        on_estimate: called with seconds (0: unknown) and the number of jobs.
        on_done: called with each finished job.

    Returns:
        The critical batch by branching, with its interval.

    Raises:
        InputError: values out of range, a span too short, a budget that ended before any job, or a run that is lost
            at its own batch.

    References:
        arXiv 2505.23971 (Merrill et al.).
    """
    kinds, count = _factors(factors), whole("seeds", seeds)
    finite("tolerance", tolerance, 0)
    finite("smoothing", smoothing, 0, 1, open_high=True)
    finite("level", level, 0, 1, open_low=True, open_high=True)
    _check(recipe, kinds, whole("span", span), start, checkpoint)
    place = None if checkpoint is None else str(newest(checkpoint))
    plain = plain_recipe(recipe)
    jobs = [BranchJob(plain, kinds, start or 0, span, seed, metric, place, device) for seed in range(count)]
    if on_estimate is not None:
        on_estimate(0.0, count)
    trained: list[BranchCurves] = []

    def arrived(curves: BranchCurves) -> None:
        trained.append(curves)
        if on_done is not None:
            on_done(curves)

    run_all(
        train_branches,
        jobs,
        out,
        name=file_name,
        read=lambda values: BranchCurves(**values),
        workers=workers,
        executor=executor,
        ends=until(budget),
        device=device,
        on_done=arrived,
    )
    trained.sort(key=lambda curves: curves.seed)
    if not trained:
        raise InputError("the budget ended before any branch was trained; raise --budget")
    return _judged(recipe, trained, kinds, span, tolerance=tolerance, smoothing=smoothing, metric=metric, level=level)


def _judged(
    recipe: Recipe,
    trained: Sequence[BranchCurves],
    factors: tuple[int, ...],
    span: int,
    *,
    tolerance: float,
    smoothing: float,
    metric: str,
    level: float,
) -> Branching:
    sign, size, seen = sign_of(recipe, metric), recipe.batch.size, trained[0].seen
    losses = sign * np.array([[_last(curves.curves[str(k)], smoothing, sign) for curves in trained] for k in factors])
    lost = [curves.seed for curves, value in zip(trained, losses[0], strict=True) if not math.isfinite(value)]
    if lost:
        raise InputError(
            f"the run itself is lost at its own batch in {len(lost)} of {len(trained)} seeds "
            f"({', '.join(map(str, lost))}), so that no larger batch has anything to be compared with: lower "
            f"optimizer.lr ({recipe.optimizer.lr:g}), or set optimizer.clip"
        )
    best = critical_factor(factors, losses.mean(1) * sign, tolerance)
    low, high = over_seeds(factors, losses * sign, tolerance, level)
    batches, largest, most = (best * size, low * size, high * size), best == factors[-1], factors[-1] * size
    return Branching(
        recipe=recipe,
        metric=metric,
        sign=sign,
        start=seen,
        span=span,
        factors=factors,
        losses=tuple(tuple(map(float, row)) for row in losses),
        batch=batches[0],
        low=batches[1],
        high=batches[2],
        largest=largest,
        tolerance=tolerance,
        level=level,
        seeds=len(trained),
        sentence=branch_sentence(
            recipe.batch.unit, seen, batches, len(trained), tolerance, metric, largest=largest, most=most
        ),
    )


def critical_factor(factors: Sequence[int], losses: Sequence[float] | np.ndarray, tolerance: float) -> int:
    """Return the largest k whose loss is within the tolerance of every smaller k's.

    Args:
        factors: rising.
        losses: of each, the lower the better.
        tolerance: absolute.

    Returns:
        k*, the first factor where no other qualifies.

    Example:
        >>> critical_factor([1, 2, 4], [0.50, 0.505, 0.6], 0.01)
        2
    """
    return factors[int(_largest(np.asarray(losses, dtype=float), tolerance))]


def over_seeds(factors: Sequence[int], losses: np.ndarray, tolerance: float, level: float = 0.95) -> tuple[int, int]:
    """Return the interval of k* over seeds: a bootstrap of their means, as much wider as a t interval is.

    n seeds drawn again scatter by sqrt((n-1)/n) of what their means do, and know no spread but their own: deviations
    from the mean are multiplied by t_{n-1}/z sqrt(n/(n-1)), 1.58 for five seeds at 95%.

    Args:
        factors: rising.
        losses: shape (factors, seeds), the lower the better; infinite where a branch was lost.
        tolerance: absolute.
        level: coverage.

    Returns:
        Its ends. Below three seeds the least and the largest factor: no spread is known.

    Example:
        >>> over_seeds([1, 2, 4], np.array([[0.5, 0.5, 0.5], [0.5, 0.51, 0.52], [0.9, 0.9, 0.9]]), 0.01)
        (1, 2)
    """
    seeds = losses.shape[1]
    if seeds < FEWEST_SEEDS:
        return factors[0], factors[-1]
    draws = np.random.default_rng(0).integers(0, seeds, (_DRAWS, seeds))
    wider = student_t(seeds - 1, (1 + level) / 2) / student_t(math.inf, (1 + level) / 2)
    wider *= math.sqrt(seeds / (seeds - 1))
    drawn = losses.T[draws].mean(1)
    whole_ones = np.isfinite(losses).all(1)
    mean = losses[whole_ones].mean(1)
    drawn[:, whole_ones] = mean + wider * (drawn[:, whole_ones] - mean)
    found = np.sort(_largest(drawn, tolerance))
    low, high = (factors[found[min(_DRAWS - 1, int(_DRAWS * share))]] for share in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def _largest(losses: np.ndarray, tolerance: float) -> np.ndarray:
    """Place of the last factor in each row of losses that is within the tolerance of all before it; 0 without any."""
    good = np.isfinite(losses) & (losses <= np.minimum.accumulate(losses, -1) + tolerance)
    places: np.ndarray = np.where(good, np.arange(losses.shape[-1]), 0).max(-1)
    return places


def _last(values: Sequence[float], smoothing: float, sign: int) -> float:
    """Smoothed last value; the worst possible for a lost branch."""
    if len(values) < MARKS or not all(math.isfinite(value) for value in values):
        return math.inf
    return sign * smoothed(values, smoothing)[-1]


def _factors(factors: Sequence[int]) -> tuple[int, ...]:
    found = tuple(whole("factor", factor) for factor in factors)
    if len(found) < 2 or found[0] != 1 or any(b <= a for a, b in pairwise(found)):
        raise InputError(f"factors={list(found)} must rise from 1, such as 1, 2, 4, 8")
    return found


def _check(recipe: Recipe, factors: tuple[int, ...], span: int, start: int | None, checkpoint: Path | None) -> None:
    largest = recipe.batch.size * factors[-1]
    if span < MARKS * largest:
        raise InputError(
            f"span={span} holds {span // largest} steps of the largest batch {largest}; it takes at least {MARKS}: "
            f"{MARKS * largest}, or lower factors"
        )
    if (start is None) == (checkpoint is None):
        raise InputError("give start, the samples of the main run, or checkpoint, a folder of a stored one")
    if start is not None:
        length = math.inf if recipe.schedule is None else recipe.staircase().length
        if whole("start", start, 0) + span > length:
            raise InputError(
                f"start={start} and span={span} end at {start + span}, after the run itself at {length:g}, where "
                "nothing is learnt; give less of either, or a longer schedule"
            )
    for factor in factors[1:]:
        recipe.at(recipe.batch.size * factor)
