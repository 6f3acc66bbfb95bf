"""What a change of the batch does to an optimizer's state: settings need no history, state does.

SGD's buffer is multiplied by (1-mu)/(1-mu'), so that it stays the buffer of the same gradient. Adam keeps m; v becomes
v*((1-f) + f/kappa) with f the noise share of the squared gradient; bias correction follows the accumulated decay.
"""

import math
from typing import Any

import torch
from torch import Tensor

from isobatch import rules
from isobatch.errors import InputError
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.optimizers.layer_wise import NAMES, is_layer_wise
from isobatch.plan import Settings

_SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
_KNOWN = {*_SECOND, "exp_avg", "momentum_buffer", "step", "grad_avg"}
_HANDLED = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.NAdam,
    torch.optim.RAdam,
)


def check(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state has no known answer to a change of the batch.

    Args:
        optimizer: the optimizer.

    Raises:
        InputError: an optimizer that is neither handled nor invariant.
    """
    if isinstance(optimizer, (*_HANDLED, InvariantOptimizer)) or is_layer_wise(optimizer):
        return
    names = ", ".join([*(kind.__name__ for kind in _HANDLED), *NAMES])
    raise InputError(
        f"{type(optimizer).__name__} keeps state that isobatch does not know how to rescale; it knows {names} and the "
        "invariant forms"
    )


def rescale_state(optimizer: torch.optim.Optimizer, old: Settings, new: Settings, share: float) -> None:
    """Change an optimizer's state in place for steps of another batch.

    Args:
        optimizer: one that `check` accepts.
        old: settings of the steps so far.
        new: settings of the steps to come.
        share: noise share of the second moment at the old batch, in [0, 1].
    """
    if isinstance(optimizer, InvariantOptimizer) or new.batch == old.batch:
        return
    factor = rules.second_moment_factor(new.batch / old.batch, share)
    buffers, seconds = [], []
    for state in optimizer.state.values():
        buffers += [state["momentum_buffer"]] if isinstance(state.get("momentum_buffer"), Tensor) else []
        seconds += [state[name] for name in _SECOND if isinstance(state.get(name), Tensor)]
    if buffers and new.momentum != old.momentum:
        torch._foreach_mul_(buffers, rules.buffer_factor(old.momentum, new.momentum))
    if seconds and factor != 1:
        torch._foreach_mul_(seconds, factor)
    _rescale_steps(optimizer, old, new)


def _rescale_steps(optimizer: torch.optim.Optimizer, old: Settings, new: Settings) -> None:
    """Set the step count for bias correction from the accumulated decay: beta2'**step' = beta2**step."""
    before, after = old.betas[1], new.betas[1]
    if before == after or not 0 < before < 1 or not 0 < after < 1:
        return
    ratio = math.log(before) / math.log(after)
    for group in optimizer.param_groups:
        if "step" in group:  # AdamP counts there
            group["step"] *= ratio
    for state in optimizer.state.values():
        step: Any = state.get("step")
        if isinstance(step, Tensor):
            step.mul_(ratio)
        elif step is not None:
            state["step"] = step * ratio
