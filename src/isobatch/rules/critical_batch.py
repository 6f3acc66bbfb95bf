"""Steps and samples against the batch: the hyperbola, and the learning rate that makes the fastest progress at a batch.

These are rules of speed, not of equivalence: a run by them is another run, faster and as good by the theory's account.
"""

import math

from isobatch.units import finite


def steps_factor(batch: float, critical: float) -> float:
    """Steps to a goal over the fewest possible: S/S_min = 1 + B_crit/B.

    Args:
        batch: B, samples, positive.
        critical: B_crit = E_min/S_min, samples, not negative.

    Returns:
        At least 1; 2 at the critical batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> steps_factor(512, 512), steps_factor(2048, 512)
        (2.0, 1.25)

    References:
        arXiv 1812.06162, 2.11 and 2.12 (solved for S).
    """
    return 1 + finite("critical batch", critical, 0) / finite("batch", batch, 0, open_low=True)


def samples_factor(batch: float, critical: float) -> float:
    """Samples to a goal over the fewest possible: E/E_min = 1 + B/B_crit.

    Args:
        batch: B, samples, positive.
        critical: B_crit, samples, positive.

    Returns:
        At least 1; 2 at the critical batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> samples_factor(512, 512), samples_factor(64, 512)
        (2.0, 1.125)

    References:
        arXiv 1812.06162, 2.11 and 2.12 (solved for E).
    """
    return 1 + finite("batch", batch, 0, open_low=True) / finite("critical batch", critical, 0, open_low=True)


def optimal_lr(lr: float, batch: float, new_batch: float, critical: float) -> float:
    """SGD's best learning rate at another batch: eps_opt(B) = eps_max/(1 + B_noise/B), from one known to be best.

    Args:
        lr: best learning rate at `batch`, not negative.
        batch: B, samples.
        new_batch: B', samples.
        critical: B_noise, samples, not negative; 0 leaves the rate, infinity would make it linear.

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> optimal_lr(0.1, 100, 300, critical=300)
        0.2

    References:
        arXiv 1812.06162, 2.4 and 2.6.
    """
    return finite("lr", lr, 0) * steps_factor(batch, critical) / steps_factor(new_batch, critical)


def surge_lr(lr: float, batch: float, new_batch: float, critical: float) -> float:
    """Sign descent's best learning rate at another batch: eps_max/(0.5 (sqrt(B_noise/B) + sqrt(B/B_noise))).

    Rises as the square root below B_noise and falls above it. Proved for sign descent with Gaussian gradients and
    batches well below pi sigma^2/(2 mu^2) of every coordinate; Adam is taken for sign descent.

    Args:
        lr: best learning rate at `batch`, not negative.
        batch: B, samples.
        new_batch: B', samples.
        critical: B_noise = E_min/S_min, samples, positive.

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(surge_lr(1e-3, 100, 400, critical=400), 6), surge_lr(1e-3, 100, 1600, critical=400)
        (0.00125, 0.001)

    References:
        arXiv 2405.14578, theorem 3, eq. 13.
    """

    def height(size: float) -> float:
        ratio = finite("batch", size, 0, open_low=True) / finite("critical batch", critical, 0, open_low=True)
        return math.sqrt(1 / ratio) + math.sqrt(ratio)

    return finite("lr", lr, 0) * height(batch) / height(new_batch)
