"""The sweep: batches x learning rates to a goal, the fastest run per batch, and the hyperbola through them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.critical import rates
from isobatch.critical.hyperbola import Hyperbola, fit
from isobatch.critical.trial import Track, Trial, at, file_name, reached, sign_of, smoothed, train
from isobatch.critical.words import sweep_sentence
from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import finite, whole
from isobatch.verify.cells import run_all, until

_UNREACHED = 1e6
"""Score of a run that ended before its goal, in log steps; how near it came decides between two of them."""


@dataclass(frozen=True)
class Point:
    """The fastest learning rate of one batch to one goal.

    Args:
        batch: samples a step.
        lr: the fastest learning rate.
        steps: geometric mean over seeds.
        spread: standard deviation of log steps over seeds.
        seeds: steps of each seed.
        edge: whether the fastest was the lowest or highest rate tried.
    """

    batch: int
    lr: float
    steps: float
    spread: float
    seeds: tuple[float, ...]
    edge: bool

    @property
    def samples(self) -> float:
        """Samples to the goal."""
        return self.batch * self.steps


@dataclass(frozen=True)
class Goal:
    """What the sweep found for one goal.

    Args:
        goal: value of the metric.
        points: one for each batch that reached it with every seed.
        missed: batches that did not.
        fit: the hyperbola, None with fewer than three points.
        sentence: the same in words.
    """

    goal: float
    points: tuple[Point, ...]
    missed: tuple[int, ...]
    fit: Hyperbola | None
    sentence: str


@dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    Args:
        recipe: the reference.
        metric: that was followed.
        goals: one for each goal, the easiest first.
        seeds: runs at each batch and learning rate.
        tracks: every run.
        left: batches that the budget did not reach.
        seconds: wall time.
    """

    recipe: Recipe
    metric: str
    goals: tuple[Goal, ...]
    seeds: int
    tracks: tuple[Track, ...]
    left: tuple[int, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, without the runs' tracks."""
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "metric": self.metric,
            "unit": self.recipe.batch.unit,
            "seeds": self.seeds,
            "runs": len(self.tracks),
            "left": list(self.left),
            "goals": [asdict(goal) for goal in self.goals],
            "seconds": round(self.seconds, 1),
        }


def sweep(
    recipe: Recipe,
    *,
    goals: Sequence[float],
    batches: Sequence[int],
    lrs: Mapping[int, Sequence[float]] | None = None,
    seeds: int = 3,
    limit: int | None = None,
    metric: str = "loss",
    smoothing: float = 0.5,
    out: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    budget: float | None = None,
    device: str = "cpu",
    level: float = 0.95,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Track], None] | None = None,
) -> Sweep:
    """Measure the critical batch directly: train to a goal at several batches, each at its fastest learning rate.

    Every run has a constant learning rate and no warm-up; the plan's rules move everything else. At each batch, rates
    a factor of two apart are tried outwards until the best of every goal lies inside, then once at half steps. The
    next batch starts from there. The fit is of the fastest run per batch, (S/S_min-1)(E/E_min-1) = 1.

    Args:
        recipe: with a task; its batch and learning rate start the search.
        goals: values of the held-out metric to reach; several goals share the runs.
        batches: at least three, on both sides of the critical batch where possible.
        lrs: batch -> learning rates to try and no others; a search unless given.
        seeds: runs at each batch and learning rate.
        limit: steps of one run at most; those of the recipe's schedule unless given.
        metric: it must fall or rise to its goal as the task declares it; without that "loss" falls, any other rises.
        smoothing: share of the old in the average over evaluations.
        out: folder whose `cells` keep finished runs, so that a second call goes on.
        workers: processes, one a core unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        budget: seconds after which no further run is begun.
        device: where the runs compute, and how: "cuda,bf16".
        level: coverage of the intervals.
        on_estimate: called with seconds (0: unknown) and the number of runs, of which a search may add more.
        on_done: called with each finished run.

    Returns:
        A fit for each goal.

    Raises:
        InputError: a goal that the untrained model has reached already, too few batches, or values out of range.

    References:
        arXiv 1812.06162, 5.1 and A.3.
    """
    sign, sizes = sign_of(recipe, metric), _sizes(batches)
    wanted = _goals(goals, sign)
    ends, count = _limit(recipe, limit), whole("seeds", seeds)
    finite("smoothing", smoothing, 0, 1, open_high=True)
    _check_rates(lrs or {})
    if on_estimate is not None:
        on_estimate(0.0, sum(len(lrs[b]) if lrs and b in lrs else 5 for b in sizes) * count)
    began = time.monotonic()
    runs = _Runs(
        recipe, wanted, metric, sign, smoothing, count, ends, out, workers, executor, until(budget), on_done, device
    )
    scores: dict[int, dict[float, Sequence[float]]] = {}
    centre, before = recipe.optimizer.lr, recipe.batch.size
    for batch in sizes:
        guess = centre * math.sqrt(batch / before)
        explored = rates.explore(guess, lrs.get(batch) if lrs else None, partial(runs.try_rates, batch))
        if explored is not None:
            scores[batch] = explored
            centre, before = rates.best(explored, len(wanted) - 1), batch
    made = tuple(_goal(index, scores, runs, level) for index in range(len(wanted)))
    left = tuple(batch for batch in sizes if batch not in scores)
    return Sweep(recipe, metric, made, count, tuple(runs.tracks), left, time.monotonic() - began)


