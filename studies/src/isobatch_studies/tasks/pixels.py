"""Labelled images as uint8 tensors: what every source of them gives."""

import hashlib
from dataclasses import dataclass

import torch
from torch.nn import functional as F

Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Images:
    """Labelled images, split.

    Args:
        train: uint8 of shape (n, channels, side, side), and int64 labels.
        held: the same, held out.
        classes: number of labels.
        facts: source and hash.
    """

    train: Part
    held: Part
    classes: int
    facts: dict[str, str]


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    """Return images at another size, each pixel the mean of what it covers.

    Args:
        x: uint8 of shape (n, channels, height, width).
        side: pixels.

    Returns:
        uint8 of shape (n, channels, side, side).

    Example:
        >>> resized(torch.full((1, 3, 8, 8), 9, dtype=torch.uint8), 4).shape
        torch.Size([1, 3, 4, 4])
    """
    if x.shape[2:] == (side, side):
        return x
    parts = [F.adaptive_avg_pool2d(part.float(), side).round().to(torch.uint8) for part in x.split(4096)]
    return torch.cat(parts)


def digest(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of tensors.

    Args:
        *tensors: on the CPU.

    Returns:
        Hexadecimal digits.

    Example:
        >>> digest(torch.zeros(1))[:8]
        'df3f6198'
    """
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(tensor.contiguous().numpy().tobytes())
    return made.hexdigest()
