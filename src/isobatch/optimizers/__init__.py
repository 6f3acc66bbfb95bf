"""Optimizers: the invariant Adam family, and builders of those that `isobatch.rules.OPTIMIZERS` names."""

from isobatch.installed import need

need("torch")

from isobatch.optimizers.catalogue import build
from isobatch.optimizers.family import InvariantAdam, InvariantAdamW, InvariantRMSprop
from isobatch.optimizers.layers import layer_squares
from isobatch.optimizers.settings import bind, prepare_settings, write_prepared, write_settings
from isobatch.optimizers.split import split_backward
from isobatch.renamed import old_names

__all__ = [
    "InvariantAdam",
    "InvariantAdamW",
    "InvariantRMSprop",
    "bind",
    "build",
    "layer_squares",
    "prepare_settings",
    "split_backward",
    "write_prepared",
    "write_settings",
]

__getattr__ = old_names(
    __name__,
    {
        "CATALOGUE": "isobatch.rules.OPTIMIZERS",
        "Row": "isobatch.rules.OptimizerRow",
        "put": "isobatch.optimizers.write_prepared",
        "ready": "isobatch.optimizers.prepare_settings",
    },
)
