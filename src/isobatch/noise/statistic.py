r"""The weighted U-statistic: |G|^2 and tr(Sigma) from squared norms of chunk gradients, in floats.

A chunk is any set of samples whose mean gradient is known: a rank's batch, a micro-batch, one sample. G is the true
gradient, Sigma the covariance of one sample's gradient, so that E|g_j|^2 = |G|^2 + tr(Sigma)/n_j for a chunk of n_j.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from isobatch.errors import InputError
from isobatch.units import finite


class Moments(NamedTuple):
    """The two unbiased estimates behind a noise scale; each may come out negative.

    Args:
        gradient_squared: |G|^2.
        trace: tr(Sigma), of one sample.
    """

    gradient_squared: float
    trace: float


def moments(squares: Sequence[float], counts: Sequence[float], square_of_mean: float) -> Moments:
    r"""Return unbiased |G|^2 and tr(Sigma) from chunks of any sizes.

    With n = sum n_j, w_j = n_j/n and gbar = sum w_j g_j:

        |G|^2     = (|gbar|^2 - sum w_j^2 |g_j|^2) / (1 - sum w_j^2)
        tr(Sigma) = n/(m-1) (sum w_j |g_j|^2 - |gbar|^2)

    The gradients are those of mean losses: g_j is the mean over its chunk. |G|^2 is ill-conditioned when
    tr(Sigma)/n is much larger, and then negative in about half of all cases: average it over steps, never clamp it.

    Args:
        squares: |g_j|^2 of each chunk.
        counts: n_j, samples (or tokens) of each chunk, positive.
        square_of_mean: |gbar|^2, of the mean gradient weighted by the counts.

    Returns:
        The two estimates.

    Raises:
        InputError: fewer than two chunks, lengths that differ, or counts that are not positive.

    Example:
        >>> moments([5.0, 1.0], [10, 10], 2.0)
        Moments(gradient_squared=1.0, trace=20.0)

    References:
        arXiv 1812.06162, A.1 and A.2 (equal sizes); unequal sizes derived.
    """
    if len(squares) != len(counts) or len(counts) < 2:
        raise InputError(f"{len(squares)} squares and {len(counts)} counts; give at least two chunks, each with both")
    sizes = [finite("count", count, 0, open_low=True) for count in counts]
    total = math.fsum(sizes)
    shares = [size / total for size in sizes]
    pairs = square_of_mean - math.fsum(w * w * s for w, s in zip(shares, squares, strict=True))
    spread = math.fsum(w * s for w, s in zip(shares, squares, strict=True)) - square_of_mean
    return Moments(pairs / (1 - math.fsum(w * w for w in shares)), spread * total / (len(sizes) - 1))


def part_moments(squares: Sequence[float], counts: Sequence[float], square_of_mean: float, total: float) -> Moments:
    r"""Return the two estimates when only some chunks of a step were looked at: a prefix, or a few rows.

    sum over the part of n_j |g_j|^2 has mean N |G|^2 + m tr(Sigma), |gbar|^2 of all n samples |G|^2 + tr(Sigma)/n:

        tr(Sigma) = (sum n_j |g_j|^2 - N |gbar|^2) / (m - N/n),   |G|^2 = |gbar|^2 - tr(Sigma)/n

    Few chunks cost tr(Sigma) precision, and |G|^2 hardly any.

    Args:
        squares: |g_j|^2 of the m chunks of the part.
        counts: n_j of these chunks, N in all.
        square_of_mean: |gbar|^2 of the whole step.
        total: n, samples of the whole step.

    Returns:
        The two estimates.

    Raises:
        InputError: no chunk, lengths that differ, counts that are not positive, or a part that is one chunk of all.

    Example:
        >>> part_moments([5.0], [10], 2.0, total=20)
        Moments(gradient_squared=-1.0, trace=60.0)

    References:
        arXiv 1812.06162, A.2 (one chunk against all); the rest derived.
    """
    if len(squares) != len(counts) or not counts:
        raise InputError(f"{len(squares)} squares and {len(counts)} counts; give at least one chunk, each with both")
    sizes = [finite("count", count, 0, open_low=True) for count in counts]
    part, whole = math.fsum(sizes), finite("total", total, 0, open_low=True)
    freedom = len(sizes) - part / whole
    if part > whole or freedom <= 0:
        raise InputError(
            f"chunks of {part:g} of {whole:g} samples are the whole step as one chunk; look at parts of it"
        )
    trace = (math.fsum(n * s for n, s in zip(sizes, squares, strict=True)) - part * square_of_mean) / freedom
    return Moments(square_of_mean - trace / whole, trace)


def finite_data(found: Moments, data_size: float) -> Moments:
    r"""Return the estimates for a finite data set whose samples are drawn without replacement.

    Two samples of D drawn without replacement have covariance -Sigma/D, so that the U-statistic's |G|^2 falls short of
    the data set's own by tr(Sigma)/D; Sigma (with D-1 in its denominator) needs nothing. Without this correction
    the estimate is that of the population the data came from, which is the right one while samples are fresh.

    Args:
        found: from `moments` or `part_moments`.
        data_size: D.

    Returns:
        |G|^2 of the data set, and tr(Sigma).

    Raises:
        InputError: a data size below 2.

    Example:
        >>> finite_data(Moments(1.0, 20.0), data_size=40)
        Moments(gradient_squared=1.5, trace=20.0)

    References:
        arXiv 1812.06162, footnote 6 (variance factor 1/B - 1/D); the correction derived.
    """
    return Moments(found.gradient_squared + found.trace / finite("data_size", data_size, 2), found.trace)


def noise_scale(found: Moments) -> float | None:
    r"""Return B_simple = tr(Sigma)/|G|^2, or None where |G|^2 is not positive.

    Average |G|^2 and tr(Sigma) over steps first and divide last: the ratio of one step is biased upwards.

    Args:
        found: averaged estimates.

    Returns:
        B_simple in samples, None when it cannot be told from these numbers.

    Example:
        >>> noise_scale(Moments(0.5, 20.0))
        40.0
        >>> noise_scale(Moments(-0.1, 20.0)) is None
        True

    References:
        arXiv 1812.06162, (2.9), footnote 12.
    """
    return found.trace / found.gradient_squared if found.gradient_squared > 0 else None
