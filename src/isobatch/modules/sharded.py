"""Copies of modules that FSDP2 shards: sharded alike, without any rank ever holding whole weights.

A copy is made with weights on the meta device, sharded by the same calls as the original, and then given its shards.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from isobatch.errors import InputError

_MARKS = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")


class Unit(NamedTuple):
    """One call of fully_shard: the modules that it was given, and torch's account of it."""

    modules: tuple[nn.Module, ...]
    state: Any
    group: Any


def bare_class(module: nn.Module) -> type:
    """Return the class that a module had before fully_shard.

    Args:
        module: any.

    Returns:
        Its own class where it was not sharded.

    Example:
        >>> bare_class(nn.Linear(1, 1)).__name__
        'Linear'
    """
    kind = type(module)
    return kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)] if isinstance(module, FSDPModule) else kind


def is_mark(key: str) -> bool:
    """Whether an attribute of a module is a mark that fully_shard has left.

    Args:
        key: name of it.

    Returns:
        True for what a copy makes anew.

    Example:
        >>> is_mark("weight")
        False
    """
    return key.startswith(_MARKS)


def param_groups(module: FSDPModule) -> list[Any]:
    """Return torch's account of the parameters that one call of fully_shard manages.

    Args:
        module: that the call was given.

    Returns:
        One for each mesh; none where all parameters belong to modules inside.
    """
    state = module._get_fsdp_state()
    found = vars(state).get("_fsdp_param_groups")
    return list(found) if found is not None else [g for g in [state._fsdp_param_group] if g is not None]


def units(root: nn.Module) -> Iterator[Unit]:
    """Yield the calls of fully_shard that a model has had, inner modules first.

    Args:
        root: any model.

    Yields:
        Each call once.

    Raises:
        InputError: parameters of one call on several meshes.
    """
    seen: set[int] = set()
    for module in reversed(list(root.modules())):
        if not isinstance(module, FSDPModule):
            continue
        state = module._get_fsdp_state()
        groups = param_groups(module)
        if len(groups) > 1:
            raise InputError(
                f"one fully_shard call puts parameters of {bare_class(module).__name__} on {len(groups)} meshes, which "
                "cannot be copied; shard those modules by calls of their own"
            )
        if id(state) not in seen:
            seen.add(id(state))
            yield Unit(tuple(state._modules), state, groups[0] if groups else None)


def wholes(root: nn.Module) -> dict[int, Tensor]:
    """Return what each parameter was before fully_shard, on the meta device.

    Args:
        root: any model.

    Returns:
        By id of the sharded parameter; of tensor-parallel ones, which FSDP found spread already, a DTensor.
    """
    found: dict[int, Tensor] = {}
    for unit in units(root):
        for held in unit.group.fsdp_params if unit.group is not None else ():
            parameter = held.sharded_param
            made = torch.empty(held._orig_size, dtype=parameter.dtype, device="meta")
            spec = vars(held).get("_unsharded_dtensor_spec", vars(held).get("_tp_spec"))
            if spec is not None:
                made = DTensor.from_local(
                    made, spec.mesh, spec.placements, run_check=False, shape=spec.shape, stride=spec.stride
                )
            found[id(parameter)] = made
    return found


def shard_alike(root: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]], parts: Mapping[int, Tensor]) -> None:
    """Shard the copy of a model as the model is, and give it its shards.

    Args:
        root: the model.
        pairs: each of its modules, and the copy with parameters on the meta device.
        parts: shards of the copy as DTensors, by id of the original's parameter.
    """
    copies = {id(module): made for module, made in pairs}
    for unit in units(root):
        modules = [copies[id(module)] for module in unit.modules]
        target: Any = modules if len(modules) > 1 else modules[0]
        if unit.group is None:
            fully_shard(target, mesh=_mesh_of(root), mp_policy=unit.state._mp_policy)
            continue
        places = {id(held.sharded_param): held.fsdp_placement for held in unit.group.fsdp_params}
        mine = {id(p): places.get(id(old)) for old, p in _beside(pairs)}
        ignored = {p for made in modules for p in made.parameters() if not p.is_meta and not isinstance(p, DTensor)}
        fully_shard(
            target,
            mesh=unit.group.mesh_info.mesh,
            reshard_after_forward=True,
            shard_placement_fn=lambda parameter, mine=mine: mine.get(id(parameter)),
            mp_policy=unit.state._mp_policy,
            offload_policy=unit.group.offload_policy,
            ignored_params=ignored,
        )
    made: dict[int, nn.Parameter] = {}
    for module, copy in pairs:
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in parts:
                place = id(parameter)
                made.setdefault(place, nn.Parameter(parts[place], parameter.requires_grad))
                copy._parameters[key] = made[place]


def _beside(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    for module, copy in pairs:
        for key, parameter in module._parameters.items():
            other = copy._parameters.get(key)
            if parameter is not None and other is not None:
                yield parameter, other


def _mesh_of(root: nn.Module) -> Any:
    """Return the mesh of a model's sharded parameters, for a call that manages none itself."""
    return next(unit.group.mesh_info.mesh for unit in units(root) if unit.group is not None)
