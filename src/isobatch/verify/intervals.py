r"""Intervals for a mean gap that hold for skewed gaps too, and the verdicts they give, for many samples at once.

A t interval misses on the side of the long tail: a sample without one of the rare large gaps has too small a mean and
too small a spread. Its companion stretches each half of the interval by

    1 + (c / n) max(0, (M s + w g) / (M + w) + b max(0, s_j - s)),    w = (10/n)^2,  b = max(0, 1 - v_0 / v).

s_j is the sample skewness at mark j towards that side and s its mean over the marks, which M independent marks would
give as well; g = 0.75 is what gaps are suspected of, with weight w, until the seeds show otherwise. A mark that is more
skewed than its fellows keeps the share b of the difference: v is the variance of s_j over the marks, and
v_0 = 6 (n - 2) / ((n + 1) (n + 3)) that of normal gaps. c = 22 + 6 log2(0.05 / a) for an error rate a, which looks
farther into the tail the smaller it is: 22 for SAME, 28 for DIFFERENT. c, g and w were chosen by simulation
(benchmarks/verdicts.py), so that lognormal gaps up to sigma = 1 keep the error rates of `Level` from 8 seeds on.

Notation: gaps have the shape (..., seeds, marks); every function works on the leading axes at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

SAME, UNDECIDED, DIFFERENT = 1, 0, -1
SLOPE, SLOPE_PER_HALVING = 22.0, 6.0
SUSPECTED, SUSPECTED_AT = 0.75, 10.0
OUTLYING_MARGINS, OUTLYING_DEVIATIONS = 3.0, 10.0
ROUNDING = 1e-9
"""A spread below this share of the margin is rounding, not variation between seeds."""


@dataclass(frozen=True)
class Level:
    """Error rates of one test.

    Args:
        same: P(SAME) where the true gap is exactly the margin.
        different: P(DIFFERENT) where the true gap is exactly the margin, over all marks.
    """

    same: float = 0.05
    different: float = 0.025

    def shared(self, tests: int) -> "Level":
        """Return the level of each of several tests of which the best one is shown.

        Args:
            tests: how many.

        Returns:
            Both rates divided by their number (Bonferroni).

        Example:
            >>> Level().shared(5)
            Level(same=0.01, different=0.005)
        """
        return Level(self.same / tests, self.different / tests)


LEVEL = Level()


@dataclass(frozen=True)
class Sample:
    """What the intervals take from gaps.

    Args:
        seeds: n.
        mean: over seeds, shape (..., marks).
        deviation: over seeds with n - 1; at marks without any, the largest one of the other marks.
        skewness: third moment over the deviation's cube, both with n, shape (..., marks).
        pooled: its mean over the marks that vary, shape (..., 1).
        worth: number of independent marks that this mean is worth, shape (..., 1).
        own: share b of its difference from them that a mark keeps, shape (..., 1).
        flat: marks without spread.
    """

    seeds: int
    mean: Array
    deviation: Array
    skewness: Array
    pooled: Array
    worth: Array
    own: Array
    flat: NDArray[np.bool_]


@dataclass(frozen=True)
class Decision:
    """Intervals and verdicts.

    Args:
        mean: mean gap, shape (..., marks).
        low: lower end of the 1 - 2 level.same interval, the wider one of t and companion.
        high: upper end of it.
        verdict: 1 SAME, 0 UNDECIDED, -1 DIFFERENT, shape (...).
        inside: the intervals lie inside the margin at every mark, shape (...).
        by_t: what the t intervals alone say.
        outliers: seeds that lie far from the others, shape (..., seeds).
        flat: marks without spread, shape (..., marks).
    """

    mean: Array
    low: Array
    high: Array
    verdict: NDArray[np.int8]
    inside: NDArray[np.bool_]
    by_t: NDArray[np.int8]
    outliers: NDArray[np.bool_]
    flat: NDArray[np.bool_]


def sample(gap: Array, margin: Array) -> Sample:
    """Return the moments of gaps.

    The skewnesses of two normal marks with correlation r have the correlation r^3, so m marks are worth
    m^2 / sum_ij r_ij^3 independent ones.

    Args:
        gap: shape (..., seeds, marks).
        margin: shape (marks,).

    Returns:
        Moments. At a mark without spread (a saturated or quantised metric) the largest deviation of the other marks
        stands in: the metric has shown that it moves this much from seed to seed.
    """
    seeds, marks = gap.shape[-2:]
    mean = gap.mean(-2)
    centred = gap - mean[..., None, :]
    size = np.abs(centred).max(-2)
    flat = size <= ROUNDING * margin
    unit = centred / np.where(flat, np.inf, size)[..., None, :]
    spread = np.sqrt(np.where(flat, 1.0, np.square(unit).mean(-2)))
    unit /= spread[..., None, :]
    skewness = (np.square(unit) * unit).mean(-2)
    varying = np.maximum((~flat).sum(-1, keepdims=True), 1)
    pooled = skewness.sum(-1, keepdims=True) / varying
    skewness = np.where(flat, pooled, skewness)
    worth, own = np.ones_like(pooled), np.zeros_like(pooled)
    if marks > 1:
        correlation = np.swapaxes(unit, -1, -2) @ unit / seeds
        shared = (correlation * np.square(correlation)).sum((-1, -2))[..., None]
        worth = np.clip(varying**2 / np.maximum(shared, 1e-300), 1, varying)
        normal = 6 * (seeds - 2) / ((seeds + 1) * (seeds + 3))
        own = np.maximum(1 - normal / np.maximum(skewness.var(-1, keepdims=True, ddof=1), normal + 1e-300), 0)
    deviation = np.where(flat, 0.0, size * spread) * np.sqrt(seeds / (seeds - 1))
    deviation = np.where(flat, deviation.max(-1, keepdims=True), deviation)
    return Sample(seeds, mean, deviation, skewness, pooled, worth, own, flat)


def stretch(found: Sample, rate: float, side: int) -> Array:
    """Return how much longer than by t one half of an interval is.

    Args:
        found: moments.
        rate: error rate of the verdict, from which c follows.
        side: 1 for the upper half, -1 for the lower.

    Returns:
        Factors of at least 1, shape (..., marks).
    """
    slope = SLOPE + SLOPE_PER_HALVING * np.log2(max(LEVEL.same / rate, 1.0))
    weight = (SUSPECTED_AT / found.seeds) ** 2
    together = (found.worth * side * found.pooled + weight * SUSPECTED) / (found.worth + weight)
    own = found.own * np.maximum(side * (found.skewness - found.pooled), 0)
    return 1 + slope / found.seeds * np.maximum(together + own, 0)


def outlying(gap: Array, margin: Array) -> NDArray[np.bool_]:
    """Return which seeds lie far from the others.

    A seed is flagged where at some mark it is farther from the median of the seeds than 3 margins and than 10 robust
    deviations: 1.4826 times the median distance, or where more than half of the seeds tie, 1.2533 times the mean
    distance.

    Args:
        gap: shape (..., seeds, marks).
        margin: shape (marks,).

    Returns:
        Shape (..., seeds).

    References:
        The median distance: Hampel, J. Amer. Statist. Assoc. 69 (1974). By simulation 10 deviations flag fewer than one
        in a thousand samples of 20 normal seeds at 10 marks.
    """
    distance = np.abs(gap - np.median(gap, -2, keepdims=True))
    typical = 1.4826 * np.median(distance, -2, keepdims=True)
    typical = np.where(typical > ROUNDING * margin, typical, 1.2533 * distance.mean(-2, keepdims=True))
    away: NDArray[np.bool_] = distance > np.maximum(OUTLYING_DEVIATIONS * typical, OUTLYING_MARGINS * margin)
    return away.max(-1)


def decide(gap: Array, margin: Array, level: Level = LEVEL) -> Decision:
    """Return intervals and verdicts.

    SAME: at every mark the 1 - 2 level.same interval lies inside the margin (two one-sided tests, intersection-union),
    there is spread, and no seed is an outlier. DIFFERENT: at some mark the interval at level.different / marks a side
    lies wholly outside (Bonferroni). All intervals are the companion's, which contain the t intervals: where the two
    disagree, UNDECIDED.

    Args:
        gap: shape (..., seeds, marks), at least two seeds.
        margin: positive, shape (marks,).
        level: error rates.

    Returns:
        One decision for each sample on the leading axes.
    """
    found = sample(gap, margin)
    seeds, marks = gap.shape[-2:]
    error = found.deviation / np.sqrt(seeds)
    half = special.stdtrit(seeds - 1, 1 - level.same) * error
    wide = special.stdtrit(seeds - 1, 1 - level.different / marks) * error
    up, down = stretch(found, level.same, 1), stretch(found, level.same, -1)
    high, low = found.mean + up * half, found.mean - down * half
    far_up, far_down = stretch(found, level.different, 1), stretch(found, level.different, -1)
    inside = ((low > -margin) & (high < margin)).all(-1)
    outside = ((found.mean - far_down * wide > margin) | (found.mean + far_up * wide < -margin)).any(-1)
    # the t intervals as they stand, without a floor for marks that do not vary
    half, wide, size = np.where(found.flat, 0.0, half), np.where(found.flat, 0.0, wide), np.abs(found.mean)
    within, beyond = size + half < margin, size - wide > margin
    by_t = _verdict(within.all(-1), beyond.any(-1))
    still, outliers = found.flat.all(-1), outlying(gap, margin)
    verdict = _verdict(inside & ~still & ~outliers.any(-1), outside & ~still)
    return Decision(found.mean, low, high, verdict, inside, by_t, outliers, found.flat)


def _verdict(same: ArrayLike, different: ArrayLike) -> NDArray[np.int8]:
    return np.where(same, SAME, np.where(different, DIFFERENT, UNDECIDED)).astype(np.int8)
