"""What is inside a wrapper: the user's own module, the optimizer that steps, the ranks whose gradients are averaged."""

import gc
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isobatch.errors import InputError
from isobatch.gradients.reductions import copies_group, managing
from isobatch.gradients.shards import sharded

Ranks = dist.ProcessGroup | Literal["alone"] | None
"""Who shares a model: a process group, ALONE for nobody, None for all of the job."""
ALONE: Final = "alone"
"""Said in place of a process group by one process that measures for itself."""
# Segments that wrappers put into names: torch.compile, activation checkpointing, FSDP1.
_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DDP and DataParallel wrappers.

    Args:
        model: any module.

    Returns:
        The user's own module.

    Example:
        >>> inner = nn.Linear(2, 1)
        >>> unwrap(DataParallel(inner)) is inner
        True
    """
    return list(_layers(model))[-1]


def canonical(name: str) -> str:
    """Return a tensor's name without the segments that wrappers add inside a model.

    Args:
        name: dotted name, as in named_parameters().

    Returns:
        The name in the bare model.

    Example:
        >>> canonical("layer1._orig_mod.weight")
        'layer1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def bare_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that takes the steps, behind wrappers that only pass calls on (Accelerate, Lightning).

    A wrapper is seen through when it has neither groups nor state of its own: both are those of its `.optimizer`. What
    changes the step (Lookahead, SAM, Decentralized) is the optimizer itself.

    Args:
        optimizer: wrapped or bare, wrapped any number of times.

    Returns:
        The innermost one.

    Raises:
        InputError: no torch optimizer.

    Example:
        >>> sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> bare_optimizer(sgd) is sgd
        True
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer={type(optimizer).__name__} is no torch.optim.Optimizer; give the one that steps")
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer) or inner is optimizer:
            return optimizer
        if inner.param_groups is not optimizer.param_groups or inner.state is not optimizer.state:
            return optimizer
        optimizer = inner


def refuse_stranger(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], of: str, way: str) -> None:
    """Refuse an optimizer that trains nothing of what it is given beside.

    Args:
        optimizer: bare.
        parameters: of the model.
        of: what they belong to, for the message.
        way: what else would do, for the message.

    Raises:
        InputError: no parameter of the model is in the optimizer's groups.

    Example:
        >>> one = nn.Linear(1, 1)
        >>> refuse_stranger(torch.optim.SGD(one.parameters(), lr=0.1), one.parameters(), "Linear", "")
    """
    own = {id(parameter) for parameter in parameters}
    theirs = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if own.isdisjoint(theirs):
        raise InputError(
            f"optimizer={type(optimizer).__name__} trains {len(theirs)} tensors, and none of them is one of the "
            f"{len(own)} parameters of {of}; give the optimizer of this model, built after whatever replaced its "
            f"parameters (load_state_dict(assign=True), fully_shard), {way}"
        )


def process_group_of(
    source: nn.Module | Iterable[Tensor], given: Ranks = None, *, guess: bool = True
) -> dist.ProcessGroup | None:
    """Return the ranks over which the gradients of a model are averaged, whose own gradients this rank does not see.

    In this order: the copies of sharded parameters (HSDP's replicas; the ranks of one shard group see each other's
    gradients, so that FSDP2 alone has none); what is given; the group of a DistributedDataParallel around the model
    (inside or outside of torch.compile), inside it, or anywhere in this process around the same parameters; all ranks,
    where several run and nothing says more.

    Args:
        source: a model, wrapped or bare, or its parameters.
        given: a group, or "alone" where the ranks of an initialised world train apart.
        guess: whether several ranks of which nothing is known are taken for one run.

    Returns:
        The group; None for one process, for a group of one, and without a guess where nothing is known.

    Raises:
        InputError: something else than a group.

    Example:
        >>> process_group_of(nn.Linear(1, 1)) is None
        True
    """
    if isinstance(given, str):
        if given != ALONE:
            raise InputError(f'process_group={given!r} must be a process group, "{ALONE}" or None')
        return None
    tensors = list(source.parameters() if isinstance(source, nn.Module) else source)
    if any(map(sharded, tensors)):
        return next(filter(None, map(copies_group, managing(tensors).values())), None)
    if given is not None:
        return given if given.size() > 1 else None
    if world_size() == 1:
        return None
    group = _of_data_parallel(source, tensors)
    if group is None and guess:
        group = dist.group.WORLD
    return group if group is not None and group.size() > 1 else None


def world_size() -> int:
    """Return how many ranks run in torch.distributed, 1 where it is not initialised.

    Returns:
        At least 1.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and what is inside each wrapper, from the outside in."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        parallel = isinstance(inner, (DataParallel, DistributedDataParallel))
        inner = inner.module if parallel else dict(inner._modules.items()).get("_orig_mod")


def _of_data_parallel(source: nn.Module | Iterable[Tensor], tensors: list[Tensor]) -> dist.ProcessGroup | None:
    if isinstance(source, nn.Module):
        for module in source.modules():
            if isinstance(module, DistributedDataParallel):
                return module.process_group
    wanted, kinds = {id(tensor) for tensor in tensors}, _kinds(DistributedDataParallel)
    for wrapper in [
        thing for thing in gc.get_referrers(*kinds) if type(thing) in kinds
    ]:  # an object refers to its class
        if any(id(parameter) in wanted for parameter in wrapper.parameters()):
            return wrapper.process_group
    return None


def _kinds(kind: type) -> set[type]:
    """Return a class and all below it."""
    return {kind}.union(*map(_kinds, kind.__subclasses__()))
