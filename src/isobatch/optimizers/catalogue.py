"""Optimizers by name, and the one place that writes per-step numbers into their parameter groups."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from isobatch.errors import InputError
from isobatch.gradients import Ranks
from isobatch.optimizers import layer_wise
from isobatch.optimizers.family import InvariantAdam, InvariantAdamW, InvariantRMSprop
from isobatch.optimizers.settings import bind, decay
from isobatch.units import finite


@dataclass(frozen=True)
class Numbers:
    """The numbers that `build` hands to a row; a row reads those that its optimizer has."""

    lr: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    reference_batch: int | None
    process_group: Ranks = None


@dataclass(frozen=True)
class Row:
    """One optimizer of the catalogue.

    Args:
        make: builds it from parameters (or groups) and `Numbers`.
        coupled: True when weight decay is an L2 term inside the gradient, False when it is decoupled (AdamW), None when
            it is inside a trust ratio (LARS, LAMB).
        settings: the per-step numbers that it reads, a subset of lr, betas, momentum, weight_decay, eps.
        momentum: whether it takes a momentum.
        invariant: whether its second moment belongs to a reference batch.
    """

    make: Callable[[Any, Numbers], Optimizer]
    coupled: bool | None
    settings: tuple[str, ...]
    momentum: bool = False
    invariant: bool = False


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


def _sgd(params: Any, n: Numbers) -> Optimizer:
    return torch.optim.SGD(
        params, lr=n.lr, momentum=n.momentum, nesterov=n.nesterov, weight_decay=n.weight_decay, foreach=True
    )


def _adam(params: Any, n: Numbers) -> Optimizer:
    chosen, kernel = _kernel(params)
    return torch.optim.Adam(chosen, lr=n.lr, betas=n.betas, eps=n.eps, weight_decay=n.weight_decay, **kernel)


def _adamw(params: Any, n: Numbers) -> Optimizer:
    chosen, kernel = _kernel(params)
    return torch.optim.AdamW(chosen, lr=n.lr, betas=n.betas, eps=n.eps, weight_decay=n.weight_decay, **kernel)


def _rmsprop(params: Any, n: Numbers) -> Optimizer:
    return torch.optim.RMSprop(
        params,
        lr=n.lr,
        alpha=n.betas[1],
        eps=n.eps,
        weight_decay=n.weight_decay,
        momentum=n.momentum,
        foreach=True,
    )


def _reference(n: Numbers) -> int:
    if n.reference_batch is None:
        raise InputError("reference_batch=None: an invariant optimizer needs the samples of its reference batch")
    return n.reference_batch


def _invariant_adamw(params: Any, n: Numbers) -> Optimizer:
    return InvariantAdamW(
        params,
        lr=n.lr,
        betas=n.betas,
        eps=n.eps,
        weight_decay=n.weight_decay,
        reference_batch=_reference(n),
        process_group=n.process_group,
    )


def _invariant_adam(params: Any, n: Numbers) -> Optimizer:
    return InvariantAdam(
        params,
        lr=n.lr,
        betas=n.betas,
        eps=n.eps,
        weight_decay=n.weight_decay,
        reference_batch=_reference(n),
        process_group=n.process_group,
    )


def _invariant_rmsprop(params: Any, n: Numbers) -> Optimizer:
    return InvariantRMSprop(
        params,
        lr=n.lr,
        alpha=n.betas[1],
        eps=n.eps,
        weight_decay=n.weight_decay,
        momentum=n.momentum,
        reference_batch=_reference(n),
        process_group=n.process_group,
    )


def _lars(params: Any, n: Numbers) -> Optimizer:
    return layer_wise.lars(params, lr=n.lr, momentum=n.momentum, nesterov=n.nesterov, weight_decay=n.weight_decay)


def _lamb(params: Any, n: Numbers) -> Optimizer:
    return layer_wise.lamb(params, lr=n.lr, betas=n.betas, eps=n.eps, weight_decay=n.weight_decay)


def _adamp(params: Any, n: Numbers) -> Optimizer:
    return layer_wise.adamp(params, lr=n.lr, betas=n.betas, eps=n.eps, weight_decay=n.weight_decay)


_FORMS = {True: "L2", False: "decoupled", None: "trust-ratio"}
_SGD = ("lr", "momentum", "weight_decay")
_ADAM = ("lr", "betas", "weight_decay", "eps")
_RMSPROP = ("lr", "betas", "momentum", "weight_decay", "eps")

CATALOGUE: dict[str, Row] = {
    "sgd": Row(_sgd, coupled=True, settings=_SGD, momentum=True),
    "adam": Row(_adam, coupled=True, settings=_ADAM),
    "adamw": Row(_adamw, coupled=False, settings=_ADAM),
    "rmsprop": Row(_rmsprop, coupled=True, settings=_RMSPROP, momentum=True),
    "invariant_adamw": Row(_invariant_adamw, coupled=False, settings=_ADAM, invariant=True),
    "invariant_adam": Row(_invariant_adam, coupled=True, settings=_ADAM, invariant=True),
    "invariant_rmsprop": Row(_invariant_rmsprop, coupled=True, settings=_RMSPROP, momentum=True, invariant=True),
    "lars": Row(_lars, coupled=None, settings=_SGD, momentum=True),
    "lamb": Row(_lamb, coupled=None, settings=_ADAM),
    "adamp": Row(_adamp, coupled=False, settings=_ADAM),
}


def row(name: str) -> Row:
    """Return the catalogue's row of that name.

    Args:
        name: a key of `CATALOGUE`, in any case; dashes count as underscores.

    Returns:
        The row.

    Raises:
        InputError: no such optimizer; the message lists those there are.

    Example:
        >>> row("AdamW").coupled
        False
    """
    found = CATALOGUE.get(name.lower().replace("-", "_")) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"optimizer={name!r} is not known; choose one of {', '.join(CATALOGUE)}")
    return found


def build(
    name: str,
    params: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    coupled: bool | None = None,
    reference_batch: int | None = None,
    process_group: Ranks = None,
) -> Optimizer:
    """Build an optimizer by name and bind it, so that `write_settings` can drive it.

    Each optimizer reads the numbers that it has: sgd and rmsprop the momentum, the Adam family both betas, rmsprop
    betas[1] as its alpha, the invariant forms the reference batch.

    Args:
        name: a key of `CATALOGUE`.
        params: parameters, (name, parameter) pairs, or groups; a group's lr and weight_decay become ratios to the base.
        lr: base learning rate, positive.
        momentum: heavy-ball momentum in [0, 1).
        nesterov: Nesterov's form (sgd and lars; needs momentum).
        betas: decays of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: base weight decay, at least 0.
        coupled: None takes the optimizer's own form of decay; True or False demands L2 or decoupled decay.
        reference_batch: samples of the batch whose second moment the invariant forms keep; the others do not read it.
        process_group: ranks over which DDP averages, "alone" for none; only the invariant forms read it.

    Returns:
        The optimizer, bound to lr and weight_decay.

    Raises:
        InputError: an unknown name, a number out of range, or a form that this optimizer does not have.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = build("adamw", [weight], lr=1e-3, weight_decay=0.1)
        >>> optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[0]["lr_ratio"]
        (0.1, 1.0)
    """
    chosen = row(name)
    if coupled is not None and coupled != chosen.coupled:
        wanted = _FORMS[coupled]
        own = _FORMS[chosen.coupled]
        others = ", ".join(key for key, other in CATALOGUE.items() if other.coupled == coupled)
        raise InputError(f"optimizer={name!r} has {own} weight decay, not {wanted}; {wanted} decay: {others}")
    numbers = Numbers(
        lr=finite("lr", lr, 0, open_low=True),
        momentum=decay("momentum", momentum),
        nesterov=bool(nesterov),
        betas=(decay("betas[0]", betas[0]), decay("betas[1]", betas[1])),
        eps=finite("eps", eps, 0),
        weight_decay=finite("weight_decay", weight_decay, 0),
        reference_batch=reference_batch,
        process_group=process_group,
    )
    if numbers.momentum > 0 and not chosen.momentum:
        raise InputError(f"momentum={momentum:g} has no meaning for optimizer={name!r}; set betas[0], and momentum=0")
    if numbers.nesterov and (numbers.momentum == 0 or "betas" in chosen.settings):
        raise InputError(f"nesterov=True needs optimizer='sgd' and momentum > 0; got {name!r}, momentum={momentum:g}")
    optimizer = chosen.make(params, numbers)
    bind(optimizer, lr=numbers.lr, weight_decay=numbers.weight_decay)
    return optimizer
