"""One run of a sweep: trained at a batch and a learning rate until the hardest goal is reached or the limit ends it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isobatch.errors import InputError, NonFiniteError
from isobatch.plan import Recipe, Schedule, coupling_of
from isobatch.rules import scale_weight_decay
from isobatch.verify.cells import hashed, run_values

SPACING = 1.1
"""Ratio of one evaluation's steps to the one before."""
_LOST = 3.0


@dataclass(frozen=True)
class Trial:
    """One run to train.

    Args:
        recipe: at its batch and learning rate, without a schedule.
        seed: of weights and sample order.
        goal: hardest value to reach.
        metric: held-out metric.
        smoothing: share of the old in the exponential average over evaluations.
        limit: steps at most.
        device: device and its options in one word, as `isobatch.train.Device.parse` reads it.
        sign: 1 where the metric should fall, -1 where it should rise; `assumed_sign` unless given.
    """

    recipe: Recipe
    seed: int
    goal: float
    metric: str
    smoothing: float
    limit: int
    device: str = "cpu"
    sign: int = 0

    def __post_init__(self) -> None:
        if not self.sign:
            object.__setattr__(self, "sign", assumed_sign(self.metric))


@dataclass
class Track:
    """What one run gave.

    Args:
        batch: samples a step.
        lr: its learning rate.
        seed: of weights and sample order.
        steps: at which it was evaluated, from 0.
        values: the metric there.
        stopped: why it stopped before goal and limit; empty when it did not.
    """

    batch: int
    lr: float
    seed: int
    steps: list[int]
    values: list[float]
    stopped: str = ""


def at(recipe: Recipe, batch: int, lr: float) -> Recipe:
    """Return the recipe at another batch by the plan's rules, at a given constant learning rate.

    Warm-up, schedule and weight average are dropped: a sweep measures the way to a loss, as in arXiv 1812.06162.

    Args:
        recipe: the reference.
        batch: the new batch.
        lr: the learning rate there; decoupled weight decay keeps lr*lambda per sample.

    Returns:
        The recipe of a run.
    """
    made, o = plain_recipe(recipe).at(batch).recipe, recipe.optimizer
    decay = scale_weight_decay(o.weight_decay, batch / recipe.batch.size, o.lr, lr, coupling_of(recipe))
    constant = Schedule(length=f"{batch} {recipe.batch.unit}")
    optimizer = made.optimizer.model_copy(update={"lr": lr, "weight_decay": decay})
    return made.model_copy(update={"optimizer": optimizer, "schedule": constant})


def plain_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without what chooses a batch, measures noise on the way or averages weights.

    Args:
        recipe: the recipe.

    Returns:
        The recipe of a measurement's runs.
    """
    batch = recipe.batch.model_copy(update={"schedule": None, "adaptive": None})
    return recipe.model_copy(update={"batch": batch, "noise": None, "critical": None, "ema": None})


def stops(limit: int) -> list[int]:
    """Return the steps at which a run is evaluated: every one at first, then evenly in their logarithm.

    Args:
        limit: last step.

    Returns:
        Rising steps, from 1.

    Example:
        >>> stops(20)
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 20]
    """
    last = math.ceil(math.log(limit) / math.log(SPACING)) if limit > 1 else 0
    return sorted({min(limit, max(1, round(SPACING**i))) for i in range(last + 1)})


def train(trial: Trial) -> Track:
    """Train one run.

    Args:
        trial: the run.

    Returns:
        Its track.

    Raises:
        InputError: a metric that the task does not have.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    run, device = make_run(trial.recipe, trial.seed), Device.parse(trial.device)
    trainer = Trainer(run, trial.recipe, order_seed=trial.seed, device=device)
    size = trial.recipe.batch.size
    values = [measured(trainer.run.evaluate(), trial.metric)]
    track = Track(size, trial.recipe.optimizer.lr, trial.seed, [0], values)
    for step in stops(trial.limit):
        try:
            while trainer.steps < step:
                trainer.step(size)
        except NonFiniteError as error:
            track.stopped = str(error)
            return track
        value = measured(trainer.run.evaluate(), trial.metric)
        track.steps.append(trainer.steps)
        values.append(value)
        if not math.isfinite(value) or (trial.sign > 0 and value > _LOST * values[0] > 0):
            track.stopped = f"lost: {trial.metric} {value:.4g} after {values[0]:.4g} at the start"
            return track
        if reached(track, trial.goal, trial.metric, trial.smoothing, trial.sign) < math.inf:
            return track
    return track


