"""LEGW: learning rate by the square root, warm-up linear in epochs, no other number of the optimizer retuned."""

import math

from isobatch.errors import InputError
from isobatch.rules.lr.square_root import square_root
from isobatch.rules.rule import Change, Confidence, LearningRate, Rule, RuleWarning, Side, Span
from isobatch.units import finite

MOST_WARMUP = 0.5
"""Share of the run above which LEGW's warm-up is called long."""


def legw(lr: float, warmup: float, kappa: float, length: float = math.inf) -> tuple[float, float]:
    """Peak learning rate and warm-up at the new batch: sqrt(kappa)*eta0 and kappa*w0.

    The warm-up has kappa*w0*N/(kappa*B0) = w0*N/B0 steps at every batch.

    Args:
        lr: eta0 at the old batch, not negative.
        warmup: w0 at the old batch, samples or epochs, not negative.
        kappa: new batch / old batch, positive.
        length: of the run, in the unit of the warm-up.

    Returns:
        The peak and the warm-up at the new batch.

    Raises:
        InputError: a value outside its range, or a warm-up longer than the run.

    Example:
        >>> legw(0.1, 1437, 16, length=43110)
        (0.4, 22992.0)

    References:
        arXiv 1901.08256 (You et al.).
    """
    peak, first = square_root(lr, kappa), finite("warmup", warmup, 0)
    span = first * kappa
    if span > length:
        raise InputError(
            f"LEGW's warm-up kappa*w0 = {kappa:g} x {first:g} = {span:g} is longer than the run, {length:g}; kappa may "
            f"be at most {length / first:.4g}: lower the batch, shorten the warm-up or lengthen the run"
        )
    return peak, span


def _curves(span: Span, c: Change) -> Span:
    """The warm-up grows by kappa, and the decay still begins where the reference's warm-up ended."""
    start = span.warmup if span.decay_from is None else span.decay_from
    _, warmup = legw(c.lr, span.warmup, c.kappa, span.length)
    return span._replace(warmup=warmup, decay_from=start)


def _others(letter: str) -> Rule:
    because = "LEGW retunes no other number of the optimizer"
    return Rule(letter, because, "arXiv 1901.08256", Confidence.CONVENTION)


def _long(c: Change, _: float) -> tuple[str, str] | None:
    share = c.warmup * c.kappa / c.length
    if share <= MOST_WARMUP:
        return None
    message = "too little of the run is left at the full rate; lower the batch or train longer"
    return f"LEGW's warm-up takes {share:.0%} of the run", message


WARMUP = Rule(
    "kappa*w0",
    "LEGW: a warm-up linear in epochs, so its number of steps stays",
    "arXiv 1901.08256",
    Confidence.CONVENTION,
)
PEAK = Rule(
    "sqrt(kappa)*eta",
    "LEGW: the peak grows by the square root, and no other number of the optimizer is retuned",
    "arXiv 1901.08256",
    Confidence.CONVENTION,
    lambda c: square_root(c.value, c.kappa),
    warnings=(RuleWarning(Side.UP, _long, "derived from 1901.08256"),),
    curves=_curves,
    warmup=WARMUP,
    others=_others,
    run="LEGW",
)

CHOICE = LearningRate("legw", lambda _: PEAK)
