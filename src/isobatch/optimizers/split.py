"""One batch on one device: backward in chunks of the reference batch, so that its noise can be seen."""

from collections.abc import Callable

import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.units import finite, whole


def split_backward(
    optimizer: InvariantOptimizer,
    loss: Callable[..., Tensor],
    *tensors: Tensor,
    rows: int | None = None,
    weigh: Callable[..., float] | None = None,
) -> Tensor:
    r"""Run backward over one batch in chunks of rows, and collect their squares.

    Each chunk's loss is a mean over its own samples and is scaled by n_i/W, so `.grad` ends as the gradient of the
    whole batch's mean loss. Peak memory falls to one chunk's activations; speed falls where chunks are too small to
    fill the device (`layer_squares` keeps one pass). Where the optimizer does not need chunks now (`needs_chunks`), or
    the batch is no larger than the reference, it is one pass.

    Args:
        optimizer: an invariant optimizer.
        loss: loss(*chunk) is the mean loss over a chunk's samples (tokens, where the clock counts tokens).
        *tensors: inputs and targets with rows on axis 0, as many in each.
        rows: rows in a chunk; None takes the reference batch's worth, at least 1.
        weigh: weigh(*chunk) is how many samples (tokens) a chunk holds; None counts rows.

    Returns:
        The batch's mean loss, detached.

    Raises:
        InputError: no tensors, unequal or no rows, or weights that are all 0.

    Example:
        >>> from isobatch.optimizers import InvariantAdamW
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = InvariantAdamW([weight], lr=0.1, reference_batch=2)
        >>> value = split_backward(optimizer, lambda x: (weight - x).square().mean(), torch.arange(8.0))
        >>> optimizer.chunks.count, round(float(weight.grad), 6)
        (4, -7.0)
    """
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"the tensors have {sorted(lengths)} rows; give at least one tensor, with equally many rows")
    batch = lengths.pop()
    weights = weigh or _rows
    total = finite("weight of the batch", weights(*tensors), 0, open_low=True)
    size = rows if rows is not None else max(1, round(optimizer.reference_batch * batch / total))
    size = whole("rows", size)
    if not optimizer.needs_chunks or total <= optimizer.reference_batch:
        size = batch
    value = torch.zeros((), device=tensors[0].device)
    for start in range(0, batch, size):
        part = [tensor[start : start + size] for tensor in tensors]
        samples = weights(*part)
        if samples == 0:
            continue
        with optimizer.chunk(samples):
            scaled = loss(*part) * (samples / total)
            scaled.backward()
        value = value + scaled.detach()
    return value


def _rows(*tensors: Tensor) -> float:
    return float(len(tensors[0]))
