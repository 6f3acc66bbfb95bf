"""A small CTC transformer: convolutions that keep every third frame, pre-norm blocks, one score a letter."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.tasks.text import Block
from isobatch_studies.tasks.speech.metric import CLASSES

STRIDE = 3


class Recogniser(nn.Module):
    """Map log-mel features to scores of letters, 33 frames a second; padding changes nothing.

    Args:
        bands: mel bands.
        width: of the residual stream, a multiple of the heads.
        layers: blocks.
        heads: attention heads.

    Example:
        >>> scores, lengths = Recogniser()(torch.zeros(2, 100, 32), torch.tensor([100, 50]))
        >>> scores.shape, lengths.tolist()
        (torch.Size([2, 34, 29]), [34, 17])
    """

    def __init__(self, bands: int = 32, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 5, stride=STRIDE, padding=2)
        self.conv2 = nn.Conv1d(width, width, 5, padding=2)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores of shape (batch, frames, classes) and valid frames of shape (batch,).

        Features have shape (batch, frames, bands) and are 0 beyond each of `lengths`.
        """
        x = F.gelu(self.conv1(features.to(self.head.weight.dtype).transpose(1, 2)))
        lengths = (lengths + STRIDE - 1) // STRIDE
        valid = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
        # the bias has filled the padding, which the second convolution must not see
        x = x * valid[:, None]
        x = x + F.gelu(self.conv2(x))
        x = x.transpose(1, 2)
        x = x + positions(x.shape[1], x.shape[2], x.device)
        for block in self.blocks:
            x = block(x, valid[:, None, None])
        return self.head(self.norm(x)), lengths


def positions(frames: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Return sines and cosines of positions.

    Args:
        frames: positions.
        width: features, even.
        device: where.

    Returns:
        float32 tensor of shape (frames, width), values scaled by 0.5.
    """
    turns = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(1000.0) / width))
    angle = torch.arange(frames, device=device)[:, None] * turns
    return 0.5 * torch.cat((angle.sin(), angle.cos()), 1)
