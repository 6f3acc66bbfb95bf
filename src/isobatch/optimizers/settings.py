"""The one place that writes per-step numbers into an optimizer's parameter groups, keeping each group's ratios."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer

from isobatch.errors import InputError
from isobatch.units import finite

_RATIOS = {"lr": "lr_ratio", "weight_decay": "weight_decay_ratio"}


def bind(optimizer: Optimizer, *, lr: float | None = None, weight_decay: float | None = None) -> None:
    """Store in each parameter group its ratio to the base lr and weight decay, once.

    ratio = group value / base. A group that already has `lr_ratio` or `weight_decay_ratio` keeps it, so binding again
    is harmless. The ratios are plain numbers in the groups, so they travel with `state_dict`. Beside a base weight
    decay of 0 a group without decay gets ratio 1; give it `weight_decay_ratio=0.0` where a later decay must spare it.

    Args:
        optimizer: any torch optimizer.
        lr: base learning rate; None takes the optimizer's default.
        weight_decay: base weight decay; None takes the optimizer's default.

    Raises:
        InputError: a base that gives no ratio (lr of 0, or a group with decay beside a base of 0), or a base or ratio
            that is negative or no number; nothing was stored.

    Example:
        >>> a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.05}], lr=0.1)
        >>> bind(optimizer)
        >>> write_settings(optimizer, lr=0.4)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.4, 0.2]
    """
    bases = {"lr": lr, "weight_decay": weight_decay}
    ratios: list[dict[str, float]] = []
    for index, group in enumerate(optimizer.param_groups):
        ratios.append({})
        for key, given in bases.items():
            if key not in group:
                continue
            if _RATIOS[key] in group:
                finite(f"{_RATIOS[key]} of group {index}", group[_RATIOS[key]], 0)
                continue
            base = finite(f"base {key}", given, 0) if given is not None else float(optimizer.defaults[key])
            value = float(group[key])
            if base == 0 and (key == "lr" or value != 0):
                raise InputError(
                    f"group {index} has {key}={value:g} beside a base of 0: no ratio; "
                    f"give bind a base {key} > 0, or the group its own {_RATIOS[key]}"
                )
            ratios[index][_RATIOS[key]] = 1.0 if value == base else value / base
    for index, group in enumerate(optimizer.param_groups):
        group.update(ratios[index])


def write_settings(
    optimizer: Optimizer,
    *,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    eps: float | None = None,
) -> None:
    """Write the numbers of the coming step into every parameter group; all or nothing.

    lr and weight_decay are multiplied by each group's ratio (see `bind`). None leaves a number as it is. rmsprop keeps
    betas[1] under the name alpha.

    Args:
        optimizer: an optimizer from `build`, or one that `bind` has seen.
        lr: base learning rate of this step.
        betas: decays of this step.
        momentum: momentum of this step.
        weight_decay: base weight decay of this step.
        eps: epsilon of this step.

    Raises:
        InputError: a number out of range, one that the optimizer does not read, or a group that was never bound.

    Example:
        >>> optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> bind(optimizer)
        >>> write_settings(optimizer, betas=(0.0, 0.5))
        >>> optimizer.param_groups[0]["alpha"]
        0.5
    """
    given = {"betas": betas, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
    numbers = {name: value for name, value in given.items() if value is not None}
    if betas is not None and any("alpha" in group for group in optimizer.param_groups):
        numbers["alpha"] = decays("betas", numbers.pop("betas"))[1]
    write_prepared(optimizer, prepare_settings(optimizer, numbers), lr)


def prepare_settings(optimizer: Optimizer, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check numbers that many steps share, once; `write_prepared` writes them.

    Args:
        optimizer: an optimizer from `build`, or one that `bind` has seen.
        numbers: by the keys of its groups: betas, alpha, momentum, eps, weight_decay.

    Returns:
        For each parameter group what it gets.

    Raises:
        InputError: a number out of range, one that the optimizer does not read, or a group that was never bound.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> prepare_settings(optimizer, {"momentum": 0.5})
        [{'momentum': 0.5}]
    """
    checked: dict[str, Any] = {}
    for name, value in numbers.items():
        if name == "betas":
            checked[name] = decays(name, value)
        elif name in ("momentum", "alpha"):
            checked[name] = decay(name, value)
        else:
            checked[name] = finite(name, value, 0)
    return [_group_values(optimizer, index, group, checked) for index, group in enumerate(optimizer.param_groups)]