@dataclass
class _Runs:
    """The runs of a sweep, as they are asked for."""

    recipe: Recipe
    goals: list[float]
    metric: str
    sign: int
    smoothing: float
    seeds: int
    limit: int
    out: Path | None
    workers: int | None
    executor: Executor | None
    ends_at: float
    on_done: Callable[[Track], None] | None
    device: str
    tracks: list[Track] = field(default_factory=list)

    def try_rates(self, batch: int, new: Sequence[float]) -> dict[float, Sequence[float]] | None:
        """Train a batch at new learning rates; scores by rate, None where the budget forbids it."""
        trials = [
            Trial(
                at(self.recipe, batch, lr),
                seed,
                self.goals[-1],
                self.metric,
                self.smoothing,
                self.limit,
                self.device,
                self.sign,
            )
            for lr in new
            for seed in range(self.seeds)
        ]
        found = run_all(
            train,
            trials,
            self.out,
            name=file_name,
            read=lambda values: Track(**values),
            workers=self.workers,
            executor=self.executor,
            ends=self.ends_at,
            device=self.device,
            on_done=self.on_done,
        )
        if found is None:
            return None
        self.tracks += found
        _check_start(found, self.goals, self.metric, self.sign)
        return {lr: self._scores([track for track in found if track.lr == lr]) for lr in new}

    def steps(self, tracks: Sequence[Track], goal: float) -> list[float]:
        """Steps of each run to a goal, infinity where it was not reached."""
        return [reached(track, goal, self.metric, self.smoothing, self.sign) for track in tracks]

    def _scores(self, tracks: Sequence[Track]) -> list[float]:
        """Mean log steps to each goal; where a seed missed it, how near they all came."""
        found = []
        for goal in self.goals:
            steps = self.steps(tracks, goal)
            if max(steps) < math.inf:
                found.append(float(np.mean(np.log(steps))))
            elif any(track.stopped for track in tracks):
                found.append(math.inf)
            else:
                ends = float(np.mean([smoothed(track.values[1:], self.smoothing)[-1] for track in tracks]))
                found.append(_UNREACHED + self.sign * ends)
        return found


def _goals(goals: Sequence[float], sign: int) -> list[float]:
    found = sorted({finite("goal", goal) for goal in goals}, reverse=sign > 0)
    if not found:
        raise InputError("goals=[] is empty; give values of the metric that the run should reach")
    return found


def _sizes(batches: Sequence[int]) -> list[int]:
    found = sorted({whole("batch", batch) for batch in batches})
    if len(found) < 3:
        raise InputError(f"batches={found} are {len(found)} different ones; a hyperbola takes at least 3, better 6")
    return found


def _limit(recipe: Recipe, limit: int | None) -> int:
    if limit is not None:
        return whole("limit", limit)
    if recipe.schedule is None:
        raise InputError("the recipe has no [schedule]; give limit, the steps of one run at most")
    return math.ceil(recipe.staircase().length / recipe.batch.size)


def _check_rates(lrs: Mapping[int, Sequence[float]]) -> None:
    for batch, given in lrs.items():
        if not given:
            raise InputError(f"lrs for batch {batch} is empty; give learning rates, or leave the batch to the search")
        for rate in given:
            finite("learning rate", rate, 0, open_low=True)


def _check_start(tracks: Sequence[Track], goals: Sequence[float], metric: str, sign: int) -> None:
    start = tracks[0].values[0]
    done = [goal for goal in goals if sign * start <= sign * goal]
    if done:
        raise InputError(f"goal={done[0]:g} is reached before training: {metric} starts at {start:.4g}; give others")


def _goal(index: int, scores: Mapping[int, Mapping[float, Sequence[float]]], runs: _Runs, level: float) -> Goal:
    goal, points, missed = runs.goals[index], [], []
    for batch, found in scores.items():
        lr = rates.best(found, index)
        if found[lr][index] >= _UNREACHED / 2:
            missed.append(batch)
            continue
        tracks = sorted((t for t in runs.tracks if t.batch == batch and t.lr == lr), key=lambda t: t.seed)
        steps = runs.steps(tracks, goal)
        spread = float(np.std(np.log(steps), ddof=1)) if len(steps) > 1 else math.nan
        edge = len(found) > 1 and lr in (min(found), max(found))
        points.append(Point(batch, lr, math.exp(found[lr][index]), spread, tuple(steps), edge))
    fitted = fit([p.batch for p in points], [p.steps for p in points], level) if len(points) >= 3 else None
    sentence = sweep_sentence(runs.metric, goal, fitted, len(points), runs.recipe.batch.unit)
    return Goal(goal, tuple(points), tuple(missed), fitted, sentence)
