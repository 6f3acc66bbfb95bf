"""Adam's eps: it stands beside sqrt(v), so it shrinks as sqrt(v) does."""

import math

from isobatch.rules.rule import Confidence, OptimizerRow, Rule
from isobatch.units import finite


def scale_eps(eps: float, kappa: float, lr: float, scaled_lr: float) -> float:
    """Adam's eps at the new batch: eps*eta'/(kappa*eta), which is eps/sqrt(kappa) beside a square-root rate.

    Args:
        eps: at the old batch, not negative.
        kappa: new batch / old batch, positive.
        lr: eta at the old batch.
        scaled_lr: eta' at the new batch, before any momentum factor.

    Returns:
        eps at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> scale_eps(1e-8, 4, lr=1e-3, scaled_lr=2e-3)
        5e-09

    References:
        arXiv 2205.10287 (Malladi et al.).
    """
    old, ratio = finite("eps", eps, 0), finite("kappa", kappa, 0, open_low=True)
    before, after = finite("lr", lr, 0), finite("scaled lr", scaled_lr, 0)
    return old if before == 0 or after == ratio * before else old * after / (ratio * before)


SCALED = Rule(
    "eps*eta'/(kappa*eta)",
    "stands beside sqrt(v), which shrinks by the same factor: eps/sqrt(kappa) beside a square-root lr",
    "arXiv 2205.10287",
    Confidence.DERIVED,
    lambda c: scale_eps(c.value, c.kappa, c.lr, c.rate),
)
AS_THE_RATE = SCALED.but(
    because="stands beside sqrt(v), which the learning rate takes to move as eta'/(kappa*eta)",
    source="derived from arXiv 2205.10287",
    confidence=Confidence.DERIVED,
)
NONE = Rule("eps", "this optimizer divides by no second moment", "derived", Confidence.DERIVED)
KEPT = Rule("eps", "the second moment does not depend on the batch", "arXiv 2402.18824", Confidence.DERIVED)


BESIDE_NOISE = SCALED.but(
    formula="eps/sqrt(kappa)",
    because="stays in proportion to sqrt(v) while noise dominates it, whatever the rate",
    source="derived",
    number=lambda c: c.value / math.sqrt(c.kappa),
)


def eps_rule(row: OptimizerRow, lr: Rule, rate: str = "eta'", *, inside: bool = False) -> Rule:
    """Return the rule of eps beside a learning-rate rule.

    Args:
        row: the optimizer's row.
        lr: the rule that gives eta' before any momentum factor.
        rate: eta' before that factor, in the letters of the plan.
        inside: whether eps stands inside the root, beside v.

    Returns:
        The rule.

    Example:
        >>> from isobatch.rules.optimizers import OPTIMIZERS
        >>> eps_rule(OPTIMIZERS["invariant-adam"], KEPT).formula
        'eps'
    """
    if row.invariant:
        return KEPT
    if row.normalises_after:
        return BESIDE_NOISE if not inside else BESIDE_NOISE.but(formula="eps/kappa", number=lambda c: c.value / c.kappa)
    chosen = SCALED if lr.confidence is Confidence.DERIVED and lr.exponent == 0.5 else AS_THE_RATE
    if lr.confidence is Confidence.UNKNOWN:
        chosen = chosen.but(confidence=Confidence.UNKNOWN)
    if not inside:
        return chosen.but(formula=f"eps*{rate}/(kappa*eta)")
    return chosen.but(
        formula=f"eps*({rate}/(kappa*eta))**2",
        because="stands inside the root beside v, which shrinks by the square of what sqrt(v) does: eps/kappa beside a "
        "square-root lr",
        source="derived from arXiv 2205.10287",
        number=lambda c: scale_eps(math.sqrt(c.value), c.kappa, c.lr, c.rate) ** 2,
    )
