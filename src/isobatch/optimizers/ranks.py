"""Sums over ranks: the squares travel beside the gradients, in one flat message for each device and dtype."""

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.optimizers.second_moment import Tensors


def sum_numbers(numbers: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return numbers summed over the ranks of a group.

    Args:
        numbers: as many on every rank, on the device where the backend wants its message.
        group: the ranks.

    Returns:
        The sums, the same on every rank.
    """
    message = numbers.clone()
    dist.all_reduce(message, group=group)
    return message


def sum_tensors_(tensors: Tensors, group: dist.ProcessGroup) -> None:
    """Sum tensors over the ranks of a group, in place; one message for each device and dtype.

    Args:
        tensors: the same shapes in the same order on every rank.
        group: the ranks.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)])
