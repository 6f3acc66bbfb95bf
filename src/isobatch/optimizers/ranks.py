"""Sums over ranks: the squares travel beside the gradients, in one flat message for each device and dtype."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.optimizers.second_moment import Tensors


def sum_numbers(numbers: Sequence[float], group: dist.ProcessGroup, device: torch.device) -> list[float]:
    """Return each number summed over the ranks of a group, in float64.

    Args:
        numbers: as many on every rank.
        group: the ranks.
        device: where the backend wants its message.

    Returns:
        The sums, the same on every rank.
    """
    message = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(message, group=group)
    return message.tolist()


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
