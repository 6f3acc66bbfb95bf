"""What builds the stock optimizers: torch's own, with the fastest kernel that each of them has."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from isobatch.errors import InputError


def sgd(params: Any, **numbers: Any) -> Optimizer:
    """Build torch's SGD, all parameters in one pass.

    Args:
        params: parameters or groups.
        **numbers: lr, momentum, nesterov, weight_decay.

    Returns:
        The optimizer.
    """
    return torch.optim.SGD(params, foreach=True, **numbers)


def adam(params: Any, **numbers: Any) -> Optimizer:
    """Build torch's Adam by its fastest kernel.

    Args:
        params: parameters or groups.
        **numbers: lr, betas, eps, weight_decay.

    Returns:
        The optimizer.
    """
    chosen, kernel = _kernel(params)
    return torch.optim.Adam(chosen, **numbers, **kernel)


def adamw(params: Any, **numbers: Any) -> Optimizer:
    """Build torch's AdamW by its fastest kernel.

    Args:
        params: parameters or groups.
        **numbers: lr, betas, eps, weight_decay.

    Returns:
        The optimizer.
    """
    chosen, kernel = _kernel(params)
    return torch.optim.AdamW(chosen, **numbers, **kernel)


def rmsprop(params: Any, **numbers: Any) -> Optimizer:
    """Build torch's RMSprop, all parameters in one pass.

    Args:
        params: parameters or groups.
        **numbers: lr, alpha, eps, momentum, weight_decay.

    Returns:
        The optimizer.
    """
    return torch.optim.RMSprop(params, foreach=True, **numbers)


def muon(params: Any, **numbers: Any) -> Optimizer:
    """Build torch's Muon, which orthogonalises the momentum of matrices and knows nothing else.

    Args:
        params: parameters or groups, all of two dimensions.
        **numbers: lr, momentum, nesterov, weight_decay.

    Returns:
        The optimizer.

    Raises:
        InputError: a parameter that is no matrix.
    """
    chosen = list(params)
    listed = [entry["params"] if isinstance(entry, dict) else entry for entry in chosen]
    other = next((t for t in _flat(listed) if isinstance(t, torch.Tensor) and t.ndim != 2), None)
    if other is not None:
        raise InputError(
            f"optimizer='muon' orthogonalises matrices, and a parameter has the shape {tuple(other.shape)}; give such "
            "parameters a group with an optimizer of their own, or use another optimizer"
        )
    return torch.optim.Muon(chosen, **numbers)


def _kernel(params: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the parameters and torch's fastest kernel for them: one pass over all state, where it can be had."""
    chosen = list(params)
    listed = [entry["params"] if isinstance(entry, dict) else entry for entry in chosen]
    tensors = [t for t in _flat(listed) if isinstance(t, torch.Tensor)]
    fused = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
    return chosen, {"fused": True} if fused and tensors else {"foreach": True}


def _flat(entries: Iterable[Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, list | tuple):
            yield from _flat(entry)
        else:
            yield entry
