"""The noise share of Adam's second moment, and how far the square-root rule drifts without it being 1."""

import math

from isobatch.units import finite

SQUARE_ROOT_ERROR = 0.05
NOISE_AWARE_ERROR = 0.25


def noise_share(batch: float, noise_scale: float) -> float:
    """Noise share of the second moment at a batch: f = (tr Sigma/B) / (|G|**2 + tr Sigma/B) = 1/(1 + B/B_noise).

    Args:
        batch: B, samples.
        noise_scale: B_noise = tr Sigma/|G|**2, samples, not negative.

    Returns:
        f in [0, 1].

    Raises:
        InputError: a batch that is not positive or a negative noise scale.

    Example:
        >>> noise_share(100, 300)
        0.75

    References:
        arXiv 1812.06162 (the noise scale); the share is derived from it.
    """
    size, scale = finite("batch", batch, 0, open_low=True), finite("noise scale", noise_scale, 0)
    return scale / (scale + size)


def drift_error(kappa: float, share: float) -> float:
    """Relative error in the drift per sample that the square-root rule makes when f < 1.

    Drift per sample is lr/(B*sqrt(v)), with v' = v*((1-f) + f/kappa): the ratio to the reference is
    1/sqrt(kappa*(1-f) + f), minus 1. Negative: the large batch lags.

    Args:
        kappa: new batch / old batch, positive.
        share: f at the old batch, in [0, 1].

    Returns:
        The relative error, 0 at f = 1 or kappa = 1.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> drift_error(16, 1.0), round(drift_error(16, 0.5), 3)
        (0.0, -0.657)
    """
    ratio, f = finite("kappa", kappa, 0, open_low=True), finite("noise share", share, 0, 1)
    return 1 / math.sqrt(ratio * (1 - f) + f) - 1


def recommend(kappa: float, share: float) -> str:
    """Which rule fits an Adam run, by the drift error of the square root.

    The bounds 5% and 25% are conventions: below the first the square root is as good as anything; up to the second one
    learning rate for all coordinates still does; beyond, only a second moment that does not depend on the batch.

    Args:
        kappa: new batch / old batch.
        share: noise share at the old batch.

    Returns:
        "square root", "noise-aware" or "invariant".

    Example:
        >>> recommend(4, 0.999), recommend(4, 0.9), recommend(16, 0.5)
        ('square root', 'noise-aware', 'invariant')
    """
    error = abs(drift_error(kappa, share))
    if error <= SQUARE_ROOT_ERROR:
        return "square root"
    return "noise-aware" if error <= NOISE_AWARE_ERROR else "invariant"


def second_moment_factor(kappa: float, share: float) -> float:
    """Factor on Adam's v when the batch grows by kappa: (1-f) + f/kappa.

    Args:
        kappa: new batch / old batch.
        share: f, the noise share of v at the old batch.

    Returns:
        The factor.

    Example:
        >>> second_moment_factor(4, 1.0), second_moment_factor(4, 0.0)
        (0.25, 1.0)
    """
    return (1 - share) + share / kappa


def noise_share_after(share: float, kappa: float) -> float:
    """Noise share of the second moment after the batch has grown by kappa: (f/kappa) / ((1-f) + f/kappa).

    Args:
        share: f before.
        kappa: new batch / old batch.

    Returns:
        f after.

    Example:
        >>> noise_share_after(1.0, 4), noise_share_after(0.5, 4)
        (1.0, 0.2)
    """
    return share / kappa / second_moment_factor(kappa, share)
