"""The decay of the weight average: rho**kappa, which keeps its half-life in samples."""

import math

from isobatch.errors import InputError
from isobatch.rules.rule import Change, Confidence, Rule, RuleWarning, Side
from isobatch.units import finite


def scale_decay(decay: float, kappa: float) -> float:
    r"""EMA decay that keeps its half-life in samples when the batch grows by kappa.

    rho' = rho**kappa. Independent of the loss reduction. For large kappa the target also moves more per update, so the
    averaged model lags by about kappa*(1-rho)/2 of one large step: see `lag`.

    Args:
        decay: rho in [0, 1], per update at the old batch.
        kappa: new batch / old batch, positive.

    Returns:
        The decay per update at the new batch.

    Raises:
        InputError: decay outside [0, 1] or kappa not positive.

    Example:
        >>> round(scale_decay(0.9999, kappa=2.0), 8)
        0.99980001

    References:
        arXiv 2307.13813 (the EMA scaling rule).
    """
    rho, ratio = finite("decay", decay, 0, 1), finite("kappa", kappa, 0, open_low=True)
    return rho if ratio == 1 else rho**ratio


def lag(decay: float, kappa: float) -> float:
    """Gap that rho**kappa leaves between one large step and kappa small ones, relative to the motion of the weights.

    With a constant gradient and averages taken after the step: |kappa - rho*S - kappa*(1-rho**kappa)| / kappa with
    S = (1-rho**kappa)/(1-rho); about (1-rho)*(kappa-1)/2 while that is small.

    Args:
        decay: rho in [0, 1], per update at the old batch.
        kappa: new batch / old batch, positive.

    Returns:
        The relative gap, 0 at kappa = 1.

    Raises:
        InputError: decay outside [0, 1] or kappa not positive.

    Example:
        >>> f"{lag(0.99, 8):.3f}"
        '0.033'

    References:
        arXiv 2307.13813 (the matrix form with constant gradient; the gap itself is derived from it).
    """
    rho, ratio = finite("decay", decay, 0, 1), finite("kappa", kappa, 0, open_low=True)
    if rho in (0.0, 1.0):
        return 0.0
    fresh = -math.expm1(ratio * math.log(rho))
    return abs(ratio - rho * fresh / (1 - rho) - ratio * fresh) / ratio


LAG = 0.05
"""Relative lag of the average above which the rule is called weak."""


def _lags(c: Change, _: float) -> tuple[str, str] | None:
    gap = lag(c.value, c.kappa)
    if gap <= LAG:
        return None
    message = f"the averaged model lags by about {gap:.0%} of one large step; raise the half-life or lower kappa"
    return f"kappa*(1-rho) = {c.kappa * (1 - c.value):.3g} is not small", message


POWER = Rule(
    "rho**kappa",
    "keeps the half-life in samples; exact in the limit of small steps, good while kappa*(1-rho) << 1",
    "arXiv 2307.13813",
    Confidence.THEOREM,
    lambda c: scale_decay(c.value, c.kappa),
    warnings=(RuleWarning(Side.UP, _lags, "derived from 2307.13813"),),
)
KEPT = Rule("rho", "kept per update because the recipe says so: another average", "recipe", Confidence.UNKNOWN)
HALF_LIFE = POWER.but(formula="kept in samples", number=lambda c: c.value, warnings=())
HALF_LIFE_MOVED = KEPT.but(
    formula="kappa*H",
    because="the decay per update is kept because the recipe says so: another average",
    number=lambda c: c.value * c.kappa,
)
RAMP_KEPT = Rule(
    "samples kept",
    "a span of the sample clock: tau/kappa updates is the nearest that a ramp per update comes to",
    "derived",
    Confidence.DERIVED,
)
RATIO = Rule("ratio", "a share of the samples seen, whatever the batch", "arXiv 2312.02696", Confidence.DERIVED)
PROFILE = Rule(
    "std", "a width relative to the samples seen, whatever the batch", "arXiv 2312.02696", Confidence.DERIVED
)
LATE = Rule(
    "kept",
    "its half-life is a share of the updates so far: in the long run the same samples",
    "derived",
    Confidence.DERIVED,
)
EVERY = Rule("steps kept", "the decay per update moves with the samples between two updates", "derived",
             Confidence.DERIVED)  # fmt: skip


def scale_inv_gamma(inv_gamma: float, power: float, kappa: float) -> float:
    """Scale of a power ramp that keeps its half-life over the samples: inv_gamma*kappa**((1-p)/p).

    The ramp 1-(1+t/g)**-p takes in (t/g)**-p an update once t is large, so (n/(B*g))**-p/B a sample: kept where
    g**p * B**(p-1) is.

    Args:
        inv_gamma: g in updates at the old batch, positive.
        power: p, positive.
        kappa: new batch / old batch, positive.

    Returns:
        g at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(scale_inv_gamma(1.0, 0.75, 4), 3)
        1.587
    """
    g, p = finite("inv_gamma", inv_gamma, 0, open_low=True), finite("power", power, 0, open_low=True)
    ratio = finite("kappa", kappa, 0, open_low=True)
    try:
        return g if ratio == 1 else g * ratio ** ((1 - p) / p)
    except OverflowError as error:
        raise InputError(
            f"power={p:g} at kappa={ratio:g} gives a ramp beyond all numbers; ramps of timm, diffusers and ema-pytorch "
            "have a power of 2/3 to 1"
        ) from error


def inv_gamma_rule(power: float) -> Rule:
    """Return the rule of a power ramp's scale.

    Args:
        power: p of the ramp.

    Returns:
        The rule.

    Example:
        >>> inv_gamma_rule(0.75).formula
        'g*kappa**((1-0.75)/0.75)'
    """
    return Rule(
        f"g*kappa**((1-{power!r})/{power!r})",
        "keeps what the ramp takes in per sample once many updates are done",
        "derived",
        Confidence.DERIVED,
        lambda c: scale_inv_gamma(c.value, power, c.kappa),
    )
