"""Two ways of seeing chunks that a loop does not have by itself: half-batches, and DDP's buckets."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.noise.capture import Declared
from isobatch.noise.coupling import rows_of

BucketHook = Callable[[Any, dist.GradBucket], torch.futures.Future[Tensor]]


def backward_in_halves(loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any, rows: int, declared: Declared) -> Tensor:
    """Run forward and backward on each half of a batch; `.grad` ends as that of the whole batch's mean loss.

    Args:
        loss_fn: the mean loss over the rows it is given.
        x: inputs.
        y: targets.
        rows: in the batch, at least 2.
        declared: told of each half.

    Returns:
        The batch's mean loss, detached.
    """
    parts = []
    for start, stop in ((0, rows // 2), (rows // 2, rows)):
        with declared.chunk(stop - start, counts=False):
            part = loss_fn(rows_of(x, start, stop), rows_of(y, start, stop)) * ((stop - start) / rows)
            part.backward()
        parts.append(part.detach())
    return parts[0] + parts[1]


def reading_hook(
    take: Callable[[list[Tensor], list[Tensor]], None], group: dist.ProcessGroup | None, inner: BucketHook | None
) -> BucketHook:
    """Return a DDP communication hook that shows each bucket before it is reduced.

    Args:
        take: given the bucket's parameters and this rank's gradients.
        group: the ranks.
        inner: the hook that reduces; None averages over ranks, as DDP does by itself.

    Returns:
        The hook.
    """

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        take(bucket.parameters(), bucket.gradients())
        if inner is not None:
            return inner(state, bucket)
        flat = bucket.buffer().div_(group.size() if group is not None else 1)
        work = dist.all_reduce(flat, group=group, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    return hook
