"""The square-root rule: sqrt(kappa)*eta, the noise-aware rule where noise is all of the second moment."""

from isobatch.rules.lr.noise_aware import noise_aware
from isobatch.rules.rule import Change, Confidence, LearningRate, OptimizerRow, Rule, RuleWarning, Side


def square_root(lr: float, kappa: float) -> float:
    """Learning rate for Adam and RMSProp while noise dominates the second moment: sqrt(kappa)*eta.

    Args:
        lr: eta at the old batch, not negative.
        kappa: new batch / old batch, positive.

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: lr negative or kappa not positive.

    Example:
        >>> square_root(0.1, 4)
        0.2

    References:
        arXiv 2205.10287 (Malladi et al.).
    """
    return noise_aware(lr, kappa, share=1.0)


def _needs_noise(c: Change, _: float) -> tuple[str, str] | None:
    if not c.optimizer.adaptive:
        return None
    known = c.optimizer.invariant_form is not None
    way = "use --optimizer invariant, which assumes nothing" if known else "stay at a small kappa"
    off = "small" if c.kappa > 1 else "large"
    message = (
        f"early in training, on small data or at a large batch it is too {off} (DIFFERENT in docs/studies/adam.md: "
        f"digits 8 to 32 by +0.216, 8 to 2 by -0.096, text 4 to 32 by +0.100); give --noise-scale, verify it, or "
    )
    return "square root needs noise to dominate v", message + way


def _needs_noisy_average(c: Change, _: float) -> tuple[str, str]:
    off = "small" if c.kappa > 1 else "large"
    setting = "momentum" if "momentum" in c.optimizer.moments else "betas"
    word = "sample-clock" if setting == "momentum" else "power"
    message = f'where the gradient is clear the rate is too {off}; rules.{setting} = "{word}" assumes nothing of noise'
    return "averages kept per step need noise to dominate them", message


def _convention(c: Change, _: float) -> tuple[str, str]:
    message = f"the learning-rate rule of {c.optimizer.name} is what recipes do, not what theory says; verify it"
    return "rule is only a convention", message


_NOISE = RuleWarning(Side.BOTH, _needs_noise, "arXiv 2205.10287, 2402.18824")

SQUARE_ROOT = Rule(
    "sqrt(kappa)*eta",
    "SDE limit of Adam and RMSProp, only while gradient noise dominates the second moment; found DIFFERENT on digits "
    "from kappa 2 on",
    "arXiv 2205.10287; docs/studies/adam.md, docs/verify.md",
    Confidence.DERIVED,
    lambda c: square_root(c.value, c.kappa),
    warnings=(_NOISE,),
    exponent=0.5,
)
CONVENTION = SQUARE_ROOT.but(
    because="what public recipes do for this optimizer; no theory covers it",
    source="convention",
    confidence=Confidence.CONVENTION,
    warnings=(RuleWarning(Side.BOTH, _convention, "convention"), _NOISE),
)
AVERAGES_KEPT = SQUARE_ROOT.but(
    because="an average kept per step holds kappa times the samples: its direction is sqrt(kappa) surer, and the "
    "square root is right only while noise dominates it",
    source="derived",
    confidence=Confidence.DERIVED,
    warnings=(RuleWarning(Side.BOTH, _needs_noisy_average, "derived"),),
)
NOT_INVARIANT = SQUARE_ROOT.but(
    because="the second moment does not depend on the batch here, so a square root is another run",
    source="derived from arXiv 2402.18824",
    confidence=Confidence.UNKNOWN,
    warnings=(),
)


def _rule(row: OptimizerRow) -> Rule:
    if row.invariant:
        return NOT_INVARIANT
    if row.normalises_after:
        return AVERAGES_KEPT
    return SQUARE_ROOT if row.adaptive and not row.convention else CONVENTION


CHOICE = LearningRate("sqrt", _rule)
