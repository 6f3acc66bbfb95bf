"""The equivalence test: fixed margins, paired intervals, three verdicts.

d_s(t) = log L_arm - log L_reference on held-out loss, for seed s at mark t (a difference in points for other metrics).
SAME: at every mark the 90% t interval of the mean lies inside the margin (two one-sided tests, intersection-union).
DIFFERENT: at some mark the 1 - 0.05/marks interval lies wholly outside. Otherwise UNDECIDED.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from isobatch.errors import InputError

LEVEL = 0.05
MARGINS = {"average": 0.03, "raw": 0.10}
POINTS = 0.5
EARLY = 0.002
CEILING = 10.0
LEAST_SEEDS = 8
_MOST = 100_000


class Verdict(StrEnum):
    """Whether two runs have the same dynamics."""

    SAME = "SAME"
    DIFFERENT = "DIFFERENT"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Comparison:
    """The test of one arm against the reference, for one model and one metric.

    Args:
        verdict: SAME, DIFFERENT or UNDECIDED.
        mean: mean gap at each mark.
        low: lower end of the 90% interval at each mark.
        high: upper end of it.
        margin: largest gap that counts as the same, at each mark.
        first_outside: index of the first mark whose 90% interval leaves the margin, None when none does.
        seeds_to_decide: seeds with which the present means and spreads would decide, None when decided.
    """

    verdict: Verdict
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    margin: np.ndarray
    first_outside: int | None
    seeds_to_decide: int | None

    @property
    def worst(self) -> float:
        """Largest mean gap over the marks, with its sign."""
        return float(self.mean[np.abs(self.mean).argmax()])


def gaps(arm: np.ndarray, reference: np.ndarray, ceiling: float, *, ratio: bool = True) -> np.ndarray:
    """Return the paired gaps of an arm to the reference.

    Args:
        arm: metric of each seed at each mark, shape (seeds, marks); not finite where the run diverged.
        reference: the same for the reference.
        ceiling: largest loss that is compared; a diverged or worse run counts as this much.
        ratio: gap of logarithms (losses) instead of a difference (points).

    Returns:
        Gaps of shape (seeds, marks).

    Raises:
        InputError: a reference that diverged.

    Example:
        >>> gaps(np.array([[math.nan, 2.0]]), np.array([[1.0, 2.0]]), ceiling=10.0).round(2).tolist()
        [[2.3, 0.0]]
    """
    if not np.isfinite(reference).all():
        raise InputError("the reference run diverged: nothing to compare with; lower optimizer.lr in the recipe")
    if not ratio:
        return np.where(np.isfinite(arm), arm, -ceiling) - reference
    tamed = np.minimum(np.where(np.isfinite(arm), arm, ceiling), ceiling)
    return np.log(tamed) - np.log(np.minimum(reference, ceiling))


def margins(base: float, initial: float, reference: np.ndarray) -> np.ndarray:
    """Return the margin at each mark: base + 0.002 * initial loss / current loss of the reference.

    Args:
        base: margin in log loss.
        initial: mean loss before the first step.
        reference: mean loss of the reference at each mark.

    Returns:
        Margins of the shape of reference.

    Example:
        >>> margins(0.03, 2.0, np.array([2.0, 0.2])).round(3).tolist()
        [0.032, 0.05]
    """
    return base + EARLY * initial / np.asarray(reference, dtype=float)


def compare(gap: np.ndarray, margin: np.ndarray) -> Comparison:
    """Test whether the mean gap lies inside the margin at every mark.

    Args:
        gap: paired gaps, shape (seeds, marks), at least two seeds.
        margin: positive margins, shape (marks,).

    Returns:
        Verdict and intervals.

    Raises:
        InputError: fewer than two seeds.

    Example:
        >>> compare(np.array([[0.01, 0.0], [0.012, 0.001], [0.011, -0.001]]), np.array([0.03, 0.03])).verdict
        <Verdict.SAME: 'SAME'>
    """
    seeds, marks = gap.shape
    if seeds < 2:
        raise InputError(f"seeds={seeds} must be at least 2 for an interval; verdicts take {LEAST_SEEDS}")
    mean, error = gap.mean(0), gap.std(0, ddof=1) / math.sqrt(seeds)
    half = stats.t.ppf(1 - LEVEL, seeds - 1) * error
    wide = stats.t.ppf(1 - LEVEL / marks / 2, seeds - 1) * error
    low, high = mean - half, mean + half
    inside = (low > -margin) & (high < margin)
    outside = (mean - wide > margin) | (mean + wide < -margin)
    verdict = Verdict.SAME if inside.all() else Verdict.DIFFERENT if outside.any() else Verdict.UNDECIDED
    first = None if inside.all() else int(np.argmin(inside))
    needed = seeds_to_decide(mean, gap.std(0, ddof=1), margin) if verdict is Verdict.UNDECIDED else None
    return Comparison(verdict, mean, low, high, margin, first, needed)


def seeds_to_decide(mean: np.ndarray, deviation: np.ndarray, margin: np.ndarray) -> int:
    """Return how many seeds would decide if means and deviations stay as they are.

    Args:
        mean: mean gap at each mark.
        deviation: its standard deviation over seeds.
        margin: margin at each mark.

    Returns:
        The least number of seeds, at most 100,000.

    Example:
        >>> seeds_to_decide(np.array([0.02]), np.array([0.05]), np.array([0.03]))
        70
    """
    low, high = 2, _MOST
    while low < high:
        seeds = (low + high) // 2
        half = stats.t.ppf(1 - LEVEL, seeds - 1) * deviation / math.sqrt(seeds)
        wide = stats.t.ppf(1 - LEVEL / len(mean) / 2, seeds - 1) * deviation / math.sqrt(seeds)
        decided = (np.abs(mean) + half < margin).all() or (np.abs(mean) - wide > margin).any()
        low, high = (low, seeds) if decided else (seeds + 1, high)
    return low
