"""What a change of the batch does to an optimizer's state, by the factors that its row gives."""

from typing import Any

import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.plan import Settings
from isobatch.rules import OPTIMIZERS, OptimizerRow, StateChange, state_factors
from isobatch.rules.optimizers import row_of_class


def row_of_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerRow:
    """Return the row by which an optimizer's state is moved, or refuse the optimizer.

    Args:
        optimizer: the optimizer.

    Returns:
        Its row.

    Raises:
        InputError: an optimizer whose state has no known answer to a change of the batch.
    """
    row = row_of_class(type(optimizer))
    if row is None:
        plain, forms = [], []
        for known in OPTIMIZERS.values():
            (forms if known.invariant else plain).extend(known.classes)
        raise InputError(
            f"{type(optimizer).__name__} keeps state that isobatch does not know how to rescale; it knows "
            f"{', '.join(plain)} and the invariant forms {', '.join(forms)}"
        )
    return row


def rescale_state(optimizer: torch.optim.Optimizer, old: Settings, new: Settings, share: float) -> None:
    """Change an optimizer's state in place for steps of another batch.

    SGD's buffer is multiplied by (1-mu)/(1-mu'), so that it stays the buffer of the same gradient. Adam keeps m; v
    becomes v*((1-f) + f/kappa) with f the noise share of the squared gradient; bias correction follows the accumulated
    decay. The optimizer's row says which of them it has.

    Args:
        optimizer: one that `row_of_optimizer` accepts.
        old: settings of the steps so far.
        new: settings of the steps to come.
        share: noise share of the second moment at the old batch, in [0, 1].
    """
    if new.batch == old.batch:
        return
    row = row_of_optimizer(optimizer)
    change = StateChange(new.batch / old.batch, share, (old.momentum, new.momentum), (old.betas[1], new.betas[1]))
    for key, factor in state_factors(row, change).items():
        if factor != 1:
            _multiply(optimizer, key, factor)


def _multiply(optimizer: torch.optim.Optimizer, key: str, factor: float) -> None:
    tensors = []
    for state in optimizer.state.values():
        value: Any = state.get(key)
        if isinstance(value, Tensor):
            tensors.append(value)
        elif value is not None:
            state[key] = value * factor
    if tensors:
        torch._foreach_mul_(tensors, factor)
    for group in optimizer.param_groups:
        if key in group:  # layer-wise optimizers count steps there
            group[key] *= factor
