"""How many seeds a verdict takes, by simulation with the test itself."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from isobatch.errors import InputError
from isobatch.units import finite, whole
from isobatch.verify.intervals import LEVEL, SAME, UNDECIDED, Array, Level, decide, sample

POWER = 0.8
LEAST_SEEDS = 8
MOST_SEEDS = 200
"""Advice ends here: what takes more seeds is better answered by a smaller kappa."""
DEFAULT_SEEDS = 20
"""What `seeds_for_power(1.0)` gives; a test recomputes it."""
_VALUES = 1_000_000
_SIMULATED = 0.9

Draw = Callable[[np.random.Generator, int, int], Array]
"""(generator, repetitions, seeds) -> gaps of shape (repetitions, seeds, marks)."""


def share(draw: Draw, seeds: int, margin: Array, wanted: tuple[int, ...], repetitions: int, level: Level) -> float:
    """Return how often the test of drawn gaps gives one of the wanted verdicts.

    Args:
        draw: makes gaps.
        seeds: n.
        margin: shape (marks,).
        wanted: verdicts as numbers.
        repetitions: simulated runs.
        level: error rates.

    Returns:
        A share. The generator starts from the shape alone, so the same question has the same answer.
    """
    marks, count, done = len(margin), 0, 0
    rng = np.random.default_rng([seeds, marks, repetitions])
    size = max(1, _VALUES // (seeds * marks))
    while done < repetitions:
        now = min(size, repetitions - done)
        count += int(np.isin(decide(draw(rng, now, seeds), margin, level).verdict, wanted).sum())
        done += now
    return count / repetitions


def seeds_for_power(
    deviation_over_margin: float, *, marks: int = 10, power: float = POWER, most: int = 1000, repetitions: int = 4000
) -> int:
    """Return the seeds with which runs whose true gap is 0 are found SAME often enough.

    Args:
        deviation_over_margin: standard deviation of the gap over seeds, by the margin.
        marks: independent marks with normal gaps; correlated marks need no more.
        power: wanted P(SAME).
        most: largest number that is tried.
        repetitions: simulated runs for each number that is tried.

    Returns:
        The least number of seeds, at least 8.

    Raises:
        InputError: values out of range, or more than `most` seeds needed.

    Example:
        >>> seeds_for_power(0.5, repetitions=500)
        10
    """
    ratio = finite("deviation_over_margin", deviation_over_margin, 0, open_low=True)
    finite("power", power, 0, 1, open_low=True, open_high=True)
    most = whole("most", most, LEAST_SEEDS)
    return _seeds_for_power(ratio, whole("marks", marks, 1), power, most, whole("repetitions", repetitions, 1))


@lru_cache(maxsize=64)
def _seeds_for_power(ratio: float, marks: int, power: float, most: int, repetitions: int) -> int:
    def enough(seeds: int) -> bool:
        def draw(rng: np.random.Generator, count: int, seeds: int) -> Array:
            return ratio * rng.standard_normal((count, seeds, marks))

        return share(draw, seeds, np.ones(marks), (SAME,), repetitions, LEVEL) >= power

    found = least(enough, LEAST_SEEDS, most)
    if found is None:
        raise InputError(
            f"a gap deviation of {ratio:g} margins takes more than most={most} seeds for a power of {power:g}: "
            "widen the margin, evaluate on more data, or raise most"
        )
    return found


def seeds_to_decide(gap: Array, margin: Array, *, most: int = MOST_SEEDS, repetitions: int = 400) -> int | None:
    """Return the fresh seeds with which a new run would be decided.

    Simulated runs have the seen gaps' mean, spread, correlation and shape, each known only as well as the seen seeds
    tell. True means: the seen ones, shrunk to 0 by the share of their squares that the noise explains over all marks
    (empirical Bayes), with the spread that is left. True deviations: the seen ones, by the chi-square law. Seeds: drawn
    from the seen ones, half of the variance replaced by normal noise.

    Args:
        gap: seen gaps, shape (seeds, marks).
        margin: shape (marks,).
        most: largest number that is advised.
        repetitions: simulated runs for each number that is tried.

    Returns:
        The least number of seeds that decides 90% of the simulated runs, by experience 80% of fresh ones; None where
        `most` seeds do not, as where the mean is close to the margin, or where new runs would hold outliers.

    Example:
        >>> seeds_to_decide(np.linspace(-0.04, 0.04, 12)[:, None], np.array([0.03]))
        18

    References:
        Shrinkage: James and Stein (1961), as the empirical Bayes estimate of Efron and Morris (1973).
    """
    seen, (count, marks) = sample(gap, margin), gap.shape
    if seen.flat.all():
        return None
    unit = np.where(seen.flat, 0.0, (gap - seen.mean) / seen.deviation)
    values, vectors = np.linalg.eigh(unit.T @ unit / (count - 1))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    root[np.diag_indices(marks)] += seen.flat
    kept = max(0.0, 1 - 1 / max(count * float(np.square(seen.mean / seen.deviation).mean()), 1.0))

    def draw(rng: np.random.Generator, runs: int, seeds: int) -> Array:
        wide = np.sqrt((count - 1) / rng.chisquare(count - 1, (runs, 1, 1))) * seen.deviation
        mean = kept * seen.mean + math.sqrt(kept / count) * wide * (rng.standard_normal((runs, 1, marks)) @ root)
        noise = rng.standard_normal((runs, seeds, marks)) @ root
        drawn = unit[rng.integers(count, size=(runs, seeds))] * math.sqrt(count / (count - 1))
        return mean + wide * math.sqrt(0.5) * (drawn + noise)

    def enough(seeds: int) -> bool:
        return 1 - share(draw, seeds, margin, (UNDECIDED,), repetitions, LEVEL) >= _SIMULATED

    return least(enough, LEAST_SEEDS, most)


def least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the least number that is enough, by doubling the step and bisection.

    Args:
        enough: false below some number, true from there on.
        low: smallest number.
        high: largest number.

    Returns:
        The number, None where the largest is not enough.

    Example:
        >>> least(lambda n: n >= 13, 8, 100), least(lambda n: False, 8, 100)
        (13, None)
    """
    step, fails = 1, low - 1
    while not enough(min(fails + step, high)):
        fails, step = min(fails + step, high), 2 * step
        if fails == high:
            return None
    high = min(fails + step, high)
    while high - fails > 1:
        middle = (fails + high) // 2
        fails, high = (fails, middle) if enough(middle) else (middle, high)
    return high
