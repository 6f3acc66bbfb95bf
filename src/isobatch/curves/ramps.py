"""How other libraries let the decay of an average grow over its first steps, by the names of their formulas."""

import math
from collections.abc import Callable

RAMPS: dict[str, Callable[[float, float, float], float]] = {
    "tensorflow": lambda t, scale, power: (1 + t) / (10 + t),
    "crowson": lambda t, scale, power: 1 - (1 + t / scale) ** -power,
    "exponential": lambda t, scale, power: -math.expm1(-t / scale),
    "annealing": lambda t, scale, power: t / (scale + t),
}
"""Name -> (step t, scale, power) -> the decay that the ramp allows.

tensorflow: (1+t)/(10+t). crowson: 1-(1+t/scale)**-power. exponential: 1-exp(-t/scale). annealing: t/(scale+t).
"""


def exponent(width: float) -> float:
    r"""Return the exponent g of the power profile t**g whose relative width is given.

    width**2 = (g+1) / ((g+2)**2 (g+3)), solved by bisection; g = 0 is the uniform average.

    Args:
        width: sigma_rel, in (0, 1/sqrt(12)].

    Returns:
        g, not negative.

    Example:
        >>> round(exponent(0.05), 4), round(exponent(0.10), 4)
        (16.9722, 6.9372)

    References:
        arXiv 2312.02696, section 3.
    """
    low, high = 0.0, 2 / width
    for _ in range(200):
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width * width
        low, high = (middle, high) if wide else (low, middle)
    return (low + high) / 2
