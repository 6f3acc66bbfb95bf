r"""What Hessian-vector products tell: B_noise = tr(H Sigma)/(G'HG), and the curvature along the gradient."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.noise.columns import Columns
from isobatch.noise.estimate import NoiseEstimate, judge, undefined
from isobatch.noise.interval import Array, block_spread, coverage
from isobatch.noise.probe import FEWEST_CHUNKS, Loss, count_chunks, untouched
from isobatch.noise.statistic import Moments


def measure_hessian(
    loss: Loss,
    model: nn.Module,
    chunks: Iterable[Any],
    on: Any,
    *,
    counts: Sequence[float] | None = None,
    level: float = 0.95,
    unit: str = "samples",
) -> NoiseEstimate:
    r"""Measure B_noise at the model's present weights: the batch at which noise costs as much as curvature allows.

    Each pair of chunks takes two Hessian-vector products, of g_2 and of d = g_1 - g_2:

        G'HG = g_1'H g_2,   tr(H Sigma) = d'Hd / (1/n_1 + 1/n_2)

    averaged over pairs, divided last. Unbiased only if H is taken on samples outside the chunks. Where the loss is not
    convex along G, G'HG is negative and there is no best batch: the value is None.

    Args:
        loss: loss(model, chunk) is the mean loss over the chunk, twice differentiable.
        model: whose trainable parameters are looked at.
        chunks: an even number, disjoint random samples; at least 8 for a verdict.
        on: the batch that H is taken on, outside the chunks.
        counts: samples (or tokens) of each chunk; None takes the first tensor's length.
        level: coverage of the interval.
        unit: what the counts count.

    Returns:
        The estimate; gradient_squared holds G'HG and trace tr(H Sigma).

    Raises:
        InputError: counts that do not fit, or nothing to train.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.randn(80, 1, generator=torch.Generator().manual_seed(0))
        >>> found = measure_hessian(lambda m, c: (m(c) - 3 * c).square().mean(), net, x[16:].split(4), on=x[:16])
        >>> found.measurements
        8

    References:
        arXiv 1812.06162, (2.8).
    """
    columns = Columns(model)
    columns.refuse_unmeasurable()
    coverage(level)
    parts = list(chunks)
    sizes = count_chunks(parts, counts)
    with untouched(model):
        found = _pairs(loss, model, columns.trainable(), parts, sizes, on)
    kept = np.isfinite(found).all(1)
    pairs, lost = found[kept], int((~kept).sum())
    weights = (np.array(sizes[: 2 * len(found)]).reshape(-1, 2).sum(1))[kept]
    if not len(pairs):
        return undefined("there is no pair of chunks with finite gradients", excluded=lost, level=level)
    trace, signal = weights @ pairs / weights.sum()
    return judge(
        Moments(float(signal), float(trace)),
        block_spread(pairs, weights),
        span=float(weights.sum()),
        measurements=len(pairs),
        level=level,
        unit=unit,
        excluded=lost,
        fewest=FEWEST_CHUNKS,
    )


def local_lipschitz(loss: Loss, model: nn.Module, batch: Any) -> float | None:
    r"""Return the curvature along the gradient at the model's present weights, |g'Hg|/|g|^2.

    How fast the gradient changes along its own direction: LEGW's reason for a warm-up is that it rises early in a run
    and then falls. One Hessian-vector product; `.grad`, buffers and random numbers stay as they are.

    Args:
        loss: loss(model, batch) is the mean loss over the batch, twice differentiable.
        model: whose trainable parameters are looked at.
        batch: on which g and H are taken.

    Returns:
        The curvature, per unit of weight squared; None where the gradient is zero or not finite.

    Raises:
        InputError: nothing to train.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> round(local_lipschitz(lambda m, x: 1.5 * m(x).square().mean(), net, torch.ones(4, 1)), 3)
        3.0

    References:
        arXiv 1901.08256 (You et al.), where it is taken by finite differences.
    """
    parameters = Columns(model).trainable()
    if not parameters:
        raise InputError("the model has nothing to train; give it a parameter with requires_grad=True")
    with untouched(model):
        slope = _flat(
            torch.autograd.grad(loss(model, batch), parameters, create_graph=True, allow_unused=True), parameters
        )
        direction = slope.detach()
        square = float(direction @ direction)
        if not 0 < square < float("inf"):
            return None
        curved = torch.autograd.grad(slope @ direction, parameters, allow_unused=True)
    return abs(float(direction @ _flat(curved, parameters))) / square


def _pairs(
    loss: Loss, model: nn.Module, parameters: list[nn.Parameter], parts: list[Any], sizes: list[float], on: Any
) -> Array:
    """Return (tr(H Sigma), G'HG) of each pair of chunks, shape (pairs, 2)."""

    def gradient(batch: Any, *, again: bool = False) -> Tensor:
        found = torch.autograd.grad(loss(model, batch), parameters, create_graph=again, allow_unused=True)
        return _flat(found, parameters)

    slope = gradient(on, again=True)
    found = []
    for k in range(0, len(parts) - 1, 2):
        first, second = gradient(parts[k]), gradient(parts[k + 1])
        gap = first - second
        curved = [
            _flat(torch.autograd.grad(slope @ v, parameters, retain_graph=True, allow_unused=True), parameters)
            for v in (second, gap)
        ]
        found.append([float(gap @ curved[1]) / (1 / sizes[k] + 1 / sizes[k + 1]), float(first @ curved[0])])
    return np.array(found).reshape(-1, 2)


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )
