"""The noise scale of a recipe over its training, beside the temperature of the run; and the calibration ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isobatch.critical.sweeping import Goal, Sweep
from isobatch.critical.trial import at, plain_recipe
from isobatch.errors import InputError, NonFiniteError
from isobatch.plan import Critical, Recipe
from isobatch.student import student_t
from isobatch.units import whole

if TYPE_CHECKING:
    from isobatch.noise import NoiseEstimate
    from isobatch.train import Trainer

_CHUNKS, _MOMENTS, _IDENTIFIED, _SAMPLES = 64, 8, 6, 1024
Geometry = Literal["euclidean", "adam", "sign"]


@dataclass(frozen=True)
class Reading:
    """The noise scale at one moment of a run.

    Args:
        seen: samples of applied updates.
        loss: held-out loss, NaN where the task has none.
        value: B_simple; None where there is none.
        low: lower end of its interval.
        high: upper end; infinite where |G|^2 cannot be told from 0.
        verdict: identified, not identified or undefined.
        sentence: the same in words.
        temperature: of the run, in units of the one at its peak learning rate.
    """

    seen: int
    loss: float
    value: float | None
    low: float
    high: float
    verdict: str
    sentence: str
    temperature: float

    @property
    def at_peak(self) -> float | None:
        """B_simple*T/T_peak: what it would be at the peak's temperature, as B_simple goes with 1/T."""
        return None if self.value is None else self.value * self.temperature


@dataclass(frozen=True)
class Measured:
    """Readings over a run.

    Args:
        recipe: that was trained.
        readings: in order.
        samples: looked at for each reading.
        geometry: of the noise scale.
    """

    recipe: Recipe
    readings: tuple[Reading, ...]
    samples: int
    geometry: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        rows = [asdict(reading) | {"at_peak": reading.at_peak} for reading in self.readings]
        whole_recipe = self.recipe.model_dump(mode="json", exclude_none=True)
        unit, size = self.recipe.batch.unit, self.recipe.batch.size
        return {"recipe": whole_recipe, "unit": unit, "batch": size, "samples": self.samples, "geometry": self.geometry,
                "readings": rows}  # fmt: skip


