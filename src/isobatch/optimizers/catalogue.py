"""Optimizers by name: `build` makes what a row of `isobatch.rules.OPTIMIZERS` says, and binds it."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from isobatch.errors import InputError
from isobatch.gradients import Ranks
from isobatch.installed import need
from isobatch.optimizers.settings import bind, decay, decays
from isobatch.rules import OPTIMIZERS, OptimizerRow
from isobatch.rules.optimizers import trained
from isobatch.units import finite

_FORMS = {"coupled": "L2", "decoupled": "decoupled", "trust-ratio": "trust-ratio"}


def build(
    name: str,
    params: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    alpha: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    coupled: bool | None = None,
    reference_batch: int | None = None,
    process_group: Ranks = None,
) -> Optimizer:
    """Build an optimizer by name and bind it, so that `write_settings` can drive it.

    Each optimizer takes the numbers of its row's keys: sgd and rmsprop the momentum, the Adam family both betas,
    rmsprop alpha, the invariant forms the reference batch.

    Args:
        name: a key of `isobatch.rules.OPTIMIZERS` whose row has a builder, in any case; underscores count as dashes.
        params: parameters, (name, parameter) pairs, or groups; a group's lr and weight_decay become ratios to the base.
        lr: base learning rate, positive.
        momentum: heavy-ball momentum in [0, 1).
        nesterov: Nesterov's form (sgd and lars; needs momentum).
        betas: decays of the first and second moment, each in [0, 1).
        alpha: decay of RMSprop's second moment; betas[1] unless given.
        eps: added to the root of the second moment.
        weight_decay: base weight decay, at least 0.
        coupled: None takes the optimizer's own form of decay; True or False demands L2 or decoupled decay.
        reference_batch: samples of the batch whose second moment the invariant forms keep; the others do not read it.
        process_group: ranks over which DDP averages, "alone" for none; only the invariant forms read it.

    Returns:
        The optimizer, bound to lr and weight_decay.

    Raises:
        InputError: an unknown name, a number out of range, a form that this optimizer does not have, or no parameters
            that it can train.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = build("adamw", [weight], lr=1e-3, weight_decay=0.1)
        >>> optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[0]["lr_ratio"]
        (0.1, 1.0)
    """
    row = _row(name)
    _check_form(row, coupled, nesterov, momentum)
    numbers: dict[str, Any] = {
        "lr": finite("lr", lr, 0, open_low=True),
        "momentum": decay("momentum", momentum),
        "betas": decays("betas", betas),
        "alpha": decays("betas", betas)[1] if alpha is None else decay("alpha", alpha),
        "eps": finite("eps", eps, 0),
        "weight_decay": finite("weight_decay", weight_decay, 0),
    }
    taken = {key: numbers[key] for key in row.keys}
    if row.nesterov:
        taken["nesterov"] = bool(nesterov)
    if row.invariant:
        if reference_batch is None:
            raise InputError("reference_batch=None: an invariant optimizer needs the samples of its reference batch")
        taken |= {"reference_batch": reference_batch, "process_group": process_group}
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise InputError(f"params={type(params).__name__} must be several parameters, such as model.parameters()")
    builder = _builder(row)
    try:
        optimizer = builder(params, **taken)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"optimizer={row.name!r} cannot be built ({error}); give leaf tensors such as model.parameters(), each once"
        ) from error
    if type(optimizer).__module__.startswith("pytorch_optimizer."):
        for group in optimizer.param_groups:
            group.setdefault("step", 0)  # counted there once it steps: a fresh one can take over a stored count
    bind(optimizer, lr=numbers["lr"], weight_decay=numbers["weight_decay"])
    return optimizer


def _check_form(row: OptimizerRow, coupled: bool | None, nesterov: bool, momentum: float) -> None:
    """Refuse a form of decay or momentum that an optimizer does not have, with those that have it."""
    wanted = "coupled" if coupled else "decoupled"
    if coupled is not None and row.decay != wanted:
        others = ", ".join(key for key, other in OPTIMIZERS.items() if other.decay == wanted and other.builder)
        own, asked = _FORMS[row.decay], _FORMS[wanted]
        raise InputError(f"optimizer={row.name!r} has {own} weight decay, not {asked}; {asked} decay: {others}")
    if decay("momentum", momentum) > 0 and "momentum" not in row.moments:
        raise InputError(
            f"momentum={momentum:g} has no meaning for optimizer={row.name!r}; set betas[0], and momentum=0"
        )
    if nesterov and not (row.nesterov and momentum > 0):
        forms = " or ".join(repr(key) for key, other in OPTIMIZERS.items() if other.nesterov)
        raise InputError(
            f"nesterov=True needs optimizer={forms} and momentum > 0; got {row.name!r}, momentum={momentum:g}"
        )


def _row(name: str) -> OptimizerRow:
    row = OPTIMIZERS.get(name.lower().replace("_", "-")) if isinstance(name, str) else None
    if row is None:
        raise InputError(f"optimizer={name!r} is not known; choose one of {trained()}")
    if row.builder is None:
        raise InputError(f"optimizer={name!r} can be planned but not trained; choose one of {trained()}")
    return row


def _builder(row: OptimizerRow) -> Callable[..., Optimizer]:
    home, _, name = str(row.builder).rpartition(".")
    if home.startswith("pytorch_optimizer"):
        need("optimizers")
    return getattr(import_module(home), name)
