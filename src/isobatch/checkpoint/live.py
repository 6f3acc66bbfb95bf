"""State of models and optimizers by parameter name; torch's own optimizer state goes by position.

Names are those of the bare model: what torch.compile, DataParallel and DistributedDataParallel put into them is left
out, at saving and at loading, so that a run may be wrapped otherwise than the one that saved it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from isobatch.checkpoint.shards import Sharded, placed
from isobatch.errors import InputError
from isobatch.gradients import address, bare_optimizer, canonical, dressed, fitted, local, sharded
from isobatch.optimizers.settings import assign

_PLACES = ("params", "param_names")
# What schedulers and `rescale` leave in the groups: it belongs to the run, not to the optimizer's options.
_NOTES = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr",
          "isobatch_batch", "isobatch_share"}  # fmt: skip


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return a model's state dict under the names of the bare model.

    Args:
        model: any module, wrapped or not.

    Returns:
        Its tensors, which are the model's own, by name.

    Example:
        >>> list(model_state(torch.nn.DataParallel(torch.nn.Linear(2, 1))))
        ['weight', 'bias']
    """
    renamed = _bare_names(model, model.state_dict())
    return {renamed[name]: value for name, value in model.state_dict().items()}


@torch.inference_mode(False)
@torch.no_grad()
def load_model(model: nn.Module, state: Mapping[str, Any], what: str = "model") -> None:
    """Load a state dict by name; unlike `load_state_dict` it neither skips nor converts anything.

    Wrappers' parts of names (`module.`, `_orig_mod.`) do not count on either side. A tensor that the model ties to
    others may be stored under one of their names.

    Args:
        model: any module with weights, sharded or not: none on the meta device or lazy.
        state: what `state_dict` gave, of this model or of a wrapped one.
        what: name of the state, for messages.

    Raises:
        InputError: a missing or extra name, another shape, dtype or layout, weights that cannot be written, or tied
            ones that differ; the message holds both.

    Example:
        >>> load_model(torch.nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    """
    own = model.state_dict()
    bare = _bare_names(model, own)
    for name, value in own.items():
        _check_writable(f"{what} {bare[name]!r}", value)
    stored = _matched(state, bare.values())
    ties = _ties({bare[name]: value for name, value in own.items()})
    for names in ties:
        held = [name for name in names if name in stored]
        for name in held[1:]:
            if not _same(stored[held[0]], stored[name]):
                raise InputError(
                    f"{what}: {held[0]!r} and {name!r} are one tensor in this run and differ in the checkpoint; build "
                    "the model untied, as the run that saved it"
                )
        stored |= {name: stored[held[0]] for name in names if held and name not in stored}
    _check_names(what, set(stored), set(bare.values()))
    for name, value in own.items():
        if isinstance(value, Tensor):
            _check_pair(f"{what} {bare[name]!r}", _kind(stored[bare[name]]), _kind(value))
            _check_readable(f"{what} {bare[name]!r}", stored[bare[name]])
    model.load_state_dict({name: _laid_over(stored[bare[name]], value, bare[name]) for name, value in own.items()})


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the state of an optimizer by parameter name.

    Args:
        optimizer: over parameters of the model; one that Accelerate wraps is seen through.
        model: gives the names, without those of wrappers.

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
    optimizer = bare_optimizer(optimizer)
    groups = _grouped_names(optimizer, model)
    raw = optimizer.state_dict()
    names = [name for group in groups for name in group]  # torch numbers the parameters through all groups
    options = [{key: value for key, value in group.items() if key not in _PLACES} for group in raw["param_groups"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "state": {names[place]: dict(entry) for place, entry in raw["state"].items()},
        "groups": [{"names": groups[number], **option} for number, option in enumerate(options)],
        "kinds": {name: _kind(parameter) for name, parameter in zip(names, parameters, strict=True)},
    }


@torch.inference_mode(False)
@torch.no_grad()
def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, stored: Mapping[str, Any], options: str = "stored"
) -> None:
    """Load what `optimizer_state` gave; groups are matched by the names in them, in whatever order they stand.

    State tensors keep their stored dtype bit for bit, also where torch would convert them to that of the parameter, and
    lie in memory as their parameter does (channels-last), which fused kernels rely on. Options that are tensors, such
    as the learning rate of a compiled optimizer, stay the same tensors.

    Args:
        optimizer: over parameters of the model; one that Accelerate wraps is seen through.
        model: gives the names, without those of wrappers; a tied parameter has all of its names.
        stored: what `optimizer_state` gave.
        options: "stored" takes lr, betas and the rest from the checkpoint, "current" leaves the optimizer's own.

    Raises:
        InputError: other names, shapes or dtypes, another grouping, or an option that the optimizer has not.
    """
    if options not in ("stored", "current"):
        raise InputError(f'options={options!r} must be "stored" or "current"')
    if not {"state", "groups", "kinds"} <= stored.keys():
        raise InputError(
            f"the optimizer state holds {sorted(map(str, stored))}; give what optimizer_state(optimizer, model) "
            "returned, which goes by names"
        )
    optimizer = bare_optimizer(optimizer)
    own = _grouped_names(optimizer, model)
    parameters = {name: value for name, value in _named(model) if name in set().union(*own)}
    stored = _renamed(stored, model, parameters)
    _check_names("optimizer", {name for group in stored["groups"] for name in group["names"]}, set(parameters))
    for name in sorted(parameters):
        _check_pair(f"optimizer {name!r}", stored["kinds"][name], _kind(parameters[name]))
    raw, before = optimizer.state_dict(), [dict(group) for group in optimizer.param_groups]
    for number, names in enumerate(own):
        match = _same_group(names, stored["groups"])
        if options == "stored":
            raw["param_groups"][number].update(_options(optimizer, match, raw["param_groups"][number]))
    place = {name: number for number, name in enumerate(name for names in own for name in names)}
    state = {name: _entry(entry, parameters[name]) for name, entry in stored["state"].items()}
    raw["state"] = {place[name]: dict(entry) for name, entry in state.items()}
    optimizer.load_state_dict(raw)
    for group, held in zip(optimizer.param_groups, before, strict=True):
        _keep_tensors(group, held)
    for name, entry in state.items():
        held = optimizer.state[parameters[name]]
        for key, value in entry.items():
            if isinstance(value, Tensor):
                held[key] = _laid_out(value.detach().to(held[key].device, copy=True), parameters[name])