def measure(
    recipe: Recipe,
    *,
    marks: int = 10,
    seed: int = 0,
    samples: int = 1024,
    geometry: Geometry = "euclidean",
    device: str = "cpu",
    on_done: Callable[[Reading], None] | None = None,
) -> Measured:
    """Train a recipe and measure the noise scale on the way, at fixed weights each time.

    Args:
        recipe: with a task and a schedule.
        marks: readings, evenly over the run; the first one is before training.
        seed: of weights, sample order and the samples that are looked at.
        samples: of each reading, in 64 chunks; fewer where the data set holds fewer.
        geometry: euclidean, adam or sign.
        device: where the run computes, and how: "cuda,bf16".
        on_done: called with each reading.

    Returns:
        The readings.

    Raises:
        InputError: values out of range.

    References:
        arXiv 1812.06162, 2.2; temperature: appendix C.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    count, size = whole("marks", marks, 2), whole("samples", samples, 4)
    base = plain_recipe(recipe)
    trainer = Trainer(make_run(base, seed), base, order_seed=seed, device=Device.parse(device))
    readings = []
    for mark in range(count):
        trainer.train_to(trainer.length * mark // (count - 1))
        found = snapshot(trainer, size, seed * count + mark, geometry)
        loss = trainer.run.evaluate().get("loss", math.nan)
        factor = trainer.schedule.at(min(trainer.seen, trainer.length - 1))
        reading = Reading(
            trainer.seen, loss, found.value, found.low, found.high, str(found.verdict), found.sentence, factor
        )
        readings.append(reading)
        if on_done is not None:
            on_done(reading)
    return Measured(recipe, tuple(readings), size, geometry)


def snapshot(trainer: Trainer, samples: int, seed: int, geometry: Geometry = "euclidean") -> NoiseEstimate:
    """Measure the noise scale at a run's present weights, on random samples of its data set.

    Args:
        trainer: between two steps; it is left as it was.
        samples: to look at.
        seed: of the choice.
        geometry: euclidean, adam or sign.

    Returns:
        The estimate, on the run's clock: in tokens where batches count tokens; the data set counts as finite.

    Raises:
        InputError: a task whose samples are a stream, or fewer than two samples.
    """
    import torch

    from isobatch import noise

    data, run = trainer.run.samples, trainer.run
    size = min(samples, len(data))
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:size]
    parts = [part for part in chosen.tensor_split(min(_CHUNKS, size)) if len(part)]
    return noise.measure(
        run.loss,
        run.model,
        [trainer.device.batch(data[part]) for part in parts],
        counts=[sum(trainer.drawing.sizes(part)) for part in parts],
        data_size=trainer.drawing.epoch,
        geometry=geometry,
        optimizer=trainer.optimizer,
        unit=trainer.recipe.batch.unit,
        check=False,
    )


def calibrate(sweep: Sweep, goal: Goal | None = None, *, level: float = 0.95, device: str = "cpu") -> Critical:
    """Return what a recipe should keep of a sweep: the critical batch, and its ratio to B_simple on the way there.

    B_simple is measured in runs of the sweep's own fastest setting nearest to the critical batch, one a seed, at eight
    moments on the way to the goal, and averaged; seeds at which fewer than six are identified give none. The ratio's
    interval joins both errors in log space.

    Args:
        sweep: whose fit is identified.
        goal: one of its goals; the hardest with an identified fit unless given.
        level: coverage of the ratio's interval; the critical batch keeps that of its fit.
        device: where the runs compute, and how: "cuda,bf16".

    Returns:
        The [critical] part.

    Raises:
        InputError: no goal with an identified critical batch.
    """
    chosen = goal if goal is not None else next((g for g in reversed(sweep.goals) if g.fit and g.fit.identified), None)
    if chosen is None or chosen.fit is None or not chosen.fit.identified:
        raise InputError("no goal of the sweep has an identified critical batch; add batches or seeds")
    crit = chosen.fit.critical
    point = min(chosen.points, key=lambda p: abs(math.log(p.batch / crit.value)))
    scales = [
        _simple(sweep.recipe, point.batch, point.lr, steps, seed, device) for seed, steps in enumerate(point.seeds)
    ]
    logs = np.log([scale for scale in scales if scale is not None])
    known: dict[str, Any] = {
        "batch": crit.value,
        "low": crit.low,
        "high": crit.high,
        "samples": chosen.fit.samples.value,
        "goal": f"{sweep.metric} {chosen.goal:g}",
        "source": f"isobatch noise sweep: {len(chosen.points)} batches, {sweep.seeds} seeds",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if len(logs):
        known["noise_scale"] = float(np.exp(logs.mean()))
        known["ratio"] = crit.value / known["noise_scale"]
    if len(logs) > 1:
        own = student_t(len(logs) - 1, (1 + level) / 2) * logs.std(ddof=1) / math.sqrt(len(logs))
        known["ratio_low"] = known["ratio"] * math.exp(-math.hypot(own, math.log(crit.value / crit.low)))
        known["ratio_high"] = known["ratio"] * math.exp(math.hypot(own, math.log(crit.high / crit.value)))
    return Critical(**known)


def _simple(recipe: Recipe, batch: int, lr: float, steps: float, seed: int, device: str) -> float | None:
    """Mean of B_simple at eight moments on the way to the goal, None where fewer than six of them are identified.

    It is the large ones that are not: a mean of the few small ones would make the ratio too large.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    made, found = at(recipe, batch, lr), []
    trainer = Trainer(make_run(made, seed), made, order_seed=seed, device=Device.parse(device))
    for mark in range(1, _MOMENTS + 1):
        try:
            while trainer.steps < math.ceil(steps * mark / _MOMENTS):
                trainer.step(batch)
        except NonFiniteError:
            break
        estimate = snapshot(trainer, _SAMPLES, seed * _MOMENTS + mark)
        if str(estimate.verdict) == "identified" and estimate.value is not None:
            found.append(estimate.value)
    return float(np.mean(found)) if len(found) >= _IDENTIFIED else None
