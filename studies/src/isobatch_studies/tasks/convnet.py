"""The small convolutional network of arXiv 1812.06162 on labelled images: MNIST, SVHN, CIFAR-10, any folder."""

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.tasks.metric import LOSS, PERCENT
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import finite, whole
from isobatch_studies.tasks.images import images

_AT_ONCE = 500


class ConvNet(nn.Module):
    """Two convolutions (5 x 5) with pooling, one hidden layer with dropout.

    Args:
        channels: of an image.
        side: pixels of a side, at least 4.
        classes: number of labels.
        width: channels of the first convolution; twice as many follow.
        hidden: hidden units.
        dropout: share of them that is left out.

    References:
        arXiv 1812.06162, A.1 (32 and 64 channels, 1024 hidden units, dropout 0.4).
    """

    def __init__(self, channels: int, side: int, classes: int, width: int, hidden: int, dropout: float):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (side // 4) ** 2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for bytes of shape (batch, channels, side, side)."""
        return self.body(x.float() / 255 - 0.5)


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of the small convolutional network.

    Args:
        settings: the recipe; options.data, options.side and options.frames choose the images (a folder with MNIST, SVHN
            or CIFAR-10 as published, one folder a class, "atari" or "glyphs"); options.width (32), options.hidden
            (1024), options.dropout (0.4).
        seed: of the initial weights.

    Returns:
        The run.

    Raises:
        InputError: no such images, or a size outside its range.
    """
    data, options = images(settings), settings.options
    channels, side = data.train[0].shape[1:3]
    if side < 4:
        raise InputError(f"images of {side} pixels are too small; options.side must be at least 4")
    width, hidden = (whole(f"options.{n}", options.get(n, d)) for n, d in (("width", 32), ("hidden", 1024)))
    dropout = finite("options.dropout", options.get("dropout", 0.4), 0, 1 - 1e-6)
    with seeded(seed):
        model = ConvNet(channels, side, data.classes, width, hidden, dropout)

    def metrics(net: nn.Module) -> dict[str, float]:
        logits = torch.cat([net(part.to(device_of(net))).cpu() for part in data.held[0].split(_AT_ONCE)])
        accuracy = (logits.argmax(1) == data.held[1]).float().mean() * 100
        return {"loss": float(F.cross_entropy(logits, data.held[1])), "accuracy": float(accuracy)}

    def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Run(
        model, TensorSamples(*data.train), loss, metrics, data.facts, declared={"loss": LOSS, "accuracy": PERCENT}
    )
