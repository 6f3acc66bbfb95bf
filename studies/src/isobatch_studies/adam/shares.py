"""The noise share along a reference run, measured at fixed points of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isobatch import rules
from isobatch.noise import moments
from isobatch.plan import Recipe
from isobatch.tasks import Run, make_run
from isobatch.train import Trainer
from isobatch.verify.cells import hashed, run_values

POINTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
CHUNKS, CHUNK = 48, 8


@dataclass(frozen=True)
class Shares:
    """Noise share at points of a run.

    Args:
        batch: the reference batch.
        points: shares of the run.
        share: f at each point, means over seeds.
    """

    batch: int
    points: tuple[float, ...]
    share: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> "Shares":
        """Read shares that an earlier call stored as JSON."""
        stored = json.loads(path.read_text("utf-8"))
        return cls(stored["batch"], tuple(stored["points"]), tuple(stored["share"]))

    @property
    def mean(self) -> float:
        """Mean share over the points."""
        return float(np.mean(self.share))

    @property
    def noise_scale(self) -> float:
        """Noise scale that gives the mean share at the reference batch."""
        share = min(self.mean, 1 - 1e-9)
        return self.batch * share / (1 - share)

    def drift_error(self, kappa: float) -> float:
        """Predicted error of the square root's drift, averaged over the points."""
        return float(np.mean([rules.drift_error(kappa, f) for f in self.share]))


def shares_name(recipe: Recipe) -> str:
    """Return the file name under which a reference's shares are kept.

    Args:
        recipe: the reference.

    Returns:
        A file name.
    """
    return "shares-" + hashed(run_values(recipe))


def measure_shares(recipe: Recipe, seeds: int) -> Shares:
    """Train the reference and measure the noise share of the squared gradient on the way.

    f = (tr Sigma/B) / (|G|**2 + tr Sigma/B), from 48 chunks of 8 samples; an estimate above 1 (an unidentified |G|**2)
    counts as 1.

    Args:
        recipe: the reference.
        seeds: runs to average over.

    Returns:
        Shares at the points.
    """
    rows = []
    for seed in range(seeds):
        run = make_run(recipe, seed)
        trainer = Trainer(run, recipe, order_seed=9_000_000 + seed)
        row = []
        for point in POINTS:
            trainer.train_to(int(trainer.length * point))
            row.append(_share(run, recipe.batch.size, seed))
        rows.append(row)
    return Shares(recipe.batch.size, POINTS, tuple(float(f) for f in np.mean(rows, axis=0)))


def _share(run: Run, batch: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(run.samples), generator=generator)[: CHUNKS * CHUNK].split(CHUNK)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    norms, total = [], [torch.zeros_like(p) for p in parameters]
    for indices in picked:
        gradient = torch.autograd.grad(run.step(run.samples[indices]), parameters)
        norms.append(float(sum(g.double().square().sum() for g in gradient)))
        torch._foreach_add_(total, gradient)
    mean = float(sum((t / len(picked)).double().square().sum() for t in total))
    found = moments(norms, [CHUNK] * len(picked), mean)
    noise = found.trace / batch
    return min(1.0, noise / max(found.gradient_squared + noise, 1e-30))
