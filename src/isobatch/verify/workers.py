"""One run to train, what it gave, and what curves must be before they are judged."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, NonFiniteError
from isobatch.plan import Recipe
from isobatch.tasks.isolation import alone, one_thread, saying_which_run, seed_all
from isobatch.tasks.metric import Metric, declarations
from isobatch.units import whole

_ARM_STRIDE = 1_000_003
_ROUNDING = 1e-6


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


def check_curves(
    curves: Mapping[str, Sequence[Curve]], metric: str, marks: Sequence[int], margins: Mapping[str, float]
) -> dict[str, list[Curve]]:
    """Return curves with every arm in the order of the reference's seeds, or refuse them.

    Args:
        curves: arm -> curves.
        metric: that is compared.
        marks: indices of the evaluations that count.
        margins: model -> margin.

    Returns:
        The same curves; pairs are made by seed, in whatever order they came.

    Raises:
        InputError: no reference, a seed that is missing or stands twice, other models or numbers of evaluations than
            the reference's, values that are no numbers, marks beyond the evaluations, or margins for unknown models.
    """
    if not curves.get("reference"):
        raise InputError(f"curves hold no runs of 'reference' to compare with; arms: {', '.join(curves) or 'none'}")
    seeds = [curve.seed for curve in curves["reference"]]
    ended = [curve for runs in curves.values() for curve in runs if curve.values and not curve.stopped]
    models = next((list(curve.values) for runs in curves.values() for curve in runs if curve.values), [])
    counts = {len(series) for curve in ended for model in curve.values.values() for series in model.values()}
    sorted_curves = {}
    for arm, runs in curves.items():
        own = {curve.seed: curve for curve in runs}
        if len(own) < len(runs) or own.keys() != set(seeds):
            raise InputError(
                f"arm {arm} has the seeds {sorted(curve.seed for curve in runs)} and the reference {sorted(seeds)}: "
                "gaps are paired by seed, so that every arm takes each seed of the reference once"
            )
        sorted_curves[arm] = [own[seed] for seed in seeds]
    for curve in (curve for runs in curves.values() for curve in runs if curve.values):
        if list(curve.values) != models and set(curve.values) != set(models):
            raise InputError(
                f"arm {curve.arm}, seed {curve.seed} measures the models {', '.join(curve.values)}, others "
                f"{', '.join(models)}: every run must measure the same"
            )
        for model, series in curve.values.items():
            for name, values in series.items():
                _check_numbers(values, f"{name} of the {model} model in arm {curve.arm}, seed {curve.seed}")
    if len(counts) > 1:
        short = min(ended, key=lambda curve: min(len(s) for model in curve.values.values() for s in model.values()))
        raise InputError(
            f"arm {short.arm}, seed {short.seed} was evaluated {min(counts)} times and others {max(counts)} times: "
            "gaps are taken at the same samples; fill the rest with NaN where a run ended early, or leave the seed out "
            "everywhere"
        )
    last = min(counts, default=math.inf)
    for mark in marks:
        if whole("marks", mark, 0) >= last:
            raise InputError(f"marks={list(marks)} must be from 0 to {last - 1:g}: curves have {last:g} evaluations")
    if unknown := [model for model in margins if model not in models]:
        raise InputError(f"margins name the model {unknown[0]!r}, which no run measures; models: {', '.join(models)}")
    if not any(metric in series for curve in ended for series in curve.values.values()) and ended:
        check_values(ended[0], {}, metric)
    return sorted_curves


def _check_numbers(values: Sequence[object], where: str) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{where} holds {value!r}, which is no number; give NaN where a run has no value")
    if not len(values):
        raise InputError(f"{where} has no values; a run that never started has an empty curve: values={{}}")


def check_values(curve: Curve, metrics: Mapping[str, Metric], metric: str) -> None:
    """Refuse a run without the metric that is compared, and values that the declaration of their metric rules out.

    Args:
        curve: of a finished run.
        metrics: declared by the task.
        metric: that is compared.

    Raises:
        InputError: names metric, value, arm and seed.
    """
    for model, series in curve.values.items():
        if metric not in series:
            raise InputError(
                f"arm {curve.arm}, seed {curve.seed} does not measure {metric!r} but {', '.join(series) or 'nothing'}: "
                "every run of a task must measure the same metrics"
            )
        for name, values in series.items():
            for value in values if name in metrics else ():
                metrics[name].check(name, value, f"in arm {curve.arm}, seed {curve.seed}, {model} model")


def check_percent(curves: Sequence[Curve], metric: Metric, name: str) -> None:
    """Refuse a metric declared in percent whose values all look like fractions.

    Args:
        curves: of the reference.
        metric: that is compared.
        name: of it.

    Raises:
        InputError: no value of any run is above 1.
    """
    if metric.unit != "percent":
        return
    values = [value for curve in curves for series in curve.values.values() for value in series[name]]
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < max(finite) <= 1 + _ROUNDING:
        raise InputError(
            f'{name} is declared with unit="percent" and never exceeds {max(finite):g} in the reference: '
            'declare unit="fraction", or multiply it by 100'
        )
