"""Weight decay: what the weights lose per sample stays the same, whichever way it is coupled."""

from isobatch.errors import InputError
from isobatch.rules.rule import Confidence, OptimizerRow, Rule
from isobatch.units import finite

KINDS = ("decoupled", "coupled", "independent", "trust-ratio")


def scale_weight_decay(weight_decay: float, kappa: float, lr: float, scaled_lr: float, kind: str) -> float:
    """Weight decay at the new batch; the factor applies to every value of a decay schedule.

    decoupled (AdamW): lambda*kappa*eta/eta'; coupled (L2 in the gradient) and trust-ratio: lambda; independent (decay
    not multiplied by lr): lambda*kappa.

    Args:
        weight_decay: lambda at the old batch, not negative.
        kappa: new batch / old batch, positive.
        lr: eta at the old batch, positive unless it did not change.
        scaled_lr: eta' at the new batch.
        kind: decoupled, coupled, independent or trust-ratio.

    Returns:
        The weight decay at the new batch.

    Raises:
        InputError: a value outside its range or an unknown kind.

    Example:
        >>> scale_weight_decay(0.1, 4, lr=1e-3, scaled_lr=2e-3, kind="decoupled")
        0.2
    """
    decay, ratio = finite("weight_decay", weight_decay, 0), finite("kappa", kappa, 0, open_low=True)
    if kind == "independent":
        return decay * ratio
    if kind in ("coupled", "trust-ratio"):
        return decay
    if kind != "decoupled":
        raise InputError(f"decay kind={kind!r} must be one of {', '.join(KINDS)}")
    before, after = finite("lr", lr, 0), finite("scaled lr", scaled_lr, 0)
    if after == ratio * before:
        return decay
    return decay * ratio * before / finite("scaled lr", after, 0, open_low=True)


DECOUPLED = Rule(
    "lambda*kappa*eta/eta'",
    "keeps eta*lambda/B, the share of the weights lost per sample",
    "arXiv 2405.13698 (the timescale 1/(eta*lambda)); factor derived",
    Confidence.DERIVED,
    lambda c: scale_weight_decay(c.value, c.kappa, c.lr, c.new_lr, "decoupled"),
)
COUPLED_SGD = Rule(
    "lambda",
    "L2 is part of the gradient, so it moves as the learning rate does",
    "derived",
    Confidence.DERIVED,
)
COUPLED_ADAPTIVE = Rule(
    "lambda",
    "L2 is part of the gradient, so it passes through 1/sqrt(v) and moves as the learning rate does",
    "derived",
    Confidence.DERIVED,
)
TRUST_RATIO = Rule("lambda", "inside a trust ratio: unchanged by convention", "convention", Confidence.CONVENTION)
INDEPENDENT = Rule(
    "lambda*kappa",
    "not multiplied by lr, so it must grow with the step",
    "derived",
    Confidence.DERIVED,
    lambda c: scale_weight_decay(c.value, c.kappa, c.lr, c.new_lr, "independent"),
)


def decay_rule(row: OptimizerRow, coupling: str, rate: str = "eta'") -> Rule:
    """Return the rule of weight decay.

    Args:
        row: the optimizer's row.
        coupling: one of KINDS.
        rate: the learning rate that multiplies the decay, in the letters of the plan.

    Returns:
        The rule.

    Example:
        >>> from isobatch.rules.optimizers import OPTIMIZERS
        >>> decay_rule(OPTIMIZERS["adamw"], "decoupled").formula
        "lambda*kappa*eta/eta'"
    """
    if coupling == "coupled":
        return COUPLED_ADAPTIVE if row.adaptive and not row.invariant else COUPLED_SGD
    if coupling == "decoupled":
        return DECOUPLED.but(formula=f"lambda*kappa*eta/{rate}")
    return INDEPENDENT if coupling == "independent" else TRUST_RATIO
