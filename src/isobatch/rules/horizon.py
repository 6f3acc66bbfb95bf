"""Another length of the run: what others do to rate and decay. No rule here keeps the run the same.

The published forms disagree, and none says what a run of another length should be equal to. They are printed as such.
"""

from isobatch.rules.rule import Confidence, OptimizerRow, Rule
from isobatch.units import finite

MARIN = 0.3
"""Power of the length in Marin's heuristic for the learning rate, beside sqrt(kappa)."""
POWER_LINES = 0.473
"""Power of the length by which eta*lambda/B falls in 2505.13738, the model kept."""
TESTED = (1 / 8, 4.0)
"""Factors on the length between which the authors of 2512.22382 tested that settings transfer."""

_NOT = "not equivalence: "
LR = Rule(
    "{rule} / sqrt(m_D)",
    _NOT + "lr goes as sqrt(m_B/m_D), m_D the factor on the length",
    "arXiv 2512.22382, read in a summary",
    Confidence.CONVENTION,
)
LR_UNKNOWN = Rule(
    "{rule}",
    _NOT + "no published rule moves this optimizer's rate with the length; kept",
    "unknown",
    Confidence.UNKNOWN,
)
DECAY = Rule(
    "{rule}, eta*lambda*E/B kept",
    _NOT + "what the weights lose over the whole run is kept",
    "arXiv 2512.22382, read in a summary; karpathy/nanochat",
    Confidence.CONVENTION,
)
DECAY_UNKNOWN = Rule(
    "{rule}", _NOT + "L2 and trust ratios: no published rule for another length; kept", "unknown", Confidence.UNKNOWN
)
LENGTH = Rule("m_D*E", _NOT + "the length that you ask for", "recipe", Confidence.UNKNOWN)
DECAY_FROM = Rule("m_D*E", _NOT + "the decay begins at the same share of the run", "convention", Confidence.CONVENTION)


def longer_lr(lr: float, times: float, power: float = 0.5) -> float:
    """Learning rate of a run of another length, as others set it: eta * m_D**-power.

    Args:
        lr: eta, not negative.
        times: m_D, new length / old length in samples, positive.
        power: 1/2 in 2512.22382, 0.3 in Marin's heuristic.

    Returns:
        The learning rate.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> longer_lr(1e-3, 4), round(longer_lr(1e-3, 4, MARIN), 7)
        (0.0005, 0.0006598)

    References:
        arXiv 2512.22382 (AdamW, tested from 1/8 to 4 times); marin-community/marin (power 0.3).
    """
    return float(finite("lr", lr, 0) * finite("length factor", times, 0, open_low=True) ** -power)


def longer_decay(weight_decay: float, times: float, lr_factor: float, kind: str) -> float:
    """Weight decay of a run of another length: eta*lambda*E/B kept, what the weights lose over the whole run.

    Args:
        weight_decay: lambda, not negative.
        times: m_D, positive.
        lr_factor: new learning rate / old, positive.
        kind: decoupled, coupled, independent or trust-ratio.

    Returns:
        The weight decay; unchanged where it is inside the gradient or a trust ratio.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> longer_decay(0.1, 4, 0.5, "decoupled"), longer_decay(0.1, 4, 0.5, "independent")
        (0.05, 0.025)
    """
    decay, length = finite("weight_decay", weight_decay, 0), finite("length factor", times, 0, open_low=True)
    if kind not in ("decoupled", "independent"):
        return decay
    return decay / length / (finite("lr factor", lr_factor, 0, open_low=True) if kind == "decoupled" else 1.0)


def lr_power(row: OptimizerRow) -> float:
    """Return the power of the length by which an optimizer's rate falls.

    Args:
        row: the optimizer's row.

    Returns:
        1/2 for Adam's family, else 0: nothing is published.

    Example:
        >>> from isobatch.rules.optimizers import OPTIMIZERS
        >>> lr_power(OPTIMIZERS["adamw"]), lr_power(OPTIMIZERS["sgd"])
        (0.5, 0.0)
    """
    return 0.5 if row.adaptive and row.decay != "trust-ratio" else 0.0
