r"""One measurement at fixed weights, over chunks that the caller hands over; `.grad` and the model stay as they are."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.noise.columns import Columns, Groups
from isobatch.noise.coupling import check_mean, first_tensor, mixes_rows
from isobatch.noise.estimate import NoiseEstimate, judge, undefined
from isobatch.noise.geometry import Geometry, Name
from isobatch.noise.interval import coverage, jackknife_spread
from isobatch.noise.statistic import Moments, finite_data
from isobatch.noise.sums import GroupSums
from isobatch.units import finite, whole

Loss = Callable[[nn.Module, Any], Tensor]
FEWEST_CHUNKS = 4


def measure(
    loss: Loss,
    model: nn.Module,
    chunks: Iterable[Any],
    *,
    counts: Sequence[float] | None = None,
    data_size: float | None = None,
    geometry: Name = "euclidean",
    optimizer: torch.optim.Optimizer | None = None,
    groups: Groups = None,
    blocks: int = 16,
    level: float = 0.95,
    unit: str = "samples",
    check: bool = True,
) -> NoiseEstimate:
    r"""Measure the noise scale at the model's present weights from the gradients of given chunks.

    The weighted U-statistic over all chunks; the interval comes from leaving out one group of chunks at a time
    (jackknife) and Fieller's ratio. Memory: `blocks` gradients. The chunks must be disjoint random samples.

    Args:
        loss: loss(model, chunk) is the mean loss over the chunk.
        model: whose trainable parameters are looked at.
        chunks: at least two; all of one size or of any sizes.
        counts: samples (or tokens) of each chunk; None takes the first tensor's length.
        data_size: D, where chunks are drawn without replacement from a finite set whose own gradient is meant.
        geometry: "euclidean", "adam" or "sign".
        optimizer: needed for "adam", and for groups "optimizer".
        groups: also estimate by "layer", "parameter", "optimizer" group, or a function from name to group.
        blocks: groups of chunks for the interval.
        level: coverage of the interval.
        unit: what the counts count.
        check: whether to look for a loss that is a sum, or that couples rows; costs three small forward passes.

    Returns:
        The estimate; chunks whose gradient is not finite are excluded and counted.

    Raises:
        InputError: a loss that is a sum over samples, counts that do not fit, or nothing to train.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
        >>> found = measure(lambda m, c: (m(c) - 1 - 3 * c).square().mean(), net, x.split(4))
        >>> found.low < found.value < found.high
        True

    References:
        arXiv 1812.06162, 2.2 and A.2.
    """
    columns = Columns(model, groups, optimizer)
    columns.refuse_unmeasurable()
    coverage(level)
    size = None if data_size is None else finite("data_size", data_size, 2)
    parts = list(chunks)
    sizes = count_chunks(parts, counts)
    caveats = mixes_rows(model)
    if check and parts:
        caveats += check_mean(loss, model, parts[0])
    sums = GroupSums(columns, Geometry(geometry, optimizer), max(1, min(whole("blocks", blocks, 2), len(parts))))
    with untouched(model):
        for part, count in zip(parts, sizes, strict=True):
            sums.add(torch.autograd.grad(loss(model, part), sums.parameters, allow_unused=True), count)
    found = [_estimate(sums, i, size, level, unit) for i in range(len(columns))]
    named = dict(zip(columns.names[1:], found[1:], strict=True))
    return replace(found[0], caveats=caveats, parts=MappingProxyType(named))


def count_chunks(parts: Sequence[Any], counts: Sequence[float] | None) -> list[float]:
    """Return the samples of each chunk.

    Args:
        parts: the chunks.
        counts: as given by the caller; None takes the first tensor's length.

    Returns:
        One for each chunk.

    Raises:
        InputError: another number of counts than of chunks, or a count that is not positive.
    """
    sizes = counts if counts is not None else [len(first_tensor(part)) for part in parts]
    if len(sizes) != len(parts):
        raise InputError(f"{len(parts)} chunks but {len(sizes)} counts; give one count for each chunk")
    return [finite("count", float(n), 0, open_low=True) for n in sizes]


def _estimate(sums: GroupSums, column: int, data_size: float | None, level: float, unit: str) -> NoiseEstimate:
    def of(without: int | None) -> Moments | None:
        found = sums.moments(column, without)
        return found if found is None or data_size is None else finite_data(found, data_size)

    found = of(None)
    if found is None:
        why = "one chunk has no spread" if sums.counts else "there is no chunk with a finite gradient"
        return undefined(f"{why}; give at least two chunks", excluded=sums.lost, level=level)
    left_out = [part for group in sorted(set(sums.group_of)) if (part := of(group)) is not None]
    pairs = np.array([(part.trace, part.gradient_squared) for part in left_out]).reshape(-1, 2)
    return judge(
        found,
        jackknife_spread(pairs),
        span=sum(sums.counts),
        measurements=len(sums.counts),
        level=level,
        unit=unit,
        excluded=sums.lost,
        fewest=FEWEST_CHUNKS,
    )


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Give back buffers and random numbers as they were, whatever forward passes inside do to them.

    Args:
        model: whose buffers are kept.

    Yields:
        Nothing.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with untouched(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> int(norm.num_batches_tracked)
        0
    """
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in before and before[name].shape == buffer.shape:
                        buffer.copy_(before[name])
