"""A residual network for small images (CIFAR stem), with batch norm or with group norm."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import whole

Norm = Literal["batch", "group"]
_GROUP = 8


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inside: channels in.
        outside: channels out.
        stride: of the first convolution.
        norm: makes a normalisation of so many channels.
    """

    def __init__(self, inside: int, outside: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(outside), norm(outside)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, shape (batch, outside, height/stride, width/stride)."""
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.short(x))


class ResNet(nn.Module):
    """Images in [0, 1] to features: stages of blocks, the width doubled and the side halved between them.

    Args:
        channels: of an image.
        width: channels of the first stage.
        depth: blocks a stage.
        stages: of blocks; depth 2, stages 4 and width 64 are ResNet-18 with a CIFAR stem.
        norm: "batch" or "group".
    """

    def __init__(self, channels: int = 3, width: int = 16, depth: int = 1, stages: int = 3, norm: Norm = "batch"):
        super().__init__()
        make = normaliser(norm)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), make(width), nn.ReLU())
        blocks, inside = [], width
        for stage in range(stages):
            for number in range(depth):
                outside = width * 2**stage
                blocks.append(Block(inside, outside, 2 if stage and not number else 1, make))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.features = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, features)."""
        return self.blocks(self.stem((x - 0.5) * 4)).mean((2, 3))


def normaliser(norm: Norm) -> Callable[[int], nn.Module]:
    """Return what makes a normalisation layer for feature maps.

    Args:
        norm: "batch" or "group".

    Returns:
        A function of channels.

    Raises:
        InputError: another word.
    """
    if norm == "batch":
        return nn.BatchNorm2d
    if norm == "group":
        return lambda channels: nn.GroupNorm(max(1, channels // _GROUP), channels)
    raise InputError(f'options.norm={norm!r} must be "batch" or "group"')


def from_options(settings: Recipe, channels: int) -> ResNet:
    """Build the network that a recipe's options ask for.

    Args:
        settings: options.width (16), options.depth (1), options.stages (3), options.norm ("batch").
        channels: of an image.

    Returns:
        The network.

    Raises:
        InputError: an option outside its range.
    """
    width, depth, stages = (
        whole(f"options.{name}", settings.options.get(name, value))
        for name, value in (("width", 16), ("depth", 1), ("stages", 3))
    )
    norm: Norm = "group" if settings.options.get("norm", "batch") == "group" else "batch"
    normaliser(settings.options.get("norm", "batch"))  # ty: ignore[invalid-argument-type]
    return ResNet(channels, width, depth, stages, norm)