def _entry(entry: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return the stored state of one parameter as it lies here: what has its shape is spread as it is."""
    found = {}
    for key, value in entry.items():
        alike = isinstance(value, Tensor | Sharded) and value.shape == parameter.shape
        found[key] = _laid_over(value, parameter, key) if alike else placed(value, None)
    return found


def _laid_over(stored: Any, like: Any, name: str) -> Any:
    """Return a stored tensor spread over ranks as one of this run is; anything else as it is."""
    if isinstance(stored, Sharded):
        return stored.part(like) if isinstance(like, Tensor) else stored.whole()
    if isinstance(stored, Tensor) and isinstance(like, Tensor) and sharded(like):
        return dressed(fitted(stored, like, name), like)
    return stored


def _bare_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return {name in the wrapped model: name in the bare one}."""
    kinds = (DataParallel, DistributedDataParallel)
    wrappers = [path for path, part in model.named_modules() if isinstance(part, kinds)]
    found = {}
    for name in names:
        bare = name
        for path in reversed(wrappers):  # inner ones first, so that outer paths still fit
            head = f"{path}." if path else ""
            if bare.startswith(f"{head}module."):
                bare = head + bare.removeprefix(f"{head}module.")
        found[name] = canonical(bare)
    return found


def _matched(state: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Return a stored state under this run's names; wrappers' parts of names count only where they tell two apart."""
    names = set(own)
    if set(state) == names:
        return dict(state)
    mine: dict[str, list[str]] = {}
    for name in names:
        mine.setdefault(_essence(name), []).append(name)
    found: dict[str, Any] = {}
    for name, value in state.items():
        fits = [name] if name in names else mine.get(_essence(name), [])
        new = fits[0] if len(fits) == 1 else name
        if new in found:
            return dict(state)
        found[new] = value
    return found


def _essence(name: str) -> str:
    return ".".join(part for part in canonical(name).split(".") if part != "module")


def _ties(own: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of each tensor that has several."""
    places: dict[tuple, list[str]] = {}
    for name, value in own.items():
        if isinstance(value, Tensor) and value.numel():
            place = (value.device, address(value), value.stride())
            places.setdefault((*place, value.shape, value.dtype), []).append(name)
    return [names for names in places.values() if len(names) > 1]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Sharded) or isinstance(other, Sharded):
        return isinstance(one, Sharded) and isinstance(other, Sharded) and one.same(other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        one, other = local(one), local(other)
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all()))


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters by bare name, tied ones under each of their names."""
    pairs = list(model.named_parameters(remove_duplicate=False))
    bare = _bare_names(model, [name for name, _ in pairs])
    return [(bare[name], parameter) for name, parameter in pairs]


def _renamed(stored: Mapping[str, Any], model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return a stored optimizer state under this run's names, through wrappers and ties."""
    first = {id(parameter): name for name, parameter in parameters.items()}
    aliases = {name: first[id(parameter)] for name, parameter in _named(model) if id(parameter) in first}
    given = [name for group in stored["groups"] for name in group["names"]]
    fits = {name: aliases.get(new, new) for new, name in _matched({name: name for name in given}, aliases).items()}
    if len(set(fits.values())) < len(given):
        fits = {name: name for name in given}
    return {
        "state": {fits[name]: entry for name, entry in stored["state"].items()},
        "groups": [{**group, "names": [fits[name] for name in group["names"]]} for group in stored["groups"]],
        "kinds": {fits[name]: kind for name, kind in stored["kinds"].items()},
    }


