"""The Pareto hyperbola (S/S_min - 1)(E/E_min - 1) = 1, fitted in log space, with intervals that may be unbounded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from isobatch.errors import InputError
from isobatch.student import student_t
from isobatch.units import finite

FEWEST, WIDEST = 4, 4.0
_REACH, _GRID = 1e5, 4001


@dataclass(frozen=True)
class Interval:
    """A value with its interval; an end that the data do not bound is 0 or infinite.

    Args:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether both ends exist and lie within a factor of 4."""
        return self.low > 0 and self.high <= WIDEST * self.low


@dataclass(frozen=True)
class Hyperbola:
    """A fitted hyperbola.

    Args:
        steps: S_min, the fewest steps to the goal.
        samples: E_min, the fewest samples to the goal.
        critical: B_crit = E_min/S_min, the batch that takes twice both.
        residual: root mean square of the residuals in log steps, on n - 2 degrees of freedom.
        batches: points of the fit.
        level: coverage of the intervals.
    """

    steps: Interval
    samples: Interval
    critical: Interval
    residual: float
    batches: int
    level: float

    @property
    def identified(self) -> bool:
        """Whether the critical batch may be used: at least 4 batches, and an interval within a factor of 4."""
        return self.batches >= FEWEST and self.critical.bounded


def fit(batches: Sequence[float], steps: Sequence[float], level: float = 0.95) -> Hyperbola:
    """Fit log S = log S_min + log(1 + B_crit/B) by least squares.

    At a known batch E = B*S, so that a residual in log E is the residual in log S. The intervals are profile
    likelihood regions: every value whose best fit has SSE <= SSE_min (1 + t^2/(n-2)). They do not depend on
    parametrisation, and say where the data do not reach: a sweep on one side of B_crit leaves one end open.

    Args:
        batches: B of every point, samples.
        steps: steps to the goal at it; the geometric mean over seeds.
        level: coverage of the intervals.

    Returns:
        The fit.

    Raises:
        InputError: fewer than three different batches, or values that are not positive.

    Example:
        >>> found = fit([16, 64, 256, 1024], [100 * (1 + 200 / b) for b in (16, 64, 256, 1024)])
        >>> round(found.critical.value), round(found.steps.value), round(found.samples.value)
        (200, 100, 20000)

    References:
        arXiv 1812.06162, 2.11 and A.3.
    """
    b = np.array([finite("batch", float(value), 0, open_low=True) for value in batches])
    y = np.log([finite("steps", float(value), 0, open_low=True) for value in steps])
    if len(b) != len(y) or len(set(b)) < 3:
        raise InputError(f"{len(set(b))} different batches and {len(y)} step counts: a fit takes at least 3 of each")
    finite("level", level, 0, 1, open_low=True, open_high=True)
    grid = np.linspace(math.log(b.min() / _REACH), math.log(b.max() * _REACH), _GRID)
    height, errors = _profile(grid, b, y)
    best = int(errors.argmin())
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    log_critical = minimize_scalar(lambda c: _profile(np.array([c]), b, y)[1][0], bounds=around, method="bounded").x
    (log_steps,), (least,) = _profile(np.array([log_critical]), b, y)
    freedom = len(b) - 2
    allowed = least * (1 + student_t(freedom, (1 + level) / 2) ** 2 / freedom)
    inside = errors <= allowed
    reach = np.sqrt(np.maximum(allowed - errors[inside], 0) / len(b))
    wide = {"low": bool(inside[0]), "high": bool(inside[-1])}
    return Hyperbola(
        steps=_interval(log_steps, height[inside] - reach, height[inside] + reach, low=wide["high"], high=False),
        samples=_interval(
            log_steps + log_critical,
            (height + grid)[inside] - reach,
            (height + grid)[inside] + reach,
            low=wide["low"],
            high=False,
        ),
        critical=_interval(log_critical, grid[inside], grid[inside], **wide),
        residual=math.sqrt(least / freedom),
        batches=len(b),
        level=level,
    )


def _profile(log_critical: np.ndarray, b: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each B_crit, the best log S_min and the sum of squares that is left."""
    residual = y - np.log1p(np.exp(log_critical)[:, None] / b)
    height = residual.mean(1)
    return height, ((residual - height[:, None]) ** 2).sum(1)


def _interval(log_value: float, lows: np.ndarray, highs: np.ndarray, *, low: bool, high: bool) -> Interval:
    """Interval from the union of ranges; an end that runs out of the grid is open."""
    bottom = 0.0 if low else math.exp(min([log_value, *lows]))
    return Interval(math.exp(log_value), bottom, math.inf if high else math.exp(max([log_value, *highs])))
