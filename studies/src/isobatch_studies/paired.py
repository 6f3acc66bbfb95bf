"""Paired comparisons over seeds, and settings chosen on a validation part of the training fold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from isobatch.verify.workers import Curve


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its two-sided 95% interval.

    Args:
        mean: of the values.
        low: lower bound.
        high: upper bound.
        values: how many.

    Example:
        >>> print(MeanInterval(1.0, 0.5, 1.5, 20))
        1.00 [0.50, 1.50]
    """

    mean: float
    low: float
    high: float
    values: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def to_dict(self) -> dict[str, float]:
        """Return the interval as plain values, to four places.

        Returns:
            mean, low, high and the number of values.
        """
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def interval(values: Sequence[float]) -> MeanInterval:
    """Return the mean of independent values with its 95% interval by Student's t.

    Args:
        values: at least one; a single value has an interval without bounds.

    Returns:
        The interval.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        MeanInterval(mean=2.0, low=-0.4841..., high=4.4841..., values=3)
    """
    array = np.asarray(values, dtype=float)
    half = math.inf
    if len(array) > 1:
        half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return MeanInterval(float(array.mean()), float(array.mean()) - half, float(array.mean()) + half, len(array))


def last(curve: Curve, metric: str, otherwise: float) -> float:
    """Return a metric at the end of a run.

    Args:
        curve: the run; its raw weights count.
        metric: by name.
        otherwise: what a run that stopped early, or whose metric is not finite, counts as.

    Returns:
        The value.
    """
    series = curve.values.get("raw", {}).get(metric)
    return series[-1] if series and math.isfinite(series[-1]) else otherwise


def choose(scores: Mapping[float, Sequence[float]]) -> float:
    """Return the setting with the best mean score; of equals the smallest.

    Args:
        scores: setting -> scores, higher is better.

    Returns:
        The setting.

    Example:
        >>> choose({0.1: [97.0, 98.0], 0.2: [97.5, 97.5], 0.4: [50.0, 60.0]})
        0.1
    """
    return max(sorted(scores), key=lambda setting: round(float(np.mean(scores[setting])), 6))
