r"""A reference schedule: one value per reference step, used through its mean over the samples of the actual step.

At the reference batch the mean over [seen, seen+B] is the reference's own value; at any other batch the sum of the
learning rate over the same samples is the same, whatever the sequence of batches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from isobatch.curves.pieces import Pieces
from isobatch.curves.shapes import SHAPES, Stairs, cosine, mean_over, shape_of, stairs_of
from isobatch.errors import InputError
from isobatch.units import finite


@dataclass(frozen=True)
class Staircase(Stairs):
    """Factor on a setting as a step function of samples: warm-up, then a decay to `final`.

    Stair k covers the samples [k*stair, (k+1)*stair) and holds (k+1)/W in a warm-up of W stairs, afterwards the shape
    at the left end of the stair. Beyond the length the last value holds.

    Args:
        length: samples of the whole run, positive.
        warmup: samples of the linear warm-up, at most length.
        shape: a name in `SHAPES`: constant, linear, minus-sqrt, cosine.
        final: factor at the end of the run, in [0, 1].
        stair: samples of one reference step, positive.
        decay_from: samples at which the decay begins; the end of the warm-up unless given.

    Example:
        >>> lr = Staircase(length=800, warmup=80, shape="cosine", stair=8)
        >>> lr.at(0), lr.mean(0, 80)
        (0.1, 0.55)
    """

    length: float
    warmup: float = 0.0
    shape: str = "constant"
    final: float = 0.0
    stair: float = 1.0
    decay_from: float | None = None
    _stairs: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        finite("schedule length", self.length, 0, open_low=True)
        finite("stair", self.stair, 0, open_low=True)
        finite("schedule.final", self.final, 0, 1)
        shape_of(self.shape)
        if not 0 <= self.warmup <= self.length:
            raise InputError(
                f"schedule.warmup={self.warmup:g} samples must be in [0, {self.length:g}], the length of the run; "
                "shorten the warm-up or lengthen the run"
            )
        if self.decay_from is not None:
            finite("schedule.decay_from", self.decay_from, 0, self.length)
        object.__setattr__(self, "_stairs", stairs_of(self.length, self.stair))

    def _grid(self) -> tuple[float, int]:
        return self.stair, self._stairs

    def _value(self, index: int) -> float:
        position = index * self.stair
        if position < self.warmup:
            return min(1.0, (position + self.stair) / self.warmup)
        start = self.warmup if self.decay_from is None else self.decay_from
        span = self.length - start
        progress = min(1.0, max(0.0, position - start) / span) if span else 1.0
        return self.final + (1 - self.final) * SHAPES[self.shape](progress)


@dataclass(frozen=True)
class DecaySchedule:
    """EMA decay as a step function of samples: from `start` to `final` along a half cosine (BYOL, DINO).

    Over a step of B samples the decay is exp of the mean log decay of the reference stairs, times their number: the
    pointwise rho(s)**kappa. A reference decay of 1 gives 1, and 0 gives 0.

    Args:
        start: reference decay per update at the first stair, in [0, 1].
        final: reference decay per update at the end, in [start, 1].
        length: samples of the whole run.
        stair: samples of one reference update.

    Example:
        >>> DecaySchedule(0.99, 1.0, length=800, stair=8).half_life(0, 8)
        551.7...
    """

    start: float
    final: float
    length: float
    stair: float = 1.0

    def __post_init__(self) -> None:
        finite("ema decay", self.start, 0, 1)
        finite("ema final decay", self.final, self.start, 1)
        finite("schedule length", self.length, 0, open_low=True)
        finite("stair", self.stair, 0, open_low=True)

    def half_life(self, start: float, stop: float) -> float:
        """Return the half-life in samples that acts over the samples [start, stop).

        Args:
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            H in samples, from 0 to infinity.
        """
        return half_life_over(self._decay, start, stop, self.stair, stairs_of(self.length, self.stair))

    def _decay(self, index: int) -> float:
        progress = min(1.0, index * self.stair / self.length)
        return self.final - (self.final - self.start) * cosine(progress)


@dataclass(frozen=True)
class DecayCurve:
    """A decay per reference update that a curve moves: rho(s) = 1 - (1-rho)*share(s).

    Args:
        decay: rho per reference update where the share is 1, in [0, 1].
        share: curve of 1 - decay.
        stair: samples of one reference update; the share is read where it begins.

    Example:
        >>> from isobatch.curves.pieces import Piece, Pieces
        >>> to_one = Pieces((Piece(math.inf, "cosine", 1.0, 0.0),), length=800, stair=8)
        >>> DecayCurve(0.99, to_one, 8).half_life(0, 8)
        551.7...
    """

    decay: float
    share: Staircase | Pieces
    stair: float

    def half_life(self, start: float, stop: float) -> float:
        """Return the half-life in samples that acts over the samples [start, stop).

        Args:
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            H in samples, from 0 to infinity.
        """
        stairs = stairs_of(self.share.length, self.stair)
        return half_life_over(self.at, start, stop, self.stair, stairs)

    def at(self, index: int) -> float:
        """Return the reference decay of one of its updates.

        Args:
            index: of the update, from 0.

        Returns:
            rho in [0, 1].
        """
        return min(1.0, max(0.0, 1 - (1 - self.decay) * self.share.at(index * self.stair)))


def half_life_over(decay: Callable[[int], float], start: float, stop: float, stair: float, stairs: int) -> float:
    """Return the half-life over the samples [start, stop) of decays per stair: by their mean logarithm.

    Args:
        decay: of each stair, in [0, 1].
        start: samples seen before the step.
        stop: samples seen after it.
        stair: samples of one stair.
        stairs: how many there are.

    Returns:
        H in samples, from 0 to infinity.

    Example:
        >>> round(half_life_over(lambda index: 0.99, 0, 64, 8, 100), 1)
        551.7
    """

    def log_decay(index: int) -> float:
        rho = decay(index)
        return -math.inf if rho == 0 else math.log(rho)

    rate = -mean_over(log_decay, start, stop, stair, stairs) / stair
    return math.inf if rate == 0 else math.log(2) / rate