def reached(track: Track, goal: float, metric: str, smoothing: float, sign: int | None = None) -> float:
    """Return how many steps a run took to a goal, infinity if it did not get there.

    The metric is smoothed by a debiased exponential average over evaluations that lie evenly in log steps, so that its
    lag is one and the same factor at every batch; between two evaluations log steps are interpolated.

    Args:
        track: the run.
        goal: value of the metric.
        metric: that was followed.
        smoothing: share of the old in the average.
        sign: 1 where the metric should fall, -1 where it should rise; `assumed_sign` unless given.

    Returns:
        Steps, not rounded.
    """
    sign, smooth = sign or assumed_sign(metric), smoothed(track.values[1:], smoothing)
    for index, value in enumerate(smooth):
        if sign * value <= sign * goal:
            after = track.steps[index + 1]
            if index == 0:
                return float(after)
            before, left = track.steps[index], smooth[index - 1]
            part = (left - goal) / (left - value)
            return math.exp(math.log(before) + part * (math.log(after) - math.log(before)))
    return math.inf


def smoothed(values: Sequence[float], smoothing: float) -> list[float]:
    """Return the debiased exponential average: s = a s + (1-a) x, over 1 - a^t.

    Args:
        values: in order.
        smoothing: a in [0, 1).

    Returns:
        One value each.

    Example:
        >>> smoothed([2.0, 1.0], 0.5)
        [2.0, 1.3333333333333333]
    """
    average, found = 0.0, []
    for count, value in enumerate(values, start=1):
        average = smoothing * average + (1 - smoothing) * value
        found.append(average / (1 - smoothing**count))
    return found


def assumed_sign(metric: str) -> int:
    """Return which way a metric goes that no task declares.

    Args:
        metric: held-out metric.

    Returns:
        1 for "loss", -1 for any other.
    """
    return 1 if metric == "loss" else -1


def sign_of(recipe: Recipe, metric: str) -> int:
    """Return which way a metric should go: as its task declares it, else as `assumed_sign` says.

    Args:
        recipe: names the task.
        metric: held-out metric.

    Returns:
        1 where it should fall, -1 where it should rise.
    """
    from isobatch.tasks import make_run

    declared = make_run(recipe, 0).declared.get(metric)
    return assumed_sign(metric) if declared is None else 1 if declared.better == "lower" else -1


def file_name(trial: Trial) -> str:
    """Return the file name of a run's track.

    Args:
        trial: the run.

    Returns:
        A hash of everything that decides it.
    """
    recipe = run_values(trial.recipe)
    where = () if trial.device == "cpu" else (trial.device,)
    way = () if trial.sign == assumed_sign(trial.metric) else (trial.sign,)  # names stay as they were
    return hashed("sweep", recipe, trial.seed, trial.goal, trial.metric, trial.smoothing, trial.limit, *where, *way)


def measured(metrics: dict[str, float], metric: str) -> float:
    """Return one metric of an evaluation.

    Args:
        metrics: what the task measured.
        metric: the one that is wanted.

    Returns:
        Its value.

    Raises:
        InputError: the task does not measure it.
    """
    if metric not in metrics:
        raise InputError(f"metric={metric!r} is not measured by the task; it has {', '.join(metrics)}: name one")
    return metrics[metric]
