"""Digits: 1797 real 8x8 images of handwritten digits (scikit-learn); an MLP, a small CNN with batch norm, an LSTM.

The split is fixed: 1437 samples train and 360 are held out, stratified by class, from split seed 0; options.fold takes
one of five folds instead (see `folds`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks.folds import Part, digits
from isobatch.tasks.metric import LOSS, PERCENT, Metric
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import whole

DECLARED = {
    "loss": LOSS,
    "accuracy": PERCENT,
    "validation_loss": Metric("ratio", better="lower"),
    "validation_accuracy": PERCENT,
}


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of the MLP 64-128-10 on digits.

    Args:
        settings: the recipe; options.width sets the hidden width (128), options.norm puts batch norm before the ReLU,
            options.fold and options.validation choose the data.
        seed: of the initial weights.

    Returns:
        The run.
    """
    width = whole("options.width", settings.options.get("width", 128))
    with seeded(seed):
        if settings.options.get("norm", False):
            first = (nn.Linear(64, width, bias=False), nn.BatchNorm1d(width))
        else:
            first = (nn.Linear(64, width),)
        model = nn.Sequential(*first, nn.ReLU(), nn.Linear(width, 10))
    return _run(settings, model)


def make_cnn(settings: Recipe, seed: int) -> Run:
    """Make a run of a small convolutional network with batch norm on digits.

    Args:
        settings: the recipe; options.width sets the channels of the first layer (16), the rest as in `make`.
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
    return _run(settings, model)


class RowLSTM(nn.Module):
    """An LSTM that reads an image row by row, and a linear layer on its last state.

    Args:
        width: hidden units.
    """

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 10) for images of shape (batch, 64)."""
        states, _ = self.lstm(x.view(-1, 8, 8))
        return self.head(states[:, -1])


def make_lstm(settings: Recipe, seed: int) -> Run:
    """Make a run of an LSTM over the rows of each digit.

    Args:
        settings: the recipe; options.width sets the hidden units (64), the rest as in `make`.
        seed: of the initial weights.

    Returns:
        The run.
    """
    width = whole("options.width", settings.options.get("width", 64))
    with seeded(seed):
        model = RowLSTM(width)
    return _run(settings, model)


def _run(settings: Recipe, model: nn.Module) -> Run:
    data = digits(settings)

    def metrics(net: nn.Module) -> dict[str, float]:
        found = _score(net, data.held)
        if data.validation is not None:
            found |= {f"validation_{name}": value for name, value in _score(net, data.validation).items()}
        return found

    def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Run(model, TensorSamples(*data.train), loss, metrics, data.facts, declared=DECLARED)


def _score(net: nn.Module, part: Part) -> dict[str, float]:
    logits = net(part[0].to(device_of(net))).cpu()
    accuracy = (logits.argmax(1) == part[1]).float().mean() * 100
    return {"loss": float(F.cross_entropy(logits, part[1])), "accuracy": float(accuracy)}