def _keep_tensors(group: dict[str, Any], held: Mapping[str, Any]) -> None:
    """Put loaded options into the tensors that the optimizer had; numbers stay numbers."""
    for key, loaded in group.items():
        before = held.get(key)
        if key == "params" or before is None:
            continue
        value = float(loaded) if isinstance(loaded, Tensor) and isinstance(before, float) else loaded
        group[key] = before
        assign(group, key, value)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a state tensor with the strides of its parameter: fused kernels walk both as flat memory."""
    if value.shape != parameter.shape or sharded(value) or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _options(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    theirs = {key: value for key, value in stored.items() if key != "names"}
    if unknown := sorted(set(theirs) - set(own) - _NOTES):
        raise InputError(
            f"optimizer option {unknown[0]!r} is {theirs[unknown[0]]!r} in the checkpoint, and "
            f"{type(optimizer).__name__} has no such option; use the optimizer of the checkpoint, or give "
            'options="current"'
        )
    return theirs


def _grouped_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    names: dict[int, str] = {}
    for name, parameter in _named(model):
        names.setdefault(id(parameter), name)
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
    if isinstance(value, (UninitializedBuffer, UninitializedParameter)):
        raise InputError("the model has lazy parameters without a shape; run one batch through it first")
    held = isinstance(value, Tensor | Sharded)
    return [str(value.dtype), list(value.shape)] if held else [type(value).__name__, []]


def _check_writable(what: str, value: Any) -> None:
    """Refuse weights that hold no numbers, or that torch would not write to."""
    if not isinstance(value, Tensor):
        return
    if isinstance(value, (UninitializedBuffer, UninitializedParameter)):
        raise InputError(f"{what} is lazy and has no shape yet; run one batch through the model, then load")
    if value.is_meta:
        raise InputError(f"{what} is on the meta device and holds nothing; model.to_empty(device=...) first, then load")
    if value.is_inference():
        raise InputError(f"{what} was made in inference mode and cannot be written; build the model outside of it")


def _check_readable(what: str, value: Any) -> None:
    if isinstance(value, Sharded):
        return
    if value.is_meta:
        raise InputError(f"{what} is on the meta device in the state, without values; give the state with its tensors")
    if value.layout != torch.strided:
        raise InputError(f"{what} is {value.layout}, {type(value).__name__} in the state; give a dense tensor of it")


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


def load_together(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Let members take over their states, all of them or none.

    Args:
        pairs: member and state. Each refuses as a whole; of all but the last the state before is copied, so that the
            largest belongs there.

    Raises:
        InputError: a state that its member refuses; those before it were put back.
    """
    done: list[tuple[Any, Any]] = []
    try:
        for number, (member, state) in enumerate(pairs):
            before = copy.deepcopy(member.state_dict()) if number + 1 < len(pairs) else None
            member.load_state_dict(state)
            done.append((member, before))
    except BaseException:
        for member, before in reversed(done):
            member.load_state_dict(before)
        raise
