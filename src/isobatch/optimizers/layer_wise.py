"""LARS, LAMB and AdamP from pytorch_optimizer, in their papers' forms and with their parameter groups.

| name | vectors (biases, norms) | form |
|---|---|---|
| lars | plain momentum SGD, no decay, by the library's rule | the learning rate outside the buffer, as in PyTorch |
| lamb | a group of their own: no decay, trust ratio 1 | no bias correction (version 3 of the paper), phi the identity |
| adamp | a group of their own: no decay; never projected | eps is added before bias correction, eps/sqrt(1-beta2^t) |
"""

import math
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from isobatch.installed import need


def groups(params: Iterable[Any], **vectors: Any) -> list[dict[str, Any]]:
    """Return matrices in one group and vectors in another that has no weight decay; groups stay as they are.

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        **vectors: further options of the group of vectors.

    Returns:
        Groups for an optimizer; the second one's ratio of weight decay is 0 for good (see `bind`).

    Example:
        >>> import torch
        >>> made = groups(torch.nn.Linear(2, 3).parameters())
        >>> [len(group["params"]) for group in made], made[1]["weight_decay_ratio"]
        ([1, 1], 0.0)
    """
    given = list(params)
    if given and isinstance(given[0], dict):
        return given
    parts: tuple[list[Any], list[Any]] = ([], [])
    for item in given:
        tensor = item[1] if isinstance(item, tuple) else item
        parts[tensor.ndim <= 1].append(item)
    made = [{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0, "weight_decay_ratio": 0.0, **vectors}]
    return [group for group in made if group["params"]]


def lars(
    params: Iterable[Any], *, lr: float, momentum: float, nesterov: bool, weight_decay: float, trust: float = 1e-3
) -> Optimizer:
    """Build LARS: v = mu*v + r*(g + lambda*w), w -= lr*v, r = trust*|w|/(|g| + lambda*|w|).

    Args:
        params: parameters or groups.
        lr: learning rate; that of vectors too, so it is chosen with them in mind.
        momentum: mu.
        nesterov: Nesterov's form.
        weight_decay: lambda, of matrices only.
        trust: the paper's eta.

    Returns:
        The optimizer.

    References:
        arXiv 1708.03888 (You, Gitman, Ginsburg).
    """
    need("optimizers")
    from pytorch_optimizer import LARS

    return LARS(
        list(params), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, trust_coefficient=trust
    )


def lamb(params: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Optimizer:
    """Build LAMB: u = m/(sqrt(v) + eps) + lambda*w, w -= lr*|w|/|u|*u.

    Args:
        params: parameters (vectors then get a group with trust ratio 1 and no decay) or groups.
        lr: learning rate.
        betas: decays of m and v.
        eps: beside sqrt(v).
        weight_decay: lambda.

    Returns:
        The optimizer.

    References:
        arXiv 1904.00962 (You et al.).
    """
    need("optimizers")
    from pytorch_optimizer import Lamb

    # the library's defaults take a ten times larger first step, decouple the decay from the norm, and clip |w| at 10
    flags = {"weight_decouple": False, "adam_debias": True}
    made = Lamb(groups(params, adam=True), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **flags)
    made.clamp = math.inf
    return made


def adamp(
    params: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Optimizer:
    """Build AdamP: Adam whose update loses its radial part where the weights' scale does not matter.

    Args:
        params: parameters (vectors then get a group without decay) or groups.
        lr: learning rate.
        betas: decays of the moments.
        eps: beside sqrt(v), before bias correction.
        weight_decay: decoupled, a tenth of it where the update is projected.

    Returns:
        The optimizer.

    References:
        arXiv 2006.08217 (Heo et al.).
    """
    need("optimizers")
    from pytorch_optimizer import AdamP

    return AdamP(groups(params), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
