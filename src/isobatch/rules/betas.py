"""Adam's betas: half-lives in samples, with floors that act on the change only."""

from isobatch.errors import InputError
from isobatch.rules.rule import Confidence, Rule
from isobatch.units import finite

FLOORS = (0.5, 0.95)

POWER = Rule(
    "beta**kappa",
    "keeps the half-life of the moment in samples",
    "arXiv 2507.07101 (beta2 in tokens); same algebra as 2307.13813",
    Confidence.DERIVED,
)
SDE = Rule(
    "1-kappa*(1-beta)",
    "the form of the SDE; the first order of beta**kappa, defined only for kappa < 1/(1-beta)",
    "arXiv 2205.10287",
    Confidence.THEOREM,
)
KEPT = Rule("beta", "kept per step because the recipe says so", "recipe", Confidence.UNKNOWN)


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
