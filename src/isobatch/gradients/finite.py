"""Whether tensors are finite: in one cheap pass over many, and by name once something is wrong."""

from cmath import isfinite
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from isobatch.gradients.shards import local


def all_finite(tensors: list[Tensor]) -> bool:
    """Return whether every element is finite, in one pass and one wait for the device.

    Args:
        tensors: any; their values stay as they are.

    Returns:
        Whether there is no NaN and no infinity.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([1.0, torch.inf])])
        False
    """
    if not tensors:
        return True
    found, one = (make((), device=tensors[0].device) for make in (torch.zeros, torch.ones))
    try:
        # the pass of gradient scalers: it multiplies by 1, which changes no value
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, one)
    except RuntimeError:  # complex numbers, several devices, sparse tensors
        dense = (t.coalesce().values() if t.layout is torch.sparse_coo else t for t in tensors)
        return all(bool(torch.isfinite(t).all()) for t in dense)
    return found.item() == 0


def may_be_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no sum of a tensor overflowed or became NaN, with one wait for each device.

    Args:
        tensors: on any devices.

    Returns:
        False where a tensor is not finite, and where finite values add up to more than the dtype holds.

    Example:
        >>> may_be_finite([torch.ones(2)]), may_be_finite([torch.ones(1), torch.tensor([torch.inf, -torch.inf])])
        (True, False)
    """
    sums: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        total = _spread(tensor) if tensor.dtype == torch.float16 else tensor.sum()
        if total.device.type != "cpu":
            sums.setdefault((total.dtype, total.device), []).append(total)
        elif not isfinite(total.item()):
            return False
    return all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in sums.values())


def first_not_finite(tensors: Mapping[str, Tensor], besides: Collection[str] = ()) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, None where there is none.

    Args:
        tensors: by name.
        besides: names that are not looked at.

    Returns:
        A name, or None.

    Example:
        >>> first_not_finite({"a": torch.zeros(2), "b": torch.tensor([1.0, float("nan")])})
        'b'
    """
    names = [name for name in tensors if name not in besides]
    flags: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for place, name in enumerate(names):
        tensor = local(tensors[name]).detach()
        flags.setdefault(tensor.device, []).append((place, torch.isfinite(tensor).all()))
    bad = []
    for found in flags.values():
        good = torch.stack([flag for _, flag in found]).tolist()
        bad += [place for (place, _), fine in zip(found, good, strict=True) if not fine]
    return names[min(bad)] if bad else None


def _spread(source: Tensor) -> Tensor:
    """Distance of the extremes, because a sum in float16 overflows; a NaN or an infinity stays visible."""
    low, high = source.aminmax()
    return high.float() - low.float()
