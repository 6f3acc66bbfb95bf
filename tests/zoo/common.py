"""Small trainers to be broken: regression, ragged tokens, batch norm."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.split import Subject, pieces


def mlp(norm=None):
    layers = [nn.Linear(5, 8), *([norm] if norm is not None else []), nn.Tanh(), nn.Linear(8, 2)]
    return nn.Sequential(*layers)


def regression(rows=24):
    torch.manual_seed(7)
    return torch.randn(rows, 5), torch.randn(rows, 2)


def tokens(rows=24, length=9):
    """Inputs, targets and a mask of ragged lengths."""
    torch.manual_seed(7)
    lengths = torch.tensor([2, 9, 3, 7, 5, 1, 8, 4]).repeat(rows // 8)
    mask = (torch.arange(length) < lengths[:, None]).to(torch.get_default_dtype())
    return torch.randint(0, 11, (rows, length)), torch.randint(0, 11, (rows, length)), mask


def language_model():
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))


def token_losses(model, batch):
    x, y, mask = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none") * mask.flatten()


def mse(model, batch, reduction="mean"):
    return F.mse_loss(model(batch[0]), batch[1], reduction=reduction)


def sgd(model, lr=0.1, **more):
    return torch.optim.SGD(model.parameters(), lr=lr, **more)


def share(piece, batch):
    return len(piece[0]) / len(batch[0])


def copied(model):
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def ema(average, model, decay=0.9):
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


__all__ = ["F", "Subject", "copied", "ema", "language_model", "mlp", "mse", "nn", "pieces", "regression", "sgd",
           "share", "token_losses", "tokens", "torch"]  # fmt: skip
