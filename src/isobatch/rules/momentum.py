"""Heavy-ball momentum: a half-life in samples, or the number of steps that Goyal et al. keep."""

import math
import re

from isobatch.rules.rule import Change, Confidence, Rule, RuleWarning, Side
from isobatch.units import finite


def scale_momentum(momentum: float, kappa: float) -> float:
    """Momentum that keeps its half-life in samples: mu**kappa.

    Only right together with `lr_factor`: mu**kappa beside a plain kappa*eta changes eta/(1-mu).

    Args:
        momentum: mu in [0, 1), PyTorch form without dampening.
        kappa: new batch / old batch, positive.

    Returns:
        The momentum at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(scale_momentum(0.9, 4), 4)
        0.6561
    """
    mu = finite("momentum", momentum, 0, 1, open_high=True)
    return mu ** finite("kappa", kappa, 0, open_low=True)


def lr_factor(momentum: float, scaled: float) -> float:
    """Factor on the learning rate that keeps eta/(1-mu) when the momentum changes: (1-mu')/(1-mu).

    Args:
        momentum: mu at the old batch, in [0, 1).
        scaled: mu' at the new batch, in [0, 1).

    Returns:
        The factor beside the batch rule of the learning rate.

    Raises:
        InputError: a momentum outside [0, 1).

    Example:
        >>> round(lr_factor(0.9, 0.6561), 3)
        3.439
    """
    old, new = _both(momentum, scaled)
    return (1 - new) / (1 - old)


def buffer_factor(momentum: float, scaled: float) -> float:
    """Factor on SGD's momentum buffer when the momentum changes in mid-run: (1-mu)/(1-mu').

    The buffer of a constant gradient g is g/(1-mu); this keeps it the buffer of the same g.

    Args:
        momentum: mu before the change, in [0, 1).
        scaled: mu' after the change, in [0, 1).

    Returns:
        The factor on the buffer.

    Raises:
        InputError: a momentum outside [0, 1).

    Example:
        >>> round(buffer_factor(0.9, 0.6561), 4)
        0.2908
    """
    old, new = _both(momentum, scaled)
    return (1 - old) / (1 - new)


def _both(momentum: float, scaled: float) -> tuple[float, float]:
    return finite("momentum", momentum, 0, 1, open_high=True), finite("scaled momentum", scaled, 0, 1, open_high=True)


def beside(rule: Rule) -> Rule:
    """Return a learning-rate rule beside a momentum that moves: eta/(1-mu) is kept per sample.

    Args:
        rule: of the learning rate.

    Returns:
        The words of the rule with the factor in its formula; its number leaves the factor to `lr_factor`.

    Example:
        >>> beside(Rule("kappa*eta", "", "", Confidence.DERIVED)).formula
        "kappa*eta * (1-mu')/(1-mu)"
    """
    formula, *letters = re.split(r", (?=\w+ = )", rule.formula, maxsplit=1)
    return rule.but(formula=", ".join([f"{formula} * (1-mu')/(1-mu)", *letters]))


def _long(c: Change, new: float) -> tuple[str, str] | None:
    share = c.kappa * (math.inf if c.value == 1 else 1 / (1 - c.value)) * c.batch / c.length
    if c.value == 0 or share <= 0.01:
        return None
    message = f'the buffer spans {share:.1%} of the run; set rules.momentum = "sample-clock"'
    return "kappa/(1-mu) steps are not short", message


SAMPLE_CLOCK = Rule(
    "mu**kappa",
    "keeps the half-life of the buffer in samples, with the learning rate times (1-mu')/(1-mu)",
    "derived",
    Confidence.DERIVED,
    lambda c: scale_momentum(c.value, c.kappa),
    state=buffer_factor,
)
NORMALISED = SAMPLE_CLOCK.but(
    because="keeps the half-life of the average in samples; its size is normalised away, so no factor on the rate",
)
KEPT = Rule(
    "mu",
    "kept per step: the same run only while kappa/(1-mu) steps are short against the run",
    "arXiv 1706.02677",
    Confidence.CONVENTION,
    warnings=(RuleWarning(Side.UP, _long, "derived"),),
    state=buffer_factor,
)
