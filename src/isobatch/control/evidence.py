"""What an estimate of the noise scale hands to the controller, and what the controller hands back."""

import math
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real

from isobatch.errors import InputError
from isobatch.units import finite, whole

IDENTIFIED = "identified"
"""The only verdict of an estimate on which the controller acts."""


class Action(StrEnum):
    """What a decision does to the batch."""

    HOLD = "hold"
    GROW = "grow"
    SHRINK = "shrink"


@dataclass(frozen=True)
class Decision:
    """The batch from the next step on, and why.

    Args:
        batch: global batch.
        reason: in words, with the numbers.
        action: hold, grow or shrink.
        target: what the evidence asks for before limits, None where there is no usable evidence.
    """

    batch: int
    reason: str
    action: Action
    target: float | None = None


@dataclass(frozen=True)
class Evidence:
    """A measurement of the noise scale, as plain numbers.

    Args:
        value: B_simple in samples; None or not finite where there is none.
        low: lower end of its interval.
        high: upper end of its interval; may be infinite.
        verdict: "identified", or why not.
        temperature: temperature of the run over the measurement, see `temperature`.
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: str
    temperature: float

    def obstacle(self) -> str | None:
        """Return why no batch can be chosen by this measurement.

        Returns:
            The reason, None for a usable one.

        Raises:
            InputError: something that is no number, or an interval upside down.
        """
        value, low, high = (_number(name, getattr(self, name)) for name in ("value", "low", "high"))
        heat = _number("temperature", self.temperature)
        if low > high:
            raise InputError(f"the interval [{low:g}, {high:g}] of the noise scale must have low <= high")
        if self.verdict != IDENTIFIED:
            return f"the noise scale is not identified ({self.verdict})"
        if not (math.isfinite(value) and value > 0):
            return f"noise scale {value:g} is not a positive number"
        if math.isnan(low) or math.isnan(high):
            return "the noise scale has no interval"
        if not (math.isfinite(heat) and heat > 0):
            return f"temperature {heat:g} of the measurement is not a positive number"
        return None

    def scales(self) -> tuple[float, float, float]:
        """Return low, value and high of a usable measurement, none below 0.

        Returns:
            Samples.
        """
        low, value, high = (_number(name, getattr(self, name)) for name in ("low", "value", "high"))
        return max(0.0, low), max(0.0, value), max(0.0, high)


def temperature(lr: float, batch: int, momentum: float = 0.0, exponent: float = 1.0) -> float:
    """Temperature of a run: what its batch rule keeps, and what the noise scale falls with.

    T = lr / ((1 - mu) * B**p), with p the power of the batch in the optimizer's learning-rate rule: 1 for SGD, 1/2 for
    Adam while noise dominates its second moment (and then mu = 0).

    Args:
        lr: learning rate of the step, schedule included, not negative.
        batch: global batch.
        momentum: heavy-ball momentum in [0, 1).
        exponent: p, the exponent of the optimizer's `isobatch.rules.lr_rule`.

    Returns:
        T; only ratios of it have a meaning.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> temperature(0.1, 8) == temperature(0.2, 16)
        True

    References:
        arXiv 1812.06162, appendix C (B_simple ~ 1/T, T ~ lr/B); the form for Adam is derived.
    """
    share = finite("momentum", momentum, 0, 1 - 1e-12)
    power = finite("exponent", exponent, 0, 1)
    return finite("lr", lr, 0) / ((1 - share) * whole("batch", batch) ** power)


def _number(name: str, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name}={value!r} must be a number, or None for none; got {type(value).__name__}")
    return float(value)
