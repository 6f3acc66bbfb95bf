"""The noise-aware rule: the drift per sample is kept where noise makes up a known share of the second moment."""

import math

from isobatch.errors import InputError
from isobatch.rules.lr.linear import linear
from isobatch.rules.noise_share import drift_error, recommend
from isobatch.rules.rule import Change, Confidence, LearningRate, OptimizerRow, Rule, RuleWarning, Side
from isobatch.units import finite


def noise_aware(lr: float, kappa: float, share: float) -> float:
    """Learning rate for Adam when noise makes up the share f of the second moment at the old batch.

    eta' = kappa*eta*sqrt((1-f) + f/kappa): sqrt(kappa) at f = 1, kappa at f = 0. Keeps the drift lr/(B*sqrt(v)) per
    sample with v = G**2 + sigma**2/B per coordinate.

    Args:
        lr: eta at the old batch, not negative.
        kappa: new batch / old batch, positive.
        share: f in [0, 1].

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> noise_aware(0.1, 4, share=0.0), noise_aware(0.1, 4, share=1.0)
        (0.4, 0.2)
    """
    f = finite("noise share", share, 0, 1)
    return linear(lr, kappa) * math.sqrt((1 - f) + f / kappa)


def _number(c: Change) -> float:
    if c.share is None:
        raise InputError("rules.noise_share is missing; give f in [0, 1] for the noise-aware learning rate")
    return noise_aware(c.value, c.kappa, c.share)


def _drifts(c: Change, _: float) -> tuple[str, str] | None:
    if c.share is None or recommend(c.kappa, c.share) != "invariant":
        return None
    message = "one learning rate for all coordinates mends only part of it; use --optimizer invariant"
    return f"the square root would drift by {drift_error(c.kappa, c.share):+.0%}", message


NOISE_AWARE = Rule(
    "kappa*eta*sqrt((1-f)+f/kappa)",
    "keeps the drift lr/(B*sqrt(v)) per sample, f the noise share of v at the old batch",
    "derived",
    Confidence.DERIVED,
    _number,
    warnings=(RuleWarning(Side.BOTH, _drifts, "derived; arXiv 2402.18824"),),
)
WITHOUT_V = NOISE_AWARE.but(
    because="this optimizer divides by no second moment that depends on the batch, so f says nothing of its rate",
    confidence=Confidence.UNKNOWN,
)


def _rule(row: OptimizerRow) -> Rule:
    return NOISE_AWARE if row.adaptive and not row.invariant else WITHOUT_V


CHOICE = LearningRate("noise-aware", _rule, share=True)
