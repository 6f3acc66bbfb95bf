"""The linear rule: kappa*eta."""

from isobatch.rules.rule import Confidence, LearningRate, OptimizerRow, Rule, RuleWarning, Side
from isobatch.units import finite


def linear(lr: float, kappa: float) -> float:
    """Learning rate that keeps lr per sample: kappa*eta.

    Args:
        lr: eta at the old batch, mean-reduced loss, not negative.
        kappa: new batch / old batch, positive.

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: lr negative or kappa not positive.

    Example:
        >>> linear(0.1, 4)
        0.4

    References:
        arXiv 1706.02677 (Goyal et al.).
    """
    return finite("lr", lr, 0) * finite("kappa", kappa, 0, open_low=True)


LINEAR = Rule(
    "kappa*eta",
    "kappa small steps move as far as one large one, while kappa*eta is far from the stability limit",
    "arXiv 1706.02677; SDE limit: 2307.13813",
    Confidence.THEOREM,
    lambda c: linear(c.value, c.kappa),
    exponent=1.0,
)
NO_NOISE = LINEAR.but(
    because="no noise in the second moment (f = 0): the update does not shrink as the batch grows",
    source="derived",
    confidence=Confidence.DERIVED,
)
INVARIANT = LINEAR.but(
    because="the second moment squares micro-batches of the reference size, so v is the reference's own",
    source="arXiv 2402.18824",
    confidence=Confidence.DERIVED,
)
NORMALISED = LINEAR.but(
    because="an average over the same samples has the same direction, and its size is normalised away: kappa steps "
    "become one of kappa times the length",
    source="derived",
    confidence=Confidence.DERIVED,
)
CONVENTION = LINEAR.but(
    because="what public recipes do for this optimizer; its trust ratio is outside the theory",
    source="convention",
    confidence=Confidence.CONVENTION,
    warnings=(
        RuleWarning(
            Side.BOTH,
            lambda c, _: (
                "rule is only a convention",
                f"the learning-rate rule of {c.optimizer.name} is what recipes do, not what theory says; verify it",
            ),
            "convention",
        ),
    ),
)


def _rule(row: OptimizerRow) -> Rule:
    if row.invariant:
        return INVARIANT
    if row.normalises_after:
        return NORMALISED
    if row.adaptive:
        return NO_NOISE
    return CONVENTION if row.convention else LINEAR


CHOICE = LearningRate("linear", _rule)
