"""One run to train, and what it gave."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, NonFiniteError
from isobatch.plan import Recipe
from isobatch.tasks.isolation import alone, one_thread, saying_which_run, seed_all
from isobatch.tasks.metric import Metric, declarations

_ARM_STRIDE = 1_000_003


@dataclass(frozen=True)
class Job:
    """One run to train.

    Args:
        arm: name of the arm.
        recipe: its numbers.
        seed: of the initial weights, shared by all arms.
        stream: of the sample order, its own for every arm.
        stops: samples at which to evaluate, rising, the first may be 0.
        limit: stop after this many steps (timing only), None for the whole run.
        device: device and its options in one word, as `isobatch.train.Device.parse` reads it.
        timeout: seconds after which a trainer of the user's own that moves nothing hangs.
    """

    arm: str
    recipe: Recipe
    seed: int
    stream: int
    stops: tuple[int, ...]
    limit: int | None = None
    device: str = "cpu"
    timeout: float | None = None

    @property
    def order_seed(self) -> int:
        """Seed of the sample order: independent between arms."""
        return self.seed + _ARM_STRIDE * (self.stream + 1)


@dataclass
class Curve:
    """What one run gave.

    Args:
        arm: name of the arm.
        seed: of the initial weights.
        values: model ("raw", "average") -> metric -> value at each stop; NaN after a divergence.
        steps: optimizer steps.
        seconds: time spent.
        stopped: why the run stopped early, empty when it did not.
        facts: what the task says of its data.
    """

    arm: str
    seed: int
    values: dict[str, dict[str, list[float]]]
    steps: int
    seconds: float
    stopped: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """What is known of a kind of run before any is trained.

    Args:
        loading: seconds to make it for the first time, with the data to be read.
        making: seconds to make it again.
        step: seconds per step; 0 where the first steps already left the finite.
        evaluation: seconds per evaluation.
        declared: what the task says of its metrics.
        first: model -> metric -> value before the first step.
    """

    loading: float
    making: float
    step: float
    evaluation: float
    declared: dict[str, Metric]
    first: dict[str, dict[str, float]]


def train_curve(job: Job, unfinished: Path | None = None) -> Curve:
    """Train one run and evaluate it at its stops; its random numbers are its own, so that it can be made again.

    Args:
        job: the run.
        unfinished: folder of its own for a checkpoint at every stop, from which a second call goes on; the caller
            removes it once the curve is kept.

    Returns:
        Its curve.

    Raises:
        InputError: a task of the user's that fails.
    """
    began = time.perf_counter()
    seen: list[dict[str, dict[str, float]]] = []
    stopped = ""
    with alone(job.seed, job.device), saying_which_run(job.recipe.task, job.arm, job.seed), ExitStack() as stack:
        trainer = _trainer(job)
        kept = stack.enter_context(_unfinished(unfinished, trainer))
        if kept is not None:
            seen, spent = kept.take_up()
            began -= spent

        def visit() -> None:
            seen.append(trainer.evaluate())
            if kept is not None:
                kept.save(seen, time.perf_counter() - began)

        try:
            trainer.train_through(job.stops[len(seen) :], visit)
        except NonFiniteError as error:
            stopped = str(error)
        except (OverflowError, FloatingPointError) as error:  # a perplexity that no float holds
            stopped = f"{type(error).__name__} with {trainer.seen} samples seen: {error}"
        if not stopped and not _finite_weights(trainer.run.model):
            stopped = f"the weights are not finite after the last of {trainer.steps} steps"
        values = _series(seen, job)
        facts = {str(name): str(value) for name, value in (trainer.run.facts or {}).items()}
    return Curve(job.arm, job.seed, values, trainer.steps, time.perf_counter() - began, stopped, facts)


def read_curve(values: dict[str, Any], stops: int | None = None) -> Curve:
    """Return a curve from its plain values.

    Args:
        values: of its fields.
        stops: evaluations that it must have; any number, the same everywhere, unless given.

    Returns:
        The curve.

    Raises:
        ValueError: values that no run leaves behind.
        TypeError: fields that a curve does not have.
    """
    curve = Curve(**values)
    models = curve.values.values() if isinstance(curve.values, dict) else [None]
    series = [one for model in models for one in (model.values() if isinstance(model, dict) else [None])]
    numbers = all(isinstance(one, list) and all(type(v) in (int, float) for v in one) for one in series)
    lengths = {len(one) for one in series if isinstance(one, list)} | (
        {stops} if stops is not None and series else set()
    )
    plain = isinstance(curve.stopped, str) and isinstance(curve.facts, dict) and type(curve.steps) is int
    timed = type(curve.seconds) in (int, float)
    if not numbers or len(lengths) > 1 or not plain or not timed or (not series and not curve.stopped):
        raise ValueError("no curve")
    return curve


def _series(seen: Sequence[dict[str, dict[str, float]]], job: Job) -> dict[str, dict[str, list[float]]]:
    """Model -> metric -> value at each stop, NaN where the run did not get to."""
    for index, point in enumerate(seen[1:], start=1):
        first, now = ({model: sorted(metrics) for model, metrics in found.items()} for found in (seen[0], point))
        if first != now:
            raise InputError(
                f"arm {job.arm}, seed {job.seed}: the task measures {now} after {job.stops[index]:,} samples and "
                f"{first} before training; its metrics must be the same ones every time (NaN where one has no value)"
            )
    left = [math.nan] * (len(job.stops) - len(seen))
    return {
        model: {name: [point[model][name] for point in seen] + left for name in metrics}
        for model, metrics in (seen[0] if seen else {}).items()
    }


def _finite_weights(model: Any) -> bool:
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def probe(job: Job) -> Probe:
    """Evaluate a run before its first step, and measure its cost on a few.

    Args:
        job: the run; job.limit steps are timed.

    Returns:
        Times, declared metrics and first values.
    """
    with alone(job.seed, job.device), saying_which_run(job.recipe.task, job.arm, job.seed):
        began = time.perf_counter()
        trainer = _trainer(job)
        loaded = time.perf_counter()
        trainer = _trainer(job)
        made = time.perf_counter()
        first = trainer.evaluate()
        evaluated = time.perf_counter()
        steps, size, times = job.limit or 10, job.recipe.batch.size, list[float]()
        try:
            trainer.train_through((size, size * (1 + steps)), lambda: times.append(time.perf_counter()))
            spent = (times[1] - times[0]) / steps
        except NonFiniteError:
            spent = 0.0
        declared = declarations(str(job.recipe.task), trainer.run.declared)
    return Probe(loaded - began, made - loaded, spent, evaluated - made, declared, first)


def _trainer(job: Job) -> Any:
    from isobatch.split import Subject
    from isobatch.split.own_trainer import OwnTrainer
    from isobatch.tasks import checked_run, make_any
    from isobatch.train import Device, Trainer

    made = make_any(job.recipe, job.seed)
    one_thread(job.device)  # whatever the task has set: a forked process with several may never end
    if isinstance(made, Subject):
        given = {"seed": job.seed, "order_seed": job.order_seed, "device": job.device, "timeout": job.timeout}
        return OwnTrainer(made, job.recipe, **given)
    run = checked_run(made, job.recipe)
    seed_all(job.order_seed)
    return Trainer(run, job.recipe, order_seed=job.order_seed, device=Device.parse(job.device))


def _unfinished(folder: Path | None, trainer: Any) -> Any:
    """Return what keeps a run at its stops; nothing does for a trainer of the user's own."""
    from isobatch.train import Trainer
    from isobatch.train.persistence import Unfinished

    return nullcontext() if folder is None or not isinstance(trainer, Trainer) else Unfinished(folder, trainer)
