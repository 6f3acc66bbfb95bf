"""The equivalence test: fixed margins, paired intervals, three verdicts.

d_s(t) is the gap of seed s at mark t, in logarithms for a ratio and in the metric's scale for a difference.
SAME: at every mark the 90% interval of the mean lies inside the margin (two one-sided tests, intersection-union).
DIFFERENT: at some mark the interval at 2.5% over all marks and a side lies wholly outside. Otherwise UNDECIDED.
Intervals are t intervals stretched for skewness (`intervals`); a seed far from the others is never part of a SAME, and
gaps that do not vary decide nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from scipy import stats

from isobatch.errors import InputError
from isobatch.units import finite, whole
from isobatch.verify import intervals
from isobatch.verify.intervals import LEVEL, Level
from isobatch.verify.power import DEFAULT_SEEDS, LEAST_SEEDS, MOST_SEEDS, seeds_for_power, seeds_to_decide
from isobatch.verify.sequential import Looks

__all__ = [
    "DEFAULT_SEEDS",
    "LEAST_SEEDS",
    "LEVEL",
    "MOST_SEEDS",
    "Comparison",
    "Level",
    "Looks",
    "Verdict",
    "compare",
    "failure_bound",
    "failures_differ",
    "seeds_for_power",
]


_A_CURVE = 5


class Verdict(StrEnum):
    """Whether two runs have the same dynamics."""

    SAME = "SAME"
    DIFFERENT = "DIFFERENT"
    UNDECIDED = "UNDECIDED"


_VERDICTS = {
    intervals.SAME: Verdict.SAME,
    intervals.DIFFERENT: Verdict.DIFFERENT,
    intervals.UNDECIDED: Verdict.UNDECIDED,
}


@dataclass(frozen=True)
class Comparison:
    """The test of one arm against the reference, for one model and one metric.

    Args:
        verdict: SAME, DIFFERENT or UNDECIDED.
        mean: mean gap at each mark.
        low: lower end of the 90% interval at each mark, the one that decides.
        high: upper end of it.
        margin: largest gap that counts as the same, at each mark.
        outliers: positions of the seeds that lie far from the others.
        reasons: why a verdict that the t intervals alone would give was not given, in sentences.
        first_outside: index of the first mark whose mean gap leaves the margin, None when none does.
        gap: the gaps that were tested, shape (seeds, marks).
    """

    verdict: Verdict
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    margin: np.ndarray
    outliers: tuple[int, ...]
    reasons: tuple[str, ...]
    first_outside: int | None
    gap: np.ndarray

    @property
    def worst(self) -> float:
        """Largest mean gap over the marks, with its sign."""
        return float(self.mean[np.abs(self.mean).argmax()])

    @property
    def end(self) -> float:
        """Mean gap at the last mark."""
        return float(self.mean[-1])

    @cached_property
    def seeds_to_decide(self) -> int | None:
        """Fresh seeds that decide with 80% power, None where decided or where 200 do not; simulated when first read."""
        if self.verdict is not Verdict.UNDECIDED or repeated(self.gap):
            return None
        return seeds_to_decide(self.gap, self.margin)


def compare(gap: np.ndarray, margin: np.ndarray, *, level: Level = LEVEL) -> Comparison:
    """Test whether the mean gap lies inside the margin at every mark.

    Args:
        gap: paired gaps of the seeds that ended on both sides, finite, shape (seeds, marks), at least two seeds.
        margin: positive margins, shape (marks,).
        level: error rates; those of a look where the design is sequential.

    Returns:
        Verdict and intervals.

    Raises:
        InputError: fewer than two seeds, gaps that are not finite, or margins that are not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> compare(0.005 * rng.standard_normal((10, 4)), np.full(4, 0.03)).verdict
        <Verdict.SAME: 'SAME'>
    """
    gap, margin = _numbers("gap", gap), _numbers("margin", margin)
    if gap.ndim != 2 or margin.shape != gap.shape[1:] or not gap.shape[1]:
        raise InputError(
            f"gap has shape {gap.shape} and margin {margin.shape}; they must be (seeds, marks) and (marks,)"
        )
    if len(gap) < 2:
        raise InputError(f"seeds={len(gap)} must be at least 2 for an interval; verdicts take {LEAST_SEEDS}")
    if not np.isfinite(gap).all():
        raise InputError("gap must be finite: leave out the seeds that failed, and count them with failure_bound")
    if not (np.isfinite(margin) & (margin > 0)).all():
        raise InputError(f"margin={margin.tolist()} must be positive and finite at every mark")
    found = intervals.decide(gap, margin, level)
    outside, twice = np.abs(found.mean) > margin, repeated(gap)
    return Comparison(
        verdict=Verdict.UNDECIDED if twice else _VERDICTS[int(found.verdict)],
        mean=found.mean,
        low=found.low,
        high=found.high,
        margin=margin,
        outliers=tuple(int(seed) for seed in np.flatnonzero(found.outliers)),
        reasons=_twice(twice, len(gap)) or _reasons(found),
        first_outside=int(outside.argmax()) if outside.any() else None,
        gap=gap,
    )


def _numbers(name: str, values: object) -> np.ndarray:
    """Real numbers as an array, or a refusal: no cast that drops what does not fit."""
    try:
        found = np.asarray(values)
        if found.dtype.kind in "fiu":
            return found.astype(float)
    except ValueError:  # rows of several lengths
        pass
    raise InputError(f"{name} must be an array of real numbers, every row as long; got {values!r:.60}")


def repeated(gap: np.ndarray) -> tuple[int, ...]:
    """Return the positions of seeds whose gaps are those of an earlier seed, number for number.

    Rows that differ from the median of the seeds by fewer than five values say nothing: a metric in coarse steps, or
    one that hardly varies, may repeat itself.

    Args:
        gap: shape (seeds, marks).

    Returns:
        Positions.

    Example:
        >>> one, two = [0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]
        >>> repeated(np.array([one, two, two, two, one])), repeated(np.array([one, one]))
        ((4,), ())
    """
    seen: set[bytes] = set()
    found = []
    for position, row in enumerate(gap - np.median(gap, 0)):
        if len(np.unique(row)) < _A_CURVE:
            continue
        if (key := (row + 0.0).tobytes()) in seen:
            found.append(position)
        seen.add(key)
    return tuple(found)


def _twice(positions: tuple[int, ...], seeds: int) -> tuple[str, ...]:
    if not positions:
        return ()
    listed = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
    return (
        f"{len(positions)} of {seeds} seeds (positions {listed}) repeat the gaps of an earlier one, number for number: "
        "they are the same runs again, which no interval may count as further ones; let the task use its seed",
    )


def _reasons(found: intervals.Decision) -> tuple[str, ...]:
    seeds, flat = len(found.outliers), int(found.flat.sum())
    if found.flat.all():
        return ("the gaps do not vary from seed to seed at any mark, which is no certainty: the metric may not move",)
    if found.verdict == found.by_t:
        return ()
    reasons = []
    if found.by_t == intervals.SAME and found.outliers.any():
        count = int(found.outliers.sum())
        lie = "lies" if count == 1 else "lie"
        reasons.append(
            f"{count} of {seeds} seeds {lie} more than {intervals.OUTLYING_MARGINS:g} margins and "
            f"{intervals.OUTLYING_DEVIATIONS:g} robust deviations from the median: the mean hides what such seeds do"
        )
    if (found.by_t == intervals.SAME and not found.inside) or found.by_t == intervals.DIFFERENT:
        where = "inside" if found.by_t == intervals.SAME else "outside"
        reasons.append(
            f"the t interval lies {where} the margin, but not once it is stretched for skewed gaps, which "
            f"{seeds} seeds do not rule out"
        )
        if flat:
            reasons.append(
                f"{flat} of {len(found.flat)} marks do not vary from seed to seed and were given the largest spread of "
                "the other marks"
            )
    return tuple(reasons)


def failure_bound(failures: int, seeds: int, confidence: float = 0.95) -> float:
    """Return the rate of failed runs that so many failures do not rule out.

    The largest p with P(at most k failures of n; p) = 1 - confidence (Clopper-Pearson, one-sided, exact).

    Args:
        failures: k, failed runs.
        seeds: n, runs.
        confidence: of the bound.

    Returns:
        A rate from 0 to 1.

    Raises:
        InputError: no seeds, or more failures than seeds.

    Example:
        >>> round(failure_bound(0, 10), 3), round(failure_bound(0, 20), 3)
        (0.259, 0.139)

    References:
        Clopper and Pearson, Biometrika 26 (1934).
    """
    _count(failures, seeds)
    finite("confidence", confidence, 0, 1, open_low=True, open_high=True)
    return 1.0 if failures == seeds else float(stats.beta.ppf(confidence, failures + 1, seeds - failures))


def failures_differ(arm_failures: int, reference_failures: int, seeds: int, *, level: Level = LEVEL) -> bool:
    """Return whether the arm fails more often, or less often, than the reference.

    Fisher's exact test of two rates, to each side at level.different.

    Args:
        arm_failures: failed runs of the arm.
        reference_failures: of the reference.
        seeds: runs of each.
        level: error rates; those of a look where the design is sequential.

    Returns:
        True where the rates differ.

    Raises:
        InputError: no seeds, or more failures than seeds.

    Example:
        >>> failures_differ(4, 0, 10), failures_differ(5, 0, 10), failures_differ(0, 5, 10)
        (False, True, True)
    """
    _count(arm_failures, seeds)
    _count(reference_failures, seeds)
    more, all_of_them = max(arm_failures, reference_failures), arm_failures + reference_failures
    return bool(stats.hypergeom.sf(more - 1, 2 * seeds, all_of_them, seeds) <= level.different)


def _count(failures: int, seeds: int) -> None:
    whole("seeds", seeds)
    if whole("failures", failures, 0) > seeds:
        raise InputError(f"failures={failures} must be at most seeds={seeds}")
