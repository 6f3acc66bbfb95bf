"""Three small tables of scikit-learn as tasks: wine and breast cancer (classes), diabetes (a number).

isobatch verify run examples/wine-adamw.toml --batch-size 32 --mend
"""

from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks import LOSS, PERCENT, Run, TensorSamples, seeded


def wine(settings: Recipe, seed: int) -> Run:
    """Classify 178 wines by 13 measurements; 133 train."""
    return _classes(settings, seed, datasets.load_wine(), held=45)


def cancer(settings: Recipe, seed: int) -> Run:
    """Tell malignant from benign in 569 biopsies by 30 measurements; 456 train."""
    return _classes(settings, seed, datasets.load_breast_cancer(), held=113)


def diabetes(settings: Recipe, seed: int) -> Run:
    """Predict the progression of 442 patients, in standard deviations; 353 train."""
    data = datasets.load_diabetes()
    target = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)[:, None]
    x, y, x_held, y_held = _split(data.data, target, held=89)
    model = _network(settings, seed, 10, 1)

    def metrics(net: nn.Module) -> dict[str, float]:
        return {"loss": float(F.mse_loss(net(x_held), y_held))}

    return Run(model, TensorSamples(x, y), lambda net, b: F.mse_loss(net(b[0]), b[1]), metrics, declared={"loss": LOSS})


def _classes(settings: Recipe, seed: int, data: Any, held: int) -> Run:
    x, y, x_held, y_held = _split(data.data, torch.tensor(data.target).long(), held)
    model = _network(settings, seed, x.shape[1], len(data.target_names))

    def metrics(net: nn.Module) -> dict[str, float]:
        out = net(x_held)
        right = (out.argmax(1) == y_held).float().mean()
        return {"loss": float(F.cross_entropy(out, y_held)), "accuracy": 100 * float(right)}

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Run(model, TensorSamples(x, y), loss, metrics, declared={"loss": LOSS, "accuracy": PERCENT})


def _split(x: np.ndarray, y: Tensor, held: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A fixed split; columns are standardised by the training part."""
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[held:], order[:held]
    scaled = torch.tensor((x - x[train].mean(0)) / x[train].std(0), dtype=torch.float32)
    return scaled[train], y[train], scaled[test], y[test]


def _network(settings: Recipe, seed: int, width_in: int, width_out: int) -> nn.Module:
    width = int(settings.options.get("width", 32))
    with seeded(seed):
        return nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Linear(width, width_out))
