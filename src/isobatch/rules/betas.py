"""Adam's betas: half-lives in samples, with floors that act on the change only."""

import math

from isobatch.errors import InputError
from isobatch.rules.momentum import AUTO_HORIZON, horizon_share
from isobatch.rules.rule import Change, Confidence, Rule, RuleWarning, Severity, Side
from isobatch.units import finite


def power(beta: float, kappa: float, floor: float = 0.0) -> float:
    """Beta that keeps its half-life in samples: max(beta**kappa, min(beta, floor)).

    The floor acts on the change only: a beta already under it is not raised.

    Args:
        beta: in [0, 1), per step at the old batch.
        kappa: new batch / old batch, positive.
        floor: smallest value that the change may reach, in [0, 1).

    Returns:
        The beta at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(power(0.9, 4), 4), power(0.9, 16, floor=0.5), power(0.3, 2, floor=0.5)
        (0.6561, 0.5, 0.3)

    References:
        arXiv 2507.07101 (beta2 as a half-life in tokens).
    """
    old = finite("beta", beta, 0, 1, open_high=True)
    scaled = old ** finite("kappa", kappa, 0, open_low=True)
    return max(scaled, min(old, finite("floor", floor, 0, 1, open_high=True)))


def sde(beta: float, kappa: float) -> float:
    """Beta of the SDE rule: 1 - kappa*(1-beta).

    Args:
        beta: in [0, 1), per step at the old batch.
        kappa: new batch / old batch, positive.

    Returns:
        The beta at the new batch.

    Raises:
        InputError: kappa beyond 1/(1-beta), where the rule would give a negative beta.

    Example:
        >>> round(sde(0.999, 4), 4)
        0.996

    References:
        arXiv 2205.10287 (Malladi et al.).
    """
    old, ratio = finite("beta", beta, 0, 1, open_high=True), finite("kappa", kappa, 0, open_low=True)
    scaled = old - (ratio - 1) * (1 - old)
    if scaled < 0:
        raise InputError(
            f"kappa={ratio:g} is beyond the linear beta rule at beta={old:g}, which ends at kappa={1 / (1 - old):g}; "
            'set rules.betas = "power"'
        )
    return scaled


def mixed(beta: float, kappa: float) -> float:
    """Share of the average in a mixed update that keeps its noise: 1 - sqrt(kappa)*(1-beta), not below 0.

    The update is the direction of beta1*m + (1-beta1)*g. With beta2**kappa m averages the same samples; the fresh
    gradient's noise is sqrt(kappa) smaller, so its weight is sqrt(kappa) larger.

    Args:
        beta: beta1 in [0, 1), at the old batch.
        kappa: new batch / old batch, positive.

    Returns:
        beta1 at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(mixed(0.9, 4), 4), mixed(0.9, 400)
        (0.8, 0.0)
    """
    old, ratio = finite("beta", beta, 0, 1, open_high=True), finite("kappa", kappa, 0, open_low=True)
    return old if ratio == 1 else max(0.0, 1 - math.sqrt(ratio) * (1 - old))


def steps_factor(old: float, new: float) -> float:
    """Factor on the step count of bias correction when a beta moves: beta'**step' = beta**step.

    Args:
        old: beta before the change.
        new: beta after it.

    Returns:
        log(beta)/log(beta'); 1 where a beta is 0 and nothing is accumulated.

    Example:
        >>> round(steps_factor(0.9, 0.9**4), 6)
        0.25
    """
    if old == new or not 0 < old < 1 or not 0 < new < 1:
        return 1.0
    return math.log(old) / math.log(new)


def power_rule(beta: float, kappa: float, floor: float) -> Rule:
    """Return the power rule, or where it would pass its floor the rule that holds it there.

    Args:
        beta: per step at the old batch.
        kappa: new batch / old batch.
        floor: smallest value that the change may reach.

    Returns:
        The rule.

    Example:
        >>> power_rule(0.9, 4, 0.5).formula, power_rule(0.9, 16, 0.5).formula
        ('beta**kappa', 'max(beta**kappa, min(beta, 0.5))')
    """
    if power(beta, kappa, floor) <= beta**kappa * (1 + 1e-12):
        return POWER
    return FLOORED.but(formula=f"max(beta**kappa, min(beta, {floor:g}))")


def _held(c: Change, new: float) -> tuple[str, str]:
    message = f"beta**kappa = {c.value**c.kappa:.4g} is held at {new:g}; the moment remembers more samples than before"
    return "is at its floor", message


POWER = Rule(
    "beta**kappa",
    "keeps the half-life of the moment in samples",
    "arXiv 2507.07101 (beta2 in tokens); same algebra as 2307.13813",
    Confidence.DERIVED,
    lambda c: power(c.value, c.kappa, c.floor),
    state=steps_factor,
)
FLOORED = POWER.but(
    because="held at its floor, below which a moment spans too few steps; it remembers more samples than before",
    source="convention",
    confidence=Confidence.CONVENTION,
    warnings=(RuleWarning(Side.UP, _held, "convention (floors 0.5 and 0.95)", Severity.WEAK),),
)
SDE = Rule(
    "1-kappa*(1-beta)",
    "the form of the SDE; the first order of beta**kappa, defined only for kappa < 1/(1-beta)",
    "arXiv 2205.10287",
    Confidence.THEOREM,
    lambda c: sde(c.value, c.kappa),
    state=steps_factor,
)
MIXED = Rule(
    "max(0, 1-sqrt(kappa)*(1-beta))",
    "not a clock but the share of the average in the update: the fresh gradient's noise keeps its size beside it",
    "derived",
    Confidence.DERIVED,
    lambda c: mixed(c.value, c.kappa),
)
KEPT_SHORT = Rule(
    "beta",
    "auto: kept per step, because kappa/(1-beta) steps are short against the run",
    "derived",
    Confidence.CONVENTION,
    state=steps_factor,
)
KEPT = Rule("beta", "kept per step because the recipe says so", "recipe", Confidence.UNKNOWN, state=steps_factor)
FORMS = ("power", "linear", "keep", "auto")


def beta_rule(form: str, change: Change, setting: str) -> Rule:
    """Return the rule of a beta.

    Args:
        form: of a recipe's rules.betas: power, linear, keep or auto.
        change: what the rule will see.
        setting: betas[0], betas[1] or alpha.

    Returns:
        The rule.
    """
    if form == "auto":
        first = setting == "betas[0]" and not change.optimizer.normalises_after
        if first and horizon_share(change) <= AUTO_HORIZON:
            return KEPT_SHORT
        form = "power"
    if form == "power" and change.optimizer.normalises_after:
        return MIXED if change.optimizer.mixes and setting == "betas[0]" else POWER
    if form == "power":
        return power_rule(change.value, change.kappa, change.floor)
    return SDE if form == "linear" else KEPT
