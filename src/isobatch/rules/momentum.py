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


AUTO_HORIZON = 0.01
"""Share of the run that kappa/(1-mu) steps may span for a momentum per step to be as close as the sample clock.

Measured (docs/methods/momentum.md): up to here the kept form costs 0.001 in log loss on average, at 0.05 already 0.03.
"""
AUTO_STABLE = 0.3
"""Share of its stability limit past which the sample clock is no longer safe.

Measured (docs/methods/momentum.md): still the closer form at 0.24, not at 0.40, dead at 0.59.
"""


def horizon_share(c: Change) -> float:
    """Return the share of the run that a buffer kept per step remembers: kappa*B/(1-mu) samples of all.

    Args:
        c: the change; its value is mu (or beta1).

    Returns:
        The share; 0 for a run without an end or a momentum of 0.
    """
    return 0.0 if c.value == 0 else c.kappa * c.batch / (1 - c.value) / c.length


def limit_by_clock(c: Change) -> float | None:
    """Return the largest stable eta/(1-mu) once the momentum is mu**kappa; None where the limit at mu is not known.

    Heavy ball is stable up to 2(1+mu)/(1-mu) over the curvature, so the limit shrinks by that ratio at mu**kappa.

    Args:
        c: the change; its value is mu.

    Returns:
        The limit.
    """
    if c.limit is None:
        return None
    new = scale_momentum(c.value, c.kappa)
    return c.limit * ((1 + new) / (1 - new)) / ((1 + c.value) / (1 - c.value))


def kept_by_auto(c: Change) -> tuple[bool, str]:
    """Return whether `auto` keeps the momentum per step, and why: by its horizon, and by the stability limit.

    The sample clock is the closer form in a short run. Where kappa/(1-mu) steps are short against the run the kept form
    is as close; where the sample clock would pass its stability limit and the kept form does not, only that one lives.

    Args:
        c: the change; its value is mu, its lr eta.

    Returns:
        Whether it is kept, and the reason in half a sentence.
    """
    if c.kappa < 1:  # a buffer by the sample clock grows, which no limit forbids
        return False, "by the sample clock: the batch shrinks, and a longer buffer is stable"
    share, limit = horizon_share(c), limit_by_clock(c)
    effective = c.kappa * c.lr / (1 - c.value)
    if limit is not None and c.limit is not None and effective > AUTO_STABLE * limit and effective <= c.limit:
        return True, f"kept per step: by the sample clock {effective:.3g} is near its stability limit {limit:.3g}"
    if share <= AUTO_HORIZON and math.isfinite(c.length):
        return True, f"kept per step: kappa/(1-mu) steps are {share:.2%} of the run, at most {AUTO_HORIZON:.0%}"
    if not math.isfinite(c.length):
        return False, "by the sample clock: the length of the run is not known"
    return False, f"by the sample clock: kappa/(1-mu) steps are {share:.2%} of the run, more than {AUTO_HORIZON:.0%}"


def clock_of(word: str, c: Change) -> Rule:
    """Return the rule of a momentum.

    Args:
        word: of a recipe's rules.momentum: sample-clock, keep or auto.
        c: the change; its value is mu.

    Returns:
        The rule; of auto with the reason for its choice.
    """
    clock = NORMALISED if c.optimizer.normalises_after else SAMPLE_CLOCK
    if word != "auto" or c.value == 0:
        return KEPT if word == "keep" else clock
    if c.optimizer.normalises_after:
        return clock
    kept, why = kept_by_auto(c)
    return (KEPT_AUTO if kept else clock).but(because=f"auto, {why}")


def _long(c: Change, new: float) -> tuple[str, str] | None:
    share = horizon_share(c)
    if share <= AUTO_HORIZON:
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
KEPT_AUTO = KEPT.but(source="arXiv 1706.02677; reference pilot on digits", warnings=())
