"""AdaScale's gain and AdaptDL's goodput: what one step of a larger batch is worth, numbers in and numbers out."""

import math

from isobatch.errors import InputError
from isobatch.rules.critical_batch import steps_factor
from isobatch.units import finite


def adascale_gain(scale: float, variance: float, gradient_squared: float) -> float:
    """Base steps that one step of S base batches is worth: r = (sigma^2 + mu^2)/(sigma^2/S + mu^2), in [1, S].

    AdaScale trains with r*eta(tau) and adds r to tau, the base steps done so far: the schedule is read at tau.

    Args:
        scale: S, batch over base batch, at least 1.
        variance: sigma^2, trace of the covariance of a *base batch's* gradient: tr(Sigma)/B_0, not negative.
        gradient_squared: mu^2 = |G|^2, not negative; an unclamped estimate below 0 is refused.

    Returns:
        The gain: 1 without noise, S where noise is all.

    Raises:
        InputError: a value outside its range, or no gradient at all.

    Example:
        >>> adascale_gain(4, variance=3.0, gradient_squared=1.0)
        2.2857142857142856

    References:
        arXiv 2007.05105, algorithm 1.
    """
    times = finite("scale", scale, 1)
    noise, signal = finite("variance", variance, 0), finite("gradient_squared", gradient_squared, 0)
    if noise + signal == 0:
        raise InputError("variance=0 and gradient_squared=0: without a gradient there is no gain; measure again")
    return (noise + signal) / (noise / times + signal)


def gain(batch: float, base_batch: float, noise_scale: float) -> float:
    """AdaScale's gain from a noise scale: r = (1 + B_noise/B_0)/(1 + B_noise/B) = eps_opt(B)/eps_opt(B_0).

    Below the base batch it is the same ratio, then less than 1.

    Args:
        batch: B, samples.
        base_batch: B_0, samples.
        noise_scale: tr(Sigma)/|G|^2 in samples, not negative; infinity gives B/B_0.

    Returns:
        The gain.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> gain(400, 100, noise_scale=300)
        2.2857142857142856

    References:
        arXiv 2007.05105; as a ratio of best rates derived from arXiv 1812.06162, 2.6.
    """
    if noise_scale == math.inf:
        return finite("batch", batch, 0, open_low=True) / finite("base batch", base_batch, 0, open_low=True)
    return steps_factor(base_batch, noise_scale) / steps_factor(batch, noise_scale)


def efficiency(batch: float, base_batch: float, noise_scale: float) -> float:
    """Progress per sample against the base batch: gain/scale = (B_noise + B_0)/(B_noise + B).

    Args:
        batch: B, samples.
        base_batch: B_0, samples.
        noise_scale: in samples, not negative.

    Returns:
        1 at the base batch, falling with the batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(efficiency(400, 100, noise_scale=300), 4)
        0.5714

    References:
        arXiv 2008.12260 (Pollux); AdaptDL computes it as gain/scale.
    """
    return gain(batch, base_batch, noise_scale) * base_batch / batch


def goodput(throughput: float, batch: float, base_batch: float, noise_scale: float) -> float:
    """Useful samples per second, in samples of the base batch: throughput times efficiency.

    Args:
        throughput: samples per second at the batch, not negative.
        batch: B, samples.
        base_batch: B_0, samples.
        noise_scale: in samples, not negative; AdaptDL preconditions it for Adam.

    Returns:
        Samples per second.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> goodput(1000.0, 400, 100, noise_scale=300)
        571.4285714285714

    References:
        arXiv 2008.12260 (Pollux).
    """
    return finite("throughput", throughput, 0) * efficiency(batch, base_batch, noise_scale)
