r"""One measurement at fixed weights, over chunks that the caller hands over; `.grad` and the model stay as they are.

`measure` gives tr(Sigma)/|G|^2, `measure_hessian` tr(H Sigma)/(G'HG), `local_lipschitz` the curvature along G.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.noise.columns import Columns, Groups
from isobatch.noise.estimate import NoiseEstimate, judge, undefined
from isobatch.noise.geometry import Geometry, Name, gaussian_root
from isobatch.noise.half_batches import check_mean, first_tensor, mixes_rows, untouched
from isobatch.noise.statistic import Array, Moments, block_spread, coverage, finite_data, jackknife_spread, moments
from isobatch.units import finite, whole

Loss = Callable[[nn.Module, Any], Tensor]
FEWEST_CHUNKS = 4


@final
class GroupSums:
    """sum n_j g_j of each group of chunks, and the norms of every chunk, by parameter.

    Memory: one gradient for each group, twice that for the sign geometry.

    Args:
        columns: which parameters count towards what.
        geometry: how norms are taken.
        groups: how many.
    """

    def __init__(self, columns: Columns, geometry: Geometry, groups: int):
        self.columns, self.geometry = columns, geometry
        self.parameters = columns.trainable()
        self.weights = [geometry.weight(p) for p in self.parameters]
        self.groups = groups
        self.sums: list[Tensor] = [torch.zeros(0)] * len(self.parameters)
        self.squares: list[Tensor] = [torch.zeros(0)] * len(self.parameters)
        self.group_of: list[int] = []
        self.counts: list[float] = []
        self.norms: list[Array] = []
        self.lost = 0

    @torch.no_grad()
    def add(self, gradients: tuple[Tensor | None, ...], count: float) -> None:
        """Take one chunk's mean gradient; one that is not finite is counted and left out.

        Args:
            gradients: of the trainable parameters in their order; None where unused.
            count: n_j.
        """
        found = [
            torch.zeros_like(p) if g is None else (g if w is None else g * w)
            for p, g, w in zip(self.parameters, gradients, self.weights, strict=True)
        ]
        norms = self.geometry.norms(found).cpu().numpy()
        if not np.isfinite(norms).all():
            self.lost += 1
            return
        group = len(self.counts) % self.groups
        for i, gradient in enumerate(found):
            wide = gradient.flatten().double()
            if not self.sums[i].numel():
                self.sums[i] = torch.zeros(self.groups, wide.numel(), dtype=gradient.dtype, device=wide.device)
                if self.geometry.by_coordinate:
                    self.squares[i] = torch.zeros_like(self.sums[i])
            self.sums[i][group].add_(wide * count)
            if self.geometry.by_coordinate:
                self.squares[i][group].add_(wide.square() * count)
        self.group_of.append(group)
        self.counts.append(count)
        self.norms.append(norms)

    def moments(self, column: int, without: int | None = None) -> Moments | None:
        """Return the U-statistic of one column.

        Args:
            column: which.
            without: a group to leave out.

        Returns:
            The two estimates; None with fewer than two chunks.
        """
        kept = [j for j, group in enumerate(self.group_of) if group != without]
        if len(kept) < 2:
            return None
        inside = self.columns.members(column, self.parameters)
        counts = [self.counts[j] for j in kept]
        total = sum(counts)
        means = [self._over(self.sums[i], without).div_(total) for i in inside]
        if not inside:
            return Moments(0.0, 0.0)
        mean = float(self._squared(self.geometry.norms(means).cpu().numpy()))
        norms = np.stack([self.norms[j][inside] for j in kept])
        found = moments(self._squared(norms).tolist(), counts, mean)
        if not self.geometry.by_coordinate:
            return found
        freedom = len(kept) - 1
        sigma = 0.0
        for i, average in zip(inside, means, strict=True):
            variance = (self._over(self.squares[i], without) - total * average.square()) / freedom
            sigma += float(variance.clamp_min_(0).sqrt_().double().sum())
        return found._replace(
            trace=(sigma / float(gaussian_root(torch.tensor(float(freedom), dtype=torch.float64)))) ** 2
        )

    def _over(self, sums: Tensor, without: int | None) -> Tensor:
        """Return the sum over all groups but one."""
        everything = sums.sum(0)
        return everything if without is None else everything.sub_(sums[without])

    def _squared(self, norms: Array) -> Array:
        """Return squared norms over parameters (the last axis)."""
        return norms.sum(-1) ** 2 if self.geometry.by_coordinate else (norms**2).sum(-1)


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
    columns.refuse_shards()
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
    columns.refuse_shards()
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
    columns = Columns(model)
    columns.refuse_shards()
    parameters = columns.trainable()
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
