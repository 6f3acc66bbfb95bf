"""Steps and samples against the batch: the hyperbola, and the learning rate that makes the fastest progress at a batch.

These are rules of speed, not of equivalence: a run by them is another run, faster and as good by the theory's account.
"""

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


def optimal_lr(lr: float, batch: float, new_batch: float, critical: float, power: float = 1.0) -> float:
    """Best learning rate at another batch: eps_opt(B) = eps_max/(1 + B_crit/B)**alpha, from one known to be best.

    It grows as B**alpha well below B_crit and is flat well above. For SGD alpha = 1 is the optimum of a quadratic.

    Args:
        lr: best learning rate at `batch`, not negative.
        batch: B, samples.
        new_batch: B', samples.
        critical: B_crit, samples, not negative; 0 leaves the rate, infinity would make it B**alpha.
        power: alpha, not negative: 1 for SGD, 1/2 where the gradient is divided by its own size.

    Returns:
        The learning rate at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> optimal_lr(0.1, 100, 300, critical=300), round(optimal_lr(0.1, 20, 300, critical=300, power=0.5), 6)
        (0.2, 0.282843)

    References:
        arXiv 1812.06162, 2.4 and 2.6 (alpha = 1), section 4 (other alphas); docs/evidence.md (which one published
        rates follow).
    """
    ratio = steps_factor(batch, critical) / steps_factor(new_batch, critical)
    return finite("lr", lr, 0) * ratio ** finite("power", power, 0)
