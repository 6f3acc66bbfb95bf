"""State of models and optimizers by parameter name; torch's own optimizer state goes by position."""

from collections.abc import Mapping
from typing import Any

import torch

from isobatch.errors import InputError

_PLACES = ("params", "param_names")


def load_model(model: torch.nn.Module, state: Mapping[str, Any], what: str = "model") -> None:
    """Load a state dict by name; unlike `load_state_dict` it neither skips nor converts anything.

    Args:
        model: any module.
        state: what `state_dict` gave.
        what: name of the state, for messages.

    Raises:
        InputError: a missing or extra name, another shape or another dtype; the message holds both.

    Example:
        >>> load_model(torch.nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    """
    own = model.state_dict()
    _check_names(what, set(state), set(own))
    for name, value in own.items():
        if isinstance(value, torch.Tensor):
            _check_pair(f"{what} {name!r}", _kind(state[name]), _kind(value))
    model.load_state_dict(dict(state))


def optimizer_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Any]:
    """Return the state of an optimizer by parameter name.

    Args:
        optimizer: over parameters of the model.
        model: gives the names.

    Returns:
        {"state": {name: {...}}, "groups": [{"names", options}], "kinds": {name: dtype and shape}}; the tensors are the
        optimizer's own, not copies.

    Raises:
        InputError: a parameter that the model does not have.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer_state(torch.optim.SGD(model.parameters(), lr=0.1), model)["groups"][0]["names"]
        ['weight', 'bias']
    """
    groups = _grouped_names(optimizer, model)
    raw = optimizer.state_dict()
    names = [name for group in groups for name in group]  # torch numbers the parameters through all groups
    options = [{key: value for key, value in group.items() if key not in _PLACES} for group in raw["param_groups"]]
    parameters = dict(model.named_parameters())
    return {
        "state": {names[place]: dict(entry) for place, entry in raw["state"].items()},
        "groups": [{"names": groups[number], **option} for number, option in enumerate(options)],
        "kinds": {name: _kind(parameters[name]) for name in names},
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, stored: Mapping[str, Any], options: str = "stored"
) -> None:
    """Load what `optimizer_state` gave; groups are matched by the names in them, in whatever order they stand.

    State tensors keep their stored dtype bit for bit, also where torch would convert them to that of the parameter, and
    lie in memory as their parameter does (channels-last), which fused kernels rely on.

    Args:
        optimizer: over parameters of the model.
        model: gives the names.
        stored: what `optimizer_state` gave.
        options: "stored" takes lr, betas and the rest from the checkpoint, "current" leaves the optimizer's own.

    Raises:
        InputError: other names, shapes or dtypes, another grouping, or an option that the optimizer has not.
    """
    if options not in ("stored", "current"):
        raise InputError(f'options={options!r} must be "stored" or "current"')
    own, parameters = _grouped_names(optimizer, model), dict(model.named_parameters())
    _check_names("optimizer", {name for group in stored["groups"] for name in group["names"]}, set().union(*own))
    for name in sorted(set().union(*own)):
        _check_pair(f"optimizer {name!r}", stored["kinds"][name], _kind(parameters[name]))
    raw = optimizer.state_dict()
    for number, names in enumerate(own):
        match = _same_group(names, stored["groups"])
        if options == "stored":
            raw["param_groups"][number].update(_options(optimizer, match, raw["param_groups"][number]))
    place = {name: number for number, name in enumerate(name for names in own for name in names)}
    raw["state"] = {place[name]: dict(entry) for name, entry in stored["state"].items()}
    optimizer.load_state_dict(raw)
    for name, entry in stored["state"].items():
        held = optimizer.state[parameters[name]]
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                held[key] = _laid_out(value.detach().to(held[key].device, copy=True), parameters[name])


def _laid_out(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a state tensor with the strides of its parameter: fused kernels walk both as flat memory."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _options(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    theirs = {key: value for key, value in stored.items() if key != "names"}
    if unknown := sorted(set(theirs) - set(own)):
        raise InputError(
            f"optimizer option {unknown[0]!r} is {theirs[unknown[0]]!r} in the checkpoint, and "
            f"{type(optimizer).__name__} has no such option; use the optimizer of the checkpoint, or give "
            'options="current"'
        )
    return theirs


def _grouped_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise InputError(
                    f"optimizer group {number} holds a parameter of shape {tuple(parameter.shape)} that the model does "
                    "not name; give the model whose parameters it updates"
                )
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _same_group(names: list[str], groups: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    for group in groups:
        if set(group["names"]) == set(names):
            return group
    if not names:
        return {}
    theirs = next(group["names"] for group in groups if names[0] in group["names"])
    moved = sorted(set(theirs) ^ set(names))[0]
    raise InputError(
        f"optimizer {moved!r}: the checkpoint groups {names[0]!r} with {sorted(theirs)}, this run with "
        f"{sorted(names)}; build the same groups"
    )


def _kind(value: Any) -> list:
    return [str(value.dtype), list(value.shape)] if isinstance(value, torch.Tensor) else [type(value).__name__, []]


def _check_names(what: str, stored: set[str], own: set[str]) -> None:
    for word, names in (("missing in the checkpoint", own - stored), ("only in the checkpoint", stored - own)):
        if names:
            raise InputError(f"{what}: {sorted(names)} {word}; build the same {what} as the run that saved it")


def _check_pair(what: str, stored: list, own: list) -> None:
    if list(stored) != own:
        raise InputError(
            f"{what} is {stored[0]} {stored[1]} in the checkpoint and {own[0]} {own[1]} in this run; build the same "
            "shapes, and convert with .to(dtype) after loading"
        )
