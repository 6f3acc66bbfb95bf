"""Student's t without scipy: intervals that training itself computes need no more than the standard library."""

import math
from statistics import NormalDist

from isobatch.errors import InputError

_TINY = 1e-300
_EXPANDED_FROM = 1e4
_LARGEST = 1e150  # its square is still a float


def student_t(freedom: float, probability: float) -> float:
    """Return the quantile t with P(T <= t) = probability, for T of Student's t distribution.

    1 - P(T <= t) = I_x(nu/2, 1/2) / 2 for t >= 0, x = nu/(nu + t**2), inverted by Newton's method in a bracket.

    Args:
        freedom: degrees of freedom nu, positive, whole or not; infinite for the normal distribution.
        probability: in (0, 1).

    Returns:
        The quantile.

    Raises:
        InputError: no positive freedom, or a probability outside (0, 1).

    Example:
        >>> round(student_t(9, 0.975), 6), round(student_t(math.inf, 0.975), 6), student_t(4.5, 0.5)
        (2.262157, 1.959964, 0.0)

    References:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.5.8, 26.7.1 and 26.7.5.
    """
    if not freedom > 0:
        raise InputError(f"freedom={freedom} must be positive")
    if not 0 < probability < 1:
        raise InputError(f"probability={probability} must be in (0, 1)")
    tail = min(probability, 1 - probability)
    found = _expanded(freedom, tail) if freedom >= _EXPANDED_FROM else _inverted(freedom, tail)
    return found if probability >= 0.5 else -found


def _inverted(freedom: float, tail: float) -> float:
    """The t >= 0 beyond which `tail` of the distribution lies."""
    low, high = 0.0, 1.0
    while _tail(freedom, high) > tail:
        low, high = high, 2 * high
        if high > _LARGEST:
            return math.inf
    t = (low + high) / 2
    for _ in range(2000):
        over, slope = _tail(freedom, t) - tail, _density(freedom, t)
        low, high = (t, high) if over > 0 else (low, t)
        new = t + over / slope if slope > 0 else low
        if not low < new < high:
            new = low + (high - low) / 2
        if abs(new - t) <= 1e-15 * t:
            return new
        t = new
    return t


def _expanded(freedom: float, tail: float) -> float:
    """The same by that of the normal distribution, for many degrees of freedom."""
    z = -NormalDist().inv_cdf(tail)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _density(freedom: float, t: float) -> float:
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    return math.exp(log - (freedom + 1) / 2 * math.log1p(t * t / freedom))


def _tail(freedom: float, t: float) -> float:
    """P(T > t) for t >= 0."""
    x = freedom / (freedom + t * t)
    y = t * t / (freedom + t * t)
    a, b = freedom / 2, 0.5
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    if x > 0 and y > 0:
        front = math.exp(front + a * (math.log(x) if x < 0.5 else math.log1p(-y)) + b * math.log(y))
    else:
        return 0.5 if y == 0 else 0.0
    if x < (a + 1) / (a + b + 2):
        return 0.5 * front * _fraction(a, b, x) / a
    return 0.5 - 0.5 * front * _fraction(b, a, y) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _kept(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / _kept(1 + even * d), _kept(1 + even / c)
        found *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _kept(1 + odd * d), _kept(1 + odd / c)
        found *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return found


def _kept(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
