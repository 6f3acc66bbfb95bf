"""The gradient-norm adjustment of batch augmentation: the mean of views has a smaller gradient than one view."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from isobatch.augment import BatchAugmentation
    from isobatch.tasks import Run
    from isobatch.train.world import World


def norm_ratio(
    views: BatchAugmentation, run: Run, rows: Sequence[tuple[Any, Tensor, float]], world: World
) -> float | None:
    r"""Return mean_j |g_j| / |mean_j g_j|, g_j the gradient of the global batch in its j-th view; at least 1.

    It costs M passes forward and backward; `.grad`, buffers and random numbers stay as they are.

    Args:
        views: M views.
        run: model and loss.
        rows: this rank's micro-batches: samples, their places in the order, and their share of the global batch.
        world: the processes of the job.

    Returns:
        The ratio, None where a gradient is not finite or all are zero.

    References:
        arXiv 1901.09335 (--adapt-grad-norm of the official code).
    """
    apart = replace(views, passes="copies")
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    kept = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    norms, total = 0.0, torch.zeros(())
    with torch.random.fork_rng(devices=[]):
        for number in range(views.views):
            mine = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
            for samples, places, share in rows:
                loss = run.loss(run.model, apart.rows(samples, places, number))
                found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                mine += share * torch.cat([g.flatten() for g in found]).double()
            if world.size > 1:
                torch.distributed.all_reduce(mine, group=world.group)
            norms += float(mine.norm()) / views.views
            total = total + mine
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
    mean = float(total.norm()) / views.views
    return norms / mean if mean > 0 and math.isfinite(norms / mean) else None
