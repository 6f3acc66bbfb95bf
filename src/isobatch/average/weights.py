r"""The weights of one update, as plain numbers.

An update that spans x half-lives keeps the share 2**-x of the average and gives the rest to the weights; a first-order
hold splits that rest between the weights at the two ends of the span.
"""

import math
from typing import NamedTuple

from isobatch.errors import InputError


class Hold(NamedTuple):
    """zeta' = keep * zeta + before * theta_before + after * theta_after; the three sum to 1."""

    keep: float
    before: float
    after: float


def plain(halves: float) -> float:
    r"""Weight of the new weights in an update that spans `halves` half-lives.

    w = 1 - 2**(-x) = -expm1(-x ln 2), exact however close the decay is to 1.

    Args:
        halves: x, from 0 (nothing moves) to infinity (a copy).

    Returns:
        w in [0, 1].

    Raises:
        InputError: a negative or NaN span.

    Example:
        >>> plain(1.0)
        0.5

    References:
        arXiv 2307.13813 (rho ** kappa; here w = 1 - rho ** kappa).
    """
    if math.isnan(halves) or halves < 0:
        raise InputError(f"span={halves!r} half-lives must be in [0, inf]; samples and half-life must be positive")
    return -math.expm1(-halves * math.log(2))


def hold(halves: float, steps: float | None = None) -> Hold:
    r"""Weights of an update that takes the weights to move in a straight line between its two ends.

    With R = 2**(-x), rho = R**(1/k) and S = (1 - R) / (1 - rho): after = (k - rho S) / k, before = 1 - R - after. This
    is what k small post-step updates of a reference run give while the weights move at a constant rate. Without k the
    reference run is the continuous limit: after = 1 - (1 - R) / (x ln 2).

    Args:
        halves: x, half-lives that the update spans, from 0 to infinity.
        steps: k, reference steps that it spans (samples / reference batch); None for the continuous limit.

    Returns:
        The three weights. For k < 1 `before` is slightly negative: the reference run's own lag is longer.

    Raises:
        InputError: a negative or NaN span, or steps not positive.

    Example:
        >>> [round(w, 6) for w in hold(64 * -math.log2(0.99), steps=64)]
        [0.525596, 0.208246, 0.266157]

    References:
        Derived from the matrix form of arXiv 2307.13813 for a constant gradient.
    """
    total = plain(halves)
    if steps is not None and not steps > 0:
        raise InputError(f"steps={steps!r} must be > 0; give the samples of the update divided by the reference batch")
    if math.isinf(halves):
        return Hold(0.0, 0.0, 1.0)
    span = halves * math.log(2)
    one = 0.0 if steps is None else span / steps
    after = -math.expm1(_log_mean_decay(span) - _log_mean_decay(one) - one)
    return Hold(1.0 - total, total - after, after)


def _log_mean_decay(span: float) -> float:
    """log((1 - exp(-y)) / y), without cancellation for small y."""
    if span < 1e-2:
        return -span / 2 + span**2 / 24 - span**4 / 2880
    return math.log(-math.expm1(-span) / span)
