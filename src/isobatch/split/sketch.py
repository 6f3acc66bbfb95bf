"""Linear sketches of tensors: small enough to keep one for every event, exact where a tensor is small."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import _disable_current_modes

_Result = TypeVar("_Result")
MOST, BLOCKS, FEW = 4096, 64, 48

Named = dict[str, Tensor]
"""Name -> sketch."""


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor's values in one place, as real numbers.

    Args:
        tensor: dense, sparse, complex, or sharded (then every rank must ask).

    Returns:
        A dense real tensor without gradient.
    """
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def unwatched(function: Callable[[Tensor], _Result]) -> Callable[[Tensor], _Result]:
    """Let a function's own operations pass by what watches those of the trainer; it would double their time.

    Args:
        function: of a tensor.

    Returns:
        The same function.
    """

    @functools.wraps(function)
    def call(tensor: Tensor) -> _Result:
        if not _len_torch_dispatch_stack():
            return function(tensor)
        with _disable_current_modes():
            return function(tensor)

    return call


@unwatched
def sketch(tensor: Tensor) -> Tensor:
    """Return a tensor's linear sketch: all of it up to 4096 elements, else every n-th and the sums of 64 blocks.

    Args:
        tensor: any.

    Returns:
        One dimension, float64, on the CPU. A sum of sketches is the sketch of the sum.

    Example:
        >>> sketch(torch.ones(2, 2)).tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> len(sketch(torch.ones(100, 100)))
        4160
    """
    flat = whole(tensor).reshape(-1)
    size = flat.numel()
    if size <= MOST:
        return flat.to("cpu", torch.float64, copy=True)
    few = flat[:: size // MOST][:MOST].to("cpu", torch.float64)
    width = size // BLOCKS
    sums = flat[: width * BLOCKS].view(BLOCKS, width).sum(1, dtype=torch.float64).cpu()
    sums[-1] += flat[width * BLOCKS :].sum(dtype=torch.float64).cpu()
    return torch.cat([few, sums / width**0.5])


@unwatched
def mark(tensor: Tensor) -> tuple[float, ...]:
    """Return a few of a tensor's values, enough to see that it was written.

    Args:
        tensor: any; of a sharded one this rank's shard is looked at.

    Returns:
        At most 48 numbers.

    Example:
        >>> mark(torch.arange(3.0))
        (0.0, 1.0, 2.0)
    """
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    flat = whole(tensor).reshape(-1)
    return tuple(flat[:: max(1, flat.numel() // FEW)][:FEW].tolist())


def sketches(tensors: Iterable[tuple[str, Tensor | None]]) -> Named:
    """Return the sketches of named tensors; what is None is left out.

    Args:
        tensors: pairs of name and tensor.

    Returns:
        Name -> sketch.
    """
    return {name: sketch(tensor) for name, tensor in tensors if tensor is not None}


def joined(named: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor:
    """Return sketches as one vector, in the order of others; what is missing counts as zero.

    Args:
        named: sketches.
        like: whose names and sizes are wanted.

    Returns:
        A vector of float64.

    Example:
        >>> joined({"b": torch.ones(1)}, {"a": torch.zeros(2), "b": torch.zeros(1)}).tolist()
        [0.0, 0.0, 1.0]
    """
    if not like:
        return torch.zeros(0, dtype=torch.float64)
    empty = {name: torch.zeros_like(one) for name, one in like.items()}
    rows = [named[n] if n in named and named[n].shape == like[n].shape else empty[n] for n in like]
    return torch.cat([row.to(torch.float64) for row in rows])


def added(one: Mapping[str, Tensor], other: Mapping[str, Tensor], factor: float = 1.0) -> Named:
    """Return one + factor * other; what is missing counts as zero.

    Args:
        one: sketches.
        other: sketches.
        factor: of the other.

    Returns:
        Sketches of the names of both.
    """
    names = dict.fromkeys([*one, *other])
    zero = torch.zeros(())
    return {name: one.get(name, zero) + factor * other.get(name, zero) for name in names}