def write_prepared(optimizer: Optimizer, rows: Sequence[Mapping[str, Any]], lr: float | None = None) -> None:
    """Write what `prepare_settings` checked, and the learning rate of this step, into every parameter group.

    Args:
        optimizer: the one given to `prepare_settings`.
        rows: what it returned.
        lr: base learning rate of this step; None leaves it as it is.

    Raises:
        InputError: an lr out of range, a group that was never bound, or other groups than prepare_settings() saw;
            nothing was written.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        >>> bind(optimizer)
        >>> rows = prepare_settings(optimizer, {"momentum": 0.5})
        >>> write_prepared(optimizer, rows, lr=0.2)
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]
        (0.2, 0.5)
    """
    if len(rows) != len(optimizer.param_groups):
        raise InputError(
            f"settings of {len(rows)} parameter groups for an optimizer of {len(optimizer.param_groups)}; call "
            "prepare_settings(optimizer, ...) again after adding a group"
        )
    rates: list[dict[str, Any]] = [{} for _ in rows]
    if lr is not None:
        numbers = {"lr": finite("lr", lr, 0)}
        rates = [_group_values(optimizer, index, group, numbers) for index, group in enumerate(optimizer.param_groups)]
    for group, row, rate in zip(optimizer.param_groups, rows, rates, strict=True):
        for key, value in chain(row.items(), rate.items()):
            if group.get(key) is not value:
                assign(group, key, value)


def assign(group: dict[str, Any], option: str, value: Any) -> None:
    """Write one option of a parameter group; a tensor stays the same tensor, as compiled and captured steps need it.

    Args:
        group: of an optimizer.
        option: its name; "betas.0" is the first of a pair.
        value: a number, a pair of numbers, or anything where no tensor is held.

    Example:
        >>> group = {"lr": torch.tensor(0.1), "betas": (0.9, 0.99)}
        >>> kept = group["lr"]
        >>> assign(group, "lr", 0.5)
        >>> assign(group, "betas.0", 0.8)
        >>> float(kept), group["betas"]
        (0.5, (0.8, 0.99))
    """
    key, _, place = option.partition(".")
    held = group.get(key)
    if place:
        assign(group, key, tuple(value if str(n) == place else part for n, part in enumerate(held or ())))
    elif held is value:
        return
    elif isinstance(held, torch.Tensor):
        held.copy_(value.reshape(held.shape)) if isinstance(value, torch.Tensor) else held.fill_(value)
    elif isinstance(held, tuple) and isinstance(value, tuple | list) and len(held) == len(value):
        if isinstance(value, tuple) and not any(isinstance(part, torch.Tensor) for part in held):
            group[key] = value
            return
        parts: dict[str, Any] = {str(n): part for n, part in enumerate(held)}
        for n, part in enumerate(value):
            assign(parts, str(n), part)
        group[key] = tuple(parts.values())
    else:
        group[key] = value


def _group_values(optimizer: Optimizer, index: int, group: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
    """Return what one group gets, or refuse it; nothing is written here."""
    result: dict[str, Any] = {}
    for name, value in numbers.items():
        if name not in group:
            raise InputError(
                f"{name}={value} cannot be written: {type(optimizer).__name__} has no {name}; leave it out"
            )
        ratio = _RATIOS.get(name)
        if ratio is not None and ratio not in group:
            raise InputError(f"parameter group {index} was never bound; call isobatch.optimizers.bind(optimizer) first")
        result[name] = value if ratio is None else value * group[ratio]
    return result


def decay(name: str, value: float) -> float:
    """Return a decay in [0, 1), or refuse it.

    Args:
        name: what the decay is, for the message.
        value: the decay of one update.

    Returns:
        The decay as a float.

    Raises:
        InputError: not a number in [0, 1).

    Example:
        >>> decay("momentum", 0.9)
        0.9
    """
    number = finite(name, value, 0, 1)
    if number == 1:
        raise InputError(f"{name}=1 never takes in anything new; it must be in [0, 1)")
    return number


def decays(name: str, values: object) -> tuple[float, float]:
    """Return the decays of the first and the second moment, or refuse them.

    Args:
        name: what they are, for the message.
        values: two decays.

    Returns:
        Both as floats.

    Raises:
        InputError: not two, or one that is not in [0, 1).

    Example:
        >>> decays("betas", [0.9, 0.999])
        (0.9, 0.999)
    """
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise InputError(f"{name}={values!r} must be two decays in [0, 1), such as (0.9, 0.999)")
    return decay(f"{name}[0]", values[0]), decay(f"{name}[1]", values[1])
