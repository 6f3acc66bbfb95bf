"""Optimizers: the invariant Adam family, and a thin catalogue of others."""

from isobatch.installed import need

need("torch")

from isobatch.optimizers.catalogue import CATALOGUE, Row, build
from isobatch.optimizers.family import InvariantAdam, InvariantAdamW, InvariantRMSprop
from isobatch.optimizers.layers import layer_squares
from isobatch.optimizers.settings import bind, put, ready, write_settings
from isobatch.optimizers.split import split_backward

__all__ = [
    "CATALOGUE",
    "InvariantAdam",
    "InvariantAdamW",
    "InvariantRMSprop",
    "Row",
    "bind",
    "build",
    "layer_squares",
    "put",
    "ready",
    "split_backward",
    "write_settings",
]
