"""Atari frames as a classification task of supervised studies: an LSTM over the rows, a CNN and an MLP with batch norm.

A fold leaves a fifth of the training frames of every game, in one piece, for choosing settings; the frames that are
reported come from other episodes and are the same for every fold.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.tasks.digits import DECLARED
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import whole
from isobatch_studies.tasks.images import images

FOLDS = 5
_AT_ONCE = 1000
Part = tuple[Tensor, Tensor]


class RowLSTM(nn.Module):
    """An LSTM that reads an image row by row, and a linear layer on its last state.

    Args:
        inputs: numbers in a row of pixels.
        width: hidden units.
        classes: number of labels.
    """

    def __init__(self, inputs: int, width: int, classes: int):
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes) for bytes of shape (batch, channels, side, side)."""
        rows = x.float().div(255).transpose(1, 2).flatten(2)
        states, _ = self.lstm(rows)
        return self.head(states[:, -1])


class Centred(nn.Module):
    """A network for bytes that wants them in [-0.5, 0.5].

    Args:
        body: the network.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for bytes."""
        return self.body(x.float() / 255 - 0.5)


def make_lstm(settings: Recipe, seed: int) -> Run:
    """Make a run of the LSTM over rows.

    Args:
        settings: the recipe; options data, side and frames as in `images`, options.fold (0 to 4) takes its fifth of the
            training frames out for "validation_accuracy"; options.width (64) sets the hidden units.
        seed: of the initial weights.

    Returns:
        The run.
    """
    data, width = images(settings), whole("options.width", settings.options.get("width", 64))
    _, channels, side, _ = data.train[0].shape
    with seeded(seed):
        model = RowLSTM(channels * side, width, data.classes)
    return _run(settings, model)


def make_cnn(settings: Recipe, seed: int) -> Run:
    """Make a run of a small convolutional network with batch norm.

    Args:
        settings: the recipe, as in `make_lstm`; options.width (8) sets the channels of the first layer.
        seed: of the initial weights.

    Returns:
        The run.
    """
    data, width = images(settings), whole("options.width", settings.options.get("width", 8))
    with seeded(seed):
        model = Centred(
            nn.Sequential(
                nn.Conv2d(data.train[0].shape[1], width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(32 * width, data.classes),
            )
        )
    return _run(settings, model)


def make_mlp(settings: Recipe, seed: int) -> Run:
    """Make a run of an MLP with one hidden layer and batch norm before its ReLU.

    Args:
        settings: the recipe, as in `make_lstm`; options.width (128) sets the hidden units.
        seed: of the initial weights.

    Returns:
        The run.
    """
    data, width = images(settings), whole("options.width", settings.options.get("width", 128))
    with seeded(seed):
        model = Centred(
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(data.train[0][0].numel(), width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Linear(width, data.classes),
            )
        )
    return _run(settings, model)


def fold_of(labels: Tensor, fold: int) -> Tensor:
    """Return which training frames a fold leaves for choosing settings: a fifth of each class, in one piece.

    Args:
        labels: class of every frame.
        fold: 0 to 4.

    Returns:
        bool tensor of the shape of `labels`.

    Example:
        >>> fold_of(torch.tensor([0] * 5 + [1] * 5), 1).nonzero().flatten().tolist()
        [1, 6]
    """
    picked = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        low, high = (len(places) * (fold + add) // FOLDS for add in (0, 1))
        picked[places[low:high]] = True
    return picked


def _run(settings: Recipe, model: nn.Module) -> Run:
    data, chosen = images(settings), settings.options.get("fold")
    (x, y), parts = data.train, {"": data.held}
    if chosen is not None:
        fold = whole("options.fold", chosen, 0)
        if fold >= FOLDS:
            raise InputError(f"options.fold={fold} must be in [0, {FOLDS - 1}]")
        out = fold_of(y, fold)
        parts["validation_"], (x, y) = (x[out], y[out]), (x[~out], y[~out])

    def metrics(net: nn.Module) -> dict[str, float]:
        return {f"{name}{metric}": value for name, part in parts.items() for metric, value in _score(net, part).items()}

    def loss(net: nn.Module, batch: Part) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Run(model, TensorSamples(x, y), loss, metrics, data.facts, declared=DECLARED)


def _score(net: nn.Module, part: Part) -> dict[str, float]:
    logits = torch.cat([net(x.to(device_of(net))).cpu() for x in part[0].split(_AT_ONCE)])
    accuracy = (logits.argmax(1) == part[1]).float().mean() * 100
    return {"loss": float(F.cross_entropy(logits, part[1])), "accuracy": float(accuracy)}
