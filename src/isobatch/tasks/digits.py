"""Digits: 1797 real 8x8 images of handwritten digits (scikit-learn), an MLP or a small CNN with batch norm.

The split is fixed: 1437 samples train and 360 are held out, stratified by class, from split seed 0.
"""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks.face import Run, TensorSamples, seeded
from isobatch.units import whole

HELD_OUT = 360


@cache
def _data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=HELD_OUT, random_state=0, stratify=labels)
    x, x_held, y, y_held = (torch.as_tensor(part) for part in split)
    return x.float(), y.long(), x_held.float(), y_held.long()


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of the MLP 64-128-10 on digits.

    Args:
        settings: the recipe; options.width sets the hidden width (128).
        seed: of the initial weights.

    Returns:
        The run.
    """
    width = whole("options.width", settings.options.get("width", 128))
    with seeded(seed):
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return _run(model)


def make_cnn(settings: Recipe, seed: int) -> Run:
    """Make a run of a small convolutional network with batch norm on digits.

    Args:
        settings: the recipe; options.width sets the channels of the first layer (16).
        seed: of the initial weights.

    Returns:
        The run.
    """
    width = whole("options.width", settings.options.get("width", 16))
    with seeded(seed):
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 10),
        )
    return _run(model)


def _run(model: nn.Module) -> Run:
    x, y, x_held, y_held = _data()

    def metrics(net: nn.Module) -> dict[str, float]:
        logits = net(x_held)
        accuracy = (logits.argmax(1) == y_held).float().mean() * 100
        return {"loss": float(F.cross_entropy(logits, y_held)), "accuracy": float(accuracy)}

    def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Run(model, TensorSamples(x, y), loss, metrics, {"data": "scikit-learn digits, 1437 train, 360 held out"})
