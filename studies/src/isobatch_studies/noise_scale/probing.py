"""The noise scale along a run: at every stop the weights are held still and many chunks of gradients are compared."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from isobatch.errors import NonFiniteError
from isobatch.noise import measure
from isobatch.plan import Recipe
from isobatch.tasks import Run
from isobatch.verify.cells import hashed, run_values


@dataclass(frozen=True)
class NoiseProbe:
    """One run whose noise scale is followed.

    Args:
        label: what it is for.
        recipe: at its batch and constant learning rate.
        seed: of weights and sample order.
        steps: stops, rising.
        chunk: samples of a chunk.
        chunks: how many.
        metric: held-out metric beside it.
    """

    label: str
    recipe: Recipe
    seed: int
    steps: tuple[int, ...]
    chunk: int
    chunks: int
    metric: str


@dataclass
class NoiseCurve:
    """What a probe found.

    Args:
        label: of the probe.
        seed: of the run.
        batch: samples of a step.
        steps: stops that were reached.
        values: the metric at each.
        scales: B_simple at each, None where there is none.
        lows: lower end of its interval.
        highs: upper end, None where it is unbounded.
        identified: whether the measurement may be used.
        stopped: why the run ended early.
    """

    label: str
    seed: int
    batch: int
    steps: list[int]
    values: list[float]
    scales: list[float | None]
    lows: list[float]
    highs: list[float | None]
    identified: list[bool]
    stopped: str = ""

    def usable(self) -> list[tuple[float, float]]:
        """Return (metric, B_simple) of the identified stops."""
        rows = zip(self.values, self.scales, self.identified, strict=True)
        return [(value, scale) for value, scale, good in rows if good and scale is not None]


def probe(job: NoiseProbe) -> NoiseCurve:
    """Train a run and measure at its stops.

    Args:
        job: the run.

    Returns:
        The reading.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Trainer

    trainer = Trainer(make_run(job.recipe, job.seed), job.recipe, order_seed=job.seed)
    found = NoiseCurve(job.label, job.seed, job.recipe.batch.size, [], [], [], [], [], [])
    for number, step in enumerate(job.steps):
        try:
            while trainer.steps < step:
                trainer.step()
        except NonFiniteError as error:
            found.stopped = str(error)
            break
        parts = drawn(trainer.run, job.chunk, job.chunks, 1000 * job.seed + number)
        estimate = measure(trainer.run.loss, trainer.run.model, parts, check=False).to_json()
        found.steps.append(step)
        found.values.append(trainer.run.evaluate()[job.metric])
        found.scales.append(estimate["value"])
        found.lows.append(estimate["low"])
        found.highs.append(estimate["high"])
        found.identified.append(estimate["verdict"] == "identified")
    return found


def drawn(run: Run, chunk: int, chunks: int, seed: int) -> list[Any]:
    """Return disjoint random chunks of a run's samples; a stream is copied first, so that the run does not notice.

    Args:
        run: between two steps.
        chunk: samples of one.
        chunks: how many.
        seed: which ones.

    Returns:
        Chunks.
    """
    samples = copy.deepcopy(run.samples)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[: chunk * chunks]
    return [samples[part] for part in order.split(chunk)]


def file_name(job: NoiseProbe) -> str:
    """Return the file name of a probe's reading.

    Args:
        job: the probe.

    Returns:
        A hash of everything that decides it.
    """
    recipe = run_values(job.recipe)
    return hashed("probe", job.label, recipe, job.seed, job.steps, job.chunk, job.chunks, job.metric)
