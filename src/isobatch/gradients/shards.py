"""What of a sharded model (FSDP2, tensor parallelism) lies on this rank, and the groups over which to add or agree."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from isobatch.errors import InputError


def sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over ranks.

    Args:
        tensor: any.

    Returns:
        True for a DTensor and for a parameter made of one.

    Example:
        >>> sharded(torch.zeros(1))
        False
    """
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in its own memory and outside autograd.

    Args:
        tensor: any.

    Returns:
        The part of a DTensor; any other tensor itself.

    Example:
        >>> weight = torch.zeros(2)
        >>> local(weight) is weight
        True
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def in_place(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a gradient, as its parameter lies; sums that are still to be added up are.

    Args:
        gradient: of the parameter.
        parameter: any.

    Returns:
        A plain tensor.

    Example:
        >>> gradient = torch.ones(2)
        >>> in_place(gradient, torch.zeros(2)) is gradient
        True
    """
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def own_gradient(parameter: Tensor) -> Tensor | None:
    """Return this rank's part of a parameter's `.grad`.

    Args:
        parameter: any.

    Returns:
        A plain tensor, None where there is no gradient.

    Example:
        >>> own_gradient(torch.zeros(2)) is None
        True
    """
    return None if parameter.grad is None else in_place(parameter.grad, parameter)


def address(tensor: Tensor) -> int:
    """Return where this rank's part of a tensor begins in memory.

    Args:
        tensor: any.

    Returns:
        The address.

    Example:
        >>> weight = torch.zeros(2)
        >>> address(weight) == weight.data_ptr()
        True
    """
    return local(tensor).data_ptr()


def dressed(part: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part as a tensor that is spread as another one; nothing is copied or sent.

    Args:
        part: of the shape that this rank holds of `like`.
        like: any tensor.

    Returns:
        A DTensor over the same memory where `like` is one, else the part itself.

    Example:
        >>> part = torch.zeros(2)
        >>> dressed(part, torch.ones(2)) is part
        True
    """
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def piece(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor that the rank holds whole; nothing is sent.

    Args:
        whole: a plain tensor of the shape of `like`.
        like: any tensor.

    Returns:
        The part.

    Example:
        >>> piece(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not isinstance(like, DTensor):
        return whole
    there = whole.detach().to(like.device)
    return local(distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None))


def fitted(given: Tensor, like: Tensor, name: str) -> Tensor:
    """Return this rank's part of a given tensor, to be written into its part of another one.

    Args:
        given: plain and whole, or spread as `like` is.
        like: where it is to go.
        name: of it, for the message.

    Returns:
        A plain tensor; the given one itself where it is plain and of another shape, for others to refuse.

    Raises:
        InputError: a tensor that is spread otherwise, which would have to be sent around.

    Example:
        >>> fitted(torch.ones(2), torch.zeros(2), "weight")
        tensor([1., 1.])
    """
    if not isinstance(given, DTensor):
        return piece(given, like) if isinstance(like, DTensor) and given.shape == like.shape else given
    alike = isinstance(like, DTensor) and given.shape == like.shape
    if alike and given.placements == like.placements and _same_mesh(given.device_mesh, like.device_mesh):
        return local(given)
    raise InputError(
        f"{name!r} is sharded ({_words(given)}) and should go where it is {_words(like)}; load it through "
        "torch.distributed.checkpoint, or give its .full_tensor()"
    )


def settle(model: nn.Module, *, failed: bool = False) -> None:
    """Put the sharded parameters back into a model of FSDP2 that a forward pass has left unsharded.

    After a forward without a backward the root holds whole parameters, which no optimizer and no average moves.

    Args:
        model: any; nothing happens to one without FSDP2.
        failed: whether an exception may have cut a forward pass short, after which FSDP must begin anew.

    Example:
        >>> settle(nn.Linear(1, 1))
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in units:
        if failed and module._get_fsdp_state()._is_root and "reset_iter_state" in vars(FSDPModule):
            module.reset_iter_state()
    for module in units:
        module.reshard()


def refuse_unspreadable(name: str, tensor: Tensor) -> None:
    """Refuse a parameter whose parts are no parts of its value, or that FSDP1 flattens.

    Args:
        name: the parameter in words.
        tensor: the parameter.

    Raises:
        InputError: a DTensor of sums that were not added up, or a parameter of FSDP1.

    Example:
        >>> refuse_unspreadable("weight", torch.zeros(1))
    """
    if isinstance(tensor, DTensor) and any(place.is_partial() for place in tensor.placements):
        raise InputError(f"{name} is a sum that is not added up yet ({tensor.placements}); redistribute it first")
    if type(tensor).__name__ == "FlatParameter" or {"_is_flat_param", "_fsdp_flattened"} & vars(tensor).keys():
        raise InputError(
            f"{name} is flattened by FullyShardedDataParallel (FSDP1), whose parts have no names; shard the model "
            "with torch.distributed.fsdp.fully_shard (FSDP2), or use DistributedDataParallel"
        )


@final
class Shards:
    """How the tensors of one model lie over ranks.

    Args:
        tensors: parameters of the model, sharded or not.
        besides: groups along which no sums are wanted, such as the copies of HSDP.

    Example:
        >>> Shards([torch.zeros(2)]).share(torch.zeros(2))
        1.0
    """

    def __init__(self, tensors: Iterable[Tensor], besides: Sequence[dist.ProcessGroup] = ()):
        meshes = [tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)]
        self.groups: tuple[dist.ProcessGroup, ...] = ()
        self.ranks = 1
        if meshes:
            widest = max(meshes, key=DeviceMesh.size)
            dims = [d for d in range(widest.ndim) if widest.size(d) > 1]
            # by ranks: torch may keep an older mesh of the same ranks, whose groups have other names
            without = [dist.get_process_group_ranks(group) for group in besides]
            found = [widest.get_group(d) for d in dims]
            self.groups = tuple(group for group in found if dist.get_process_group_ranks(group) not in without)
            self.ranks = math.prod(group.size() for group in self.groups)

    def __bool__(self) -> bool:
        return bool(self.groups)

    def share(self, tensor: Tensor) -> float:
        """Return what a rank's part counts for in a sum over the ranks, so that copies count once.

        Args:
            tensor: of the model.

        Returns:
            Different parts over ranks: 1 where each rank holds another part.
        """
        if not self.groups:
            return 1.0
        if not isinstance(tensor, DTensor):
            return 1 / self.ranks
        mesh = tensor.device_mesh
        parts = math.prod(mesh.size(d) for d, place in enumerate(tensor.placements) if not place.is_replicate())
        return parts / self.ranks

    def shares(self, tensors: Sequence[Tensor], device: torch.device) -> Tensor:
        """Return the shares of several tensors on a device.

        Args:
            tensors: of the model.
            device: where to.

        Returns:
            float64, one for each.
        """
        return torch.tensor([self.share(tensor) for tensor in tensors], dtype=torch.float64).to(device)

    def total(self, message: Tensor) -> Tensor:
        """Return sums over the ranks that hold parts; the message itself where nothing is sharded.

        Args:
            message: as long on every rank, of numbers of which copies count once (`share`).

        Returns:
            The sums, the same on every rank.
        """
        if not self.groups:
            return message
        found = message.clone()
        for group in self.groups:
            dist.all_reduce(found, group=group)
        return found

    def first(self, name: str | None, names: Mapping[str, Any]) -> str | None:
        """Return the first of some names that any rank calls, so that all ranks give one verdict.

        Args:
            name: what this rank calls, None for none.
            names: all there are, in the same order on every rank.

        Returns:
            The same on every rank.
        """
        if not self.groups:
            return name
        order = list(names)
        device = next((local(t).device for t in names.values() if isinstance(t, Tensor)), torch.device("cpu"))
        place = torch.tensor([order.index(name) if name is not None else len(order)], device=device)
        for group in self.groups:
            dist.all_reduce(place, op=dist.ReduceOp.MIN, group=group)
        return order[int(place)] if int(place) < len(order) else None


def _words(tensor: Tensor) -> str:
    if not isinstance(tensor, DTensor):
        return "not sharded"
    return f"{', '.join(map(str, tensor.placements))} over ranks {tensor.device_mesh.mesh.tolist()}"


def _same_mesh(one: DeviceMesh, other: DeviceMesh) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.mesh, other.mesh))
