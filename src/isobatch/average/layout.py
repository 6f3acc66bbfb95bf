"""Where averages live in memory: K averages of a tensor side by side, small tensors together in one buffer.

K averages of one tensor are one tensor of shape [K, *shape], so a single operation moves all horizons and reads the
weights once. Tensors of at most SMALL elements share one buffer of shape [K, total].
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

SMALL = 4096
FLAT = 1 << 16

# (average dtype, weights dtype, device): tensors with the same key go through the same operations.
Key = tuple[torch.dtype, torch.dtype, torch.device]


def dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps, so that a one-dimensional alias covers it.

    Args:
        tensor: any tensor.

    Returns:
        True for contiguous and channels-last tensors.

    Example:
        >>> dense(torch.zeros(4, 4)[:, :2])
        False
    """
    if tensor.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])


def alias(tensor: Tensor) -> Tensor:
    """Return a one-dimensional view of a dense tensor in memory order, outside autograd.

    Args:
        tensor: a dense tensor.

    Returns:
        A view of shape [numel].

    Example:
        >>> alias(torch.zeros(2, 3)).shape
        torch.Size([6])
    """
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def rows(stack: Tensor) -> Tensor:
    """Return [K, numel] of a stack [K, *shape] whose every average is dense.

    Args:
        stack: K averages of one tensor.

    Returns:
        A view, one average per row.

    Example:
        >>> rows(torch.zeros(3, 2, 2)).shape
        torch.Size([3, 4])
    """
    return stack.as_strided((stack.shape[0], stack[0].numel()), (stack.stride(0), 1))


def groups(live: Mapping[str, Tensor], dtype_of: Callable[[Tensor], torch.dtype]) -> dict[Key, list[str]]:
    """Return tensor names by (average dtype, weights dtype, device), in the model's order.

    Args:
        live: the model's tensors by name.
        dtype_of: dtype of a tensor's average.

    Returns:
        Names of each group.

    Example:
        >>> list(groups({"a": torch.zeros(1)}, lambda t: t.dtype).values())
        [['a']]
    """
    found: dict[Key, list[str]] = {}
    for name, tensor in live.items():
        found.setdefault((dtype_of(tensor), tensor.dtype, tensor.device), []).append(name)
    return found


def pooled(live: Mapping[str, Tensor], names: Iterable[str], *, flat: bool = False) -> list[str]:
    """Return the names whose tensors are small enough to share a buffer.

    Args:
        live: the model's tensors by name.
        names: of one group.
        flat: whether the weights share a buffer too, so that larger tensors and accelerators gain as well.

    Returns:
        Names of small dense tensors, none when fewer than two. Unless flat, accelerators pool nothing: they have
        multi-tensor kernels.

    Example:
        >>> pooled({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(9999)}, "abc")
        ['a', 'b']
    """
    limit = FLAT if flat else SMALL
    small = [n for n in names if live[n].numel() <= limit and dense(live[n]) and (flat or live[n].device.type == "cpu")]
    return small if len(small) > 1 else []


@final
@dataclass(frozen=True)
class Stacks:
    """Averages by name, each [K, *shape]; names by group; shared buffers [K, total] with their members in order."""

    tensors: dict[str, Tensor]
    groups: dict[Key, list[str]]
    pools: dict[Key, tuple[Tensor, list[str]]]


def allocate(
    live: Mapping[str, Tensor],
    count: int,
    dtype_of: Callable[[Tensor], torch.dtype],
    *,
    flat: bool = False,
    wide: bool = False,
) -> Stacks:
    """Return zeroed stacks of `count` averages for every tensor, strided like the tensor.

    Args:
        live: the model's tensors by name.
        count: K.
        dtype_of: dtype of a tensor's average.
        flat: as in pooled().
        wide: hold in the wider of the average's and the weights' dtype instead.

    Returns:
        The stacks, in the model's order.

    Example:
        >>> allocate({"w": torch.zeros(2, 3)}, 4, lambda t: t.dtype).tensors["w"].shape
        torch.Size([4, 2, 3])
    """
    made: dict[str, Tensor] = {}
    pools: dict[Key, tuple[Tensor, list[str]]] = {}
    found = groups(live, dtype_of)
    for key, names in found.items():
        dtype = torch.promote_types(key[0], key[1]) if wide else key[0]
        small = pooled(live, names, flat=flat)
        if small:
            pool = torch.zeros(count, sum(live[n].numel() for n in small), dtype=dtype, device=key[2])
            pools[key] = pool, small
            made |= _views(pool, [(n, live[n]) for n in small])
        made |= {n: _stack(live[n], count, dtype) for n in names if n not in made}
    return Stacks({name: made[name] for name in live}, found, pools)


def flatten(live: Mapping[str, Tensor]) -> None:
    """Move small parameters of one dtype and device into one buffer; they stay the same objects.

    Args:
        live: the model's tensors by name; only plain parameters that own their storage move.

    Example:
        >>> a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        >>> flatten({"a": a, "b": b})
        >>> a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        True
    """
    own = {n: t for n, t in live.items() if isinstance(t, nn.Parameter) and _owns_storage(t)}
    for names in groups(own, lambda t: t.dtype).values():
        small = [n for n in names if own[n].numel() <= FLAT and dense(own[n])]
        if len(small) < 2:
            continue
        buffer = torch.cat([alias(own[n]) for n in small])
        for name, view in _views(buffer.unsqueeze(0), [(n, own[n]) for n in small]).items():
            own[name].data = view[0]


def span(live: Mapping[str, Tensor], names: Sequence[str]) -> Tensor | None:
    """Return one alias over tensors that follow one another in one storage, None when they do not.

    Args:
        live: the model's tensors by name.
        names: in the order wanted.

    Returns:
        A view of shape [total].

    Example:
        >>> a, b, c = torch.arange(6.0).split(2)
        >>> span({"a": a, "b": b, "c": c}, ["b", "c"])
        tensor([2., 3., 4., 5.])
    """
    first = live[names[0]]
    offset = first.storage_offset()
    for name in names:
        tensor = live[name]
        if tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or not dense(tensor):
            return None
        if tensor.storage_offset() != offset:
            return None
        offset += tensor.numel()
    return first.detach().as_strided((offset - first.storage_offset(),), (1,))


def _owns_storage(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _views(pool: Tensor, tensors: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    made, offset, count = {}, 0, pool.shape[0]
    for name, tensor in tensors:
        made[name] = pool.as_strided((count, *tensor.shape), (pool.stride(0), *tensor.stride()), offset)
        offset += tensor.numel()
    return made


def _stack(tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    size = tensor.numel()
    strides = tensor.stride() if dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
    made = torch.empty_strided((count, *tensor.shape), (size, *strides), dtype=dtype, device=tensor.device)
    return made.zero_()
