r"""Intervals for tr(Sigma)/|G|^2 that hold when |G|^2 is poorly known: Fieller's, on covariances from whole blocks.

The variance is taken between blocks of consecutive steps (or groups of chunks), so neither a normal model of gradients
nor independent steps are assumed; only that blocks are nearly independent.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isobatch.errors import InputError
from isobatch.student import student_t

Array = NDArray[np.float64]
_FEWEST_BLOCKS = 8


class Spread(NamedTuple):
    """How well a pair of means (trace, |G|^2) is known.

    Args:
        covariance: of the two means, shape (2, 2).
        freedom: degrees of freedom behind it; 0 where nothing is known.
    """

    covariance: Array
    freedom: float


def block_spread(pairs: Array, weights: Array) -> Spread:
    r"""Return the covariance of a weighted mean of blocks, taken from how the blocks differ.

    With shares W_k (sum 1) and residuals r_k = W_k (z_k - zbar): sum r_k r_k' / (1 - sum W_k^2). This is the block
    jackknife for equal shares. Degrees of freedom: 1/sum W_k^2 - 1.

    Args:
        pairs: z_k, each block's mean (trace, |G|^2), shape (blocks, 2).
        weights: each block's weight in the mean, not negative.

    Returns:
        Covariance and degrees of freedom; no freedom for fewer than two blocks that count.

    Example:
        >>> block_spread(np.array([[1.0, 0.0], [3.0, 0.0]]), np.ones(2)).covariance[0, 0].item()
        1.0
    """
    total = weights.sum()
    if len(pairs) < 2 or not total > 0:
        return Spread(np.zeros((2, 2)), 0.0)
    shares = weights / total
    alike = float((shares**2).sum())
    if alike >= 1:
        return Spread(np.zeros((2, 2)), 0.0)
    residuals = shares[:, None] * (pairs - shares @ pairs)
    return Spread(residuals.T @ residuals / (1 - alike), 1 / alike - 1)


def blocked_spread(pairs: Array, weights: Array) -> Spread:
    r"""Return the spread of a weighted mean of a series whose neighbours may depend on each other.

    As long as the residuals S - R G of neighbours are correlated beyond chance, neighbours are merged into blocks, down
    to 8; what correlation r is left widens the covariance by (1+r)/(1-r). A series of few correlation times still
    covers less than it says: on AR(1) with 0.5, 88% of 95% after 16 measurements, 93% after 128 (measured).

    Args:
        pairs: (trace, |G|^2) in order of time, shape (cells, 2).
        weights: of each in the mean.

    Returns:
        Covariance and degrees of freedom of the mean.

    Example:
        >>> blocked_spread(np.ones((4, 2)), np.ones(4)).freedom
        3.0
    """
    while len(pairs) >= 2 * _FEWEST_BLOCKS and _dependence(pairs, weights) > 1.5 / math.sqrt(len(pairs)):
        starts = np.arange(0, len(pairs) // 2 * 2, 2)
        total = np.add.reduceat(weights, starts)
        pairs = np.add.reduceat(pairs * weights[:, None], starts) / total[:, None]
        weights = total
    spread = block_spread(pairs, weights)
    left = min(_dependence(pairs, weights) + 1 / max(len(pairs), 1), 0.9)
    if spread.freedom <= 0 or left <= 0.5 / math.sqrt(len(pairs)):
        return spread
    fewer = spread.freedom * (1 - left**2) / (1 + left**2)
    return Spread(spread.covariance * (1 + left) / (1 - left), max(fewer, 1.0))


def _dependence(pairs: Array, weights: Array) -> float:
    """Return the correlation of neighbouring residuals S - R G, 0 where there are none."""
    if len(pairs) < 3 or not weights.sum() > 0:
        return 0.0
    shares = weights / weights.sum()
    trace, signal = shares @ pairs
    slope = trace / signal if signal != 0 else 0.0
    residuals = shares * (pairs[:, 0] - trace - slope * (pairs[:, 1] - signal))
    square = float(residuals @ residuals)
    return float(residuals[1:] @ residuals[:-1]) / square if square > 0 else 0.0


def jackknife_spread(left_out: Array) -> Spread:
    r"""Return the covariance of a pair of estimates from their values with one group left out at a time.

    (K-1)/K sum (z_(k) - zbar)(z_(k) - zbar)', K-1 degrees of freedom.

    Args:
        left_out: (trace, |G|^2) without group k, shape (K, 2).

    Returns:
        Covariance and degrees of freedom; no freedom for fewer than two groups.

    Example:
        >>> jackknife_spread(np.array([[1.0, 0.0], [3.0, 0.0]])).covariance[0, 0].item()
        1.0
    """
    groups = len(left_out)
    if groups < 2:
        return Spread(np.zeros((2, 2)), 0.0)
    residuals = left_out - left_out.mean(0)
    return Spread(residuals.T @ residuals * (groups - 1) / groups, groups - 1.0)


def ratio_interval(trace: float, gradient_squared: float, spread: Spread, level: float = 0.95) -> tuple[float, float]:
    r"""Return the range of R = tr(Sigma)/|G|^2 that the data do not reject (Fieller).

    All R >= 0 with (S - R G)^2 <= t^2 (V_SS - 2 R V_SG + R^2 V_GG). It is unbounded above exactly where |G|^2 cannot be
    told from 0. An estimate G < 0 is taken as 0 here, which only widens it.

    Args:
        trace: S, the mean trace.
        gradient_squared: G, the mean |G|^2.
        spread: their covariance and its degrees of freedom; (0, inf) is returned without freedom.
        level: coverage, in (0, 1).

    Returns:
        Low and high, in samples; high may be infinite.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> known = Spread(np.array([[1.0, 0.0], [0.0, 0.01]]), 1e9)
        >>> [round(end, 1) for end in ratio_interval(100.0, 1.0, known)]
        [83.5, 124.5]
        >>> [round(end, 1) for end in ratio_interval(100.0, 0.1, known)]
        [337.7, inf]
    """
    coverage(level)
    if spread.freedom <= 0:
        return 0.0, math.inf
    quantile = student_t(spread.freedom, (1 + level) / 2) ** 2
    scale = abs(trace) or 1.0
    s, g = trace / scale, max(gradient_squared, 0.0) / scale
    v_ss, v_sg, v_gg = (float(v) * quantile / scale**2 for v in spread.covariance[[0, 0, 1], [0, 1, 1]])
    lead, half, last = g * g - v_gg, s * g - v_sg, s * s - v_ss
    root = math.sqrt(max(half * half - lead * last, 0.0))
    if lead > 0:
        high = (half + root) / lead
        low = last / (half + root) if half > 0 else (half - root) / lead
        return max(low, 0.0), max(high, 0.0)
    if last <= 0 or half * half < lead * last:
        return 0.0, math.inf
    return _positive_root(lead, half, last, root), math.inf


def coverage(level: float) -> float:
    """Return a level of coverage, or refuse it.

    Args:
        level: in (0, 1).

    Returns:
        The level.

    Raises:
        InputError: anything else.

    Example:
        >>> coverage(0.95)
        0.95
    """
    if not 0 < level < 1:
        raise InputError(f"level={level} must be in (0, 1), such as 0.95")
    return level


def _positive_root(lead: float, half: float, last: float, root: float) -> float:
    """Return the positive solution of lead R^2 - 2 half R + last = 0 for lead <= 0 < last, without cancellation."""
    if half > 0:
        return last / (half + root)
    return (half - root) / lead if lead < 0 else math.inf
