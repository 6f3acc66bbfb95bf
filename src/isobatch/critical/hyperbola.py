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
_REACH, _GRID, _SMALLEST = 1e5, 4001, 1e-18


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


def fit(batches: Sequence[float], steps: Sequence[float], level: float = 0.95, *, known: float = 0.0) -> Hyperbola:
    """Fit log S = log S_min + log(1 + B_crit/B) by least squares.

    At a known batch E = B*S, so that a residual in log E is the residual in log S. The intervals are profile
    likelihood regions: every value whose best fit has SSE <= SSE_min (1 + t^2/(n-2)). They do not depend on
    parametrisation, and say where the data do not reach: a sweep on one side of B_crit leaves one end open. Where the
    points are known to be no better than a standard deviation v (rarely evaluated runs), the region reaches at least
    to SSE_min + (z v)^2: residuals that happen to be small then promise nothing.

    Args:
        batches: B of every point, samples.
        steps: steps to the goal at it; the geometric mean over seeds.
        level: coverage of the intervals.
        known: standard deviation of a point, in log steps, that is there whatever the residuals say.

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
    b, y = _points(batches, steps)
    finite("level", level, 0, 1, open_low=True, open_high=True)
    finite("known", known, 0)
    grid = _grid(b)
    height, errors = _profile(grid, b, y)
    best = int(errors.argmin())
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    log_critical = minimize_scalar(lambda c: _profile(np.array([c]), b, y)[1][0], bounds=around, method="bounded").x
    (log_steps,), (least,) = _profile(np.array([log_critical]), b, y)
    freedom, probability = len(b) - 2, (1 + level) / 2
    noise = max(student_t(freedom, probability) ** 2 * least / freedom, (student_t(math.inf, probability) * known) ** 2)
    allowed = least + noise
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


@dataclass(frozen=True)
class Bend:
    """A fit with a free exponent, E = E_min (1 + (B/B_crit)^a).

    Args:
        exponent: a; the hyperbola has 1.
        critical: batch of twice the fewest samples.
        residual: root mean square of the residuals in log samples, on n - 3 degrees of freedom.
        better: whether an F test prefers it to the hyperbola, at the same level as the intervals.
    """

    exponent: float
    critical: float
    residual: float
    better: bool


def bend(batches: Sequence[float], steps: Sequence[float], level: float = 0.95) -> Bend | None:
    """Fit log E = log E_min + log(1 + (B/B_crit)^a) by least squares, a in [1/5, 5].

    Args:
        batches: B of every point, samples.
        steps: steps to the goal at it.
        level: of the F test against a = 1: (SSE_1 - SSE_a)/(SSE_a/(n-3)) > t^2.

    Returns:
        The fit, None below five different batches.

    Example:
        >>> found = bend([16, 64, 256, 1024, 4096], [100 / b * (1 + (b / 300) ** 2) for b in (16, 64, 256, 1024, 4096)])
        >>> round(found.exponent, 2), round(found.critical), found.better
        (2.0, 300, True)
    """
    b, y = _points(batches, steps)
    if len(set(b)) < 5:
        return None
    grid, effort = _grid(b, 801), y + np.log(b)

    def left(power: float) -> tuple[float, float]:
        shape = np.logaddexp(0, power * (np.log(b) - grid[:, None]))
        residual = effort - shape
        errors = ((residual - residual.mean(1, keepdims=True)) ** 2).sum(1)
        shift, least = _refined(errors[None])
        return max(float(least[0]), 0.0), float(grid[0] + shift[0] * (grid[1] - grid[0]))

    tried = np.geomspace(0.2, 5, 41)
    errors = [left(power)[0] for power in tried]
    best = int(np.argmin(errors))
    around = (tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)])
    power = float(minimize_scalar(lambda a: left(a)[0], bounds=around, method="bounded").x)
    least, at = left(power)
    freedom = len(b) - 3
    gain = (left(1.0)[0] - least) / max(least / freedom, _SMALLEST)
    better = gain > student_t(freedom, (1 + level) / 2) ** 2
    return Bend(power, math.exp(at), math.sqrt(least / freedom), better)


def critical_batches(batches: Sequence[float], many: np.ndarray) -> np.ndarray:
    """Return B_crit of many sets of steps at the same batches: the grid's best, refined by a parabola.

    Args:
        batches: B of every point, samples; shape (n,).
        many: steps, shape (m, n).

    Returns:
        B_crit of each, shape (m,); an end of the grid where the data do not bound it.
    """
    b, grid = np.asarray(batches, float), _grid(np.asarray(batches, float))
    shape = np.log1p(np.exp(grid)[:, None] / b)
    shape -= shape.mean(1, keepdims=True)
    y = np.log(many)
    y = y - y.mean(1, keepdims=True)
    errors = (shape**2).sum(1) - 2 * y @ shape.T
    return np.exp(grid[0] + _refined(errors)[0] * (grid[1] - grid[0]))


def _refined(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the lowest of each row of errors on a grid, by a parabola through three of them."""
    best = errors.argmin(1)
    inner = np.clip(best, 1, errors.shape[1] - 2)
    low, here, high = (np.take_along_axis(errors, (inner + k)[:, None], 1)[:, 0] for k in (-1, 0, 1))
    bent = low - 2 * here + high
    inside = (best == inner) & (bent > 0)
    safe = np.where(inside, bent, 1.0)
    shift = np.where(inside, 0.5 * (low - high) / safe, best - inner)
    least = np.where(inside, here - (low - high) ** 2 / (8 * safe), errors.min(1))
    return inner + shift, least


def _points(batches: Sequence[float], steps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    b = np.array([finite("batch", float(value), 0, open_low=True) for value in batches])
    y = np.log([finite("steps", float(value), 0, open_low=True) for value in steps])
    if len(b) != len(y) or len(set(b)) < 3:
        raise InputError(f"{len(set(b))} different batches and {len(y)} step counts: a fit takes at least 3 of each")
    return b, y


def _grid(b: np.ndarray, size: int = _GRID) -> np.ndarray:
    """The values of log B_crit that are looked at."""
    return np.linspace(math.log(b.min() / _REACH), math.log(b.max() * _REACH), size)


def _profile(log_critical: np.ndarray, b: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each B_crit, the best log S_min and the sum of squares that is left."""
    residual = y - np.log1p(np.exp(log_critical)[:, None] / b)
    height = residual.mean(1)
    return height, ((residual - height[:, None]) ** 2).sum(1)


def _interval(log_value: float, lows: np.ndarray, highs: np.ndarray, *, low: bool, high: bool) -> Interval:
    """Interval from the union of ranges; an end that runs out of the grid is open."""
    bottom = 0.0 if low else math.exp(min([log_value, *lows]))
    return Interval(math.exp(log_value), bottom, math.inf if high else math.exp(max([log_value, *highs])))
