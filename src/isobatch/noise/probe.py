r"""One measurement at fixed weights, over chunks that the caller hands over; `.grad` and the model stay as they are."""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.noise.coupling import check_mean, first_tensor, mixes_rows
from isobatch.noise.estimate import NoiseEstimate, judge, undefined
from isobatch.noise.interval import Array, jackknife_spread
from isobatch.noise.statistic import Moments, finite_data, moments
from isobatch.units import whole

Loss = Callable[[nn.Module, Any], Tensor]


def measure(
    loss: Loss,
    model: nn.Module,
    chunks: Iterable[Any],
    *,
    counts: Sequence[float] | None = None,
    data_size: float | None = None,
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
        blocks: groups for the interval.
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
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the model has no parameter that needs a gradient; unfreeze what is to be measured")
    if whole("blocks", blocks, 2) and not 0 < level < 1:
        raise InputError(f"level={level} must be in (0, 1), such as 0.95")
    parts = list(chunks)
    sizes = [float(n) for n in (counts if counts is not None else [len(first_tensor(part)) for part in parts])]
    if len(sizes) != len(parts):
        raise InputError(f"{len(parts)} chunks but {len(sizes)} counts; give one count for each chunk")
    caveats = mixes_rows(model)
    if check and parts:
        caveats += check_mean(loss, model, parts[0])
    with untouched(model):
        sums, squares, kept = _gradients(loss, model, parameters, parts, sizes, blocks)
    found = _estimate(sums, squares, kept, data_size, level, unit, excluded=len(parts) - len(kept))
    return replace(found, caveats=caveats)


def _gradients(
    loss: Loss, model: nn.Module, parameters: list[nn.Parameter], parts: list[Any], sizes: list[float], blocks: int
) -> tuple[Tensor, list[float], list[tuple[int, float]]]:
    """Return sum n_j g_j of each group (groups, P), and |g_j|^2 and (group, n_j) of each finite chunk."""
    groups = min(blocks, len(parts)) or 1
    width = sum(p.numel() for p in parameters)
    wide = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
    kind = torch.float64 if wide == torch.float64 else torch.float32
    sums = torch.zeros(groups, width, dtype=kind, device=parameters[0].device)
    squares: list[float] = []
    kept: list[tuple[int, float]] = []
    for part, size in zip(parts, sizes, strict=True):
        found = torch.autograd.grad(loss(model, part), parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().to(kind)
                for p, g in zip(parameters, found, strict=True)
            ]
        )
        square = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2
        if math.isfinite(square):
            group = len(kept) % groups
            sums[group].add_(flat, alpha=size)
            squares.append(square)
            kept.append((group, size))
    return sums, squares, kept


def _estimate(
    sums: Tensor,
    squares: list[float],
    kept: list[tuple[int, float]],
    data_size: float | None,
    level: float,
    unit: str,
    excluded: int,
) -> NoiseEstimate:
    if len(kept) < 2:
        why = "one chunk has no spread" if kept else "there is no chunk with a finite gradient"
        return undefined(f"{why}; give at least two chunks", excluded=excluded, level=level)
    gram = (sums.double() @ sums.double().T).cpu().numpy()
    groups, sizes = np.array([g for g, _ in kept]), np.array([n for _, n in kept])
    norms = np.array(squares)

    def of(chosen: Array) -> Moments:
        mean = float(chosen @ gram @ chosen)
        inside = chosen[groups] > 0
        total = float(sizes[inside].sum())
        found = moments(norms[inside].tolist(), sizes[inside].tolist(), mean / total**2)
        return found if data_size is None else finite_data(found, data_size)

    count = int(groups.max()) + 1
    everything = np.zeros(len(gram))
    everything[:count] = 1
    left_out = []
    for group in range(count):
        rest = everything.copy()
        rest[group] = 0
        if np.count_nonzero(rest[groups]) >= 2:
            left_out.append(of(rest))
    pairs = np.array([(found.trace, found.gradient_squared) for found in left_out]).reshape(-1, 2)
    found = of(everything)
    return judge(
        found,
        jackknife_spread(pairs),
        span=float(sizes.sum()),
        measurements=len(kept),
        level=level,
        unit=unit,
        excluded=excluded,
        fewest=4,
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
