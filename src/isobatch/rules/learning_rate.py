"""The learning rate: linear where the update is linear in the gradient, square root where noise sets its size."""

import math

from isobatch.rules.rule import Confidence, Rule
from isobatch.units import finite

LINEAR = Rule(
    "kappa*eta",
    "kappa small steps move as far as one large one, while kappa*eta is far from the stability limit",
    "arXiv 1706.02677; SDE limit: 2307.13813",
    Confidence.THEOREM,
)
SQUARE_ROOT = Rule(
    "sqrt(kappa)*eta",
    "SDE limit of Adam and RMSProp; a theorem only while gradient noise dominates the second moment",
    "arXiv 2205.10287",
    Confidence.THEOREM,
)
LINEAR_ADAM = Rule(
    "kappa*eta",
    "no noise in the second moment (f = 0): the update does not shrink as the batch grows",
    "derived",
    Confidence.DERIVED,
)
NOISE_AWARE = Rule(
    "kappa*eta*sqrt((1-f)+f/kappa)",
    "keeps the drift lr/(B*sqrt(v)) per sample, f the noise share of v at the old batch",
    "derived",
    Confidence.DERIVED,
)
INVARIANT = Rule(
    "kappa*eta",
    "the second moment squares micro-batches of the reference size, so v is the reference's own",
    "arXiv 2402.18824",
    Confidence.DERIVED,
)
SQUARE_ROOT_CONVENTION = Rule(
    "sqrt(kappa)*eta",
    "what public recipes do for this optimizer; no theory covers it",
    "convention",
    Confidence.CONVENTION,
)
LINEAR_CONVENTION = Rule(
    "kappa*eta",
    "what public recipes do for this optimizer; its trust ratio is outside the theory",
    "convention",
    Confidence.CONVENTION,
)
SEARCHED = Rule(
    "eta",
    "the highest rate that the warm-up tries; the search finds the peak at the new batch",
    "arXiv 2107.05855",
    Confidence.CONVENTION,
)
KEPT = Rule("eta", "kept because the recipe says so; not an equivalent run", "recipe", Confidence.UNKNOWN)


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


def noise_aware(lr: float, kappa: float, share: float) -> float:
    """Learning rate for Adam when noise makes up the share f of the second moment at the old batch.

    eta' = kappa*eta*sqrt((1-f) + f/kappa): sqrt(kappa) at f = 1, kappa at f = 0. Keeps the drift lr/(B*sqrt(v)) per
    sample with v = G**2 + sigma**2/B per coordinate.

    Args:
        lr: eta at the old batch, not negative.
        kappa: new batch / old batch, positive.
        share: f in [0, 1].

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> noise_aware(0.1, 4, share=0.0), noise_aware(0.1, 4, share=1.0)
        (0.4, 0.2)
    """
    f = finite("noise share", share, 0, 1)
    return linear(lr, kappa) * math.sqrt((1 - f) + f / kappa)
