"""A task of your own, in thirty lines: make(settings, seed) -> Run.

isobatch verify run examples/own_task.toml --batch-size 32
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks import LOSS, Run, TensorSamples, seeded


def make(settings: Recipe, seed: int) -> Run:
    """Fit a noisy wave with a small network; the recipe's [options] arrive as settings.options."""
    with seeded(0):  # data: the same for every seed
        x = 2 * torch.rand(1280, 1) - 1
        y = torch.sin(3 * x) + 0.1 * torch.randn(1280, 1)
    with seeded(seed):  # initial weights: the seed's own
        model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[1])

    def metrics(net: nn.Module) -> dict[str, float]:
        return {"loss": float(loss(net, (x[1024:], y[1024:])))}

    return Run(model, TensorSamples(x[:1024], y[:1024]), loss, metrics, declared={"loss": LOSS})
