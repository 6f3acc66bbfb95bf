"""The shapes of a curve, each one function of the progress of its decay, and the one mean over a step's samples."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from isobatch.errors import InputError

Shape = Callable[[float], float]
SHAPES: dict[str, Shape] = {}
"""Name -> how much of the fall from 1 to the final factor is left, from progress 0 to 1."""


def shape(function: Shape) -> Shape:
    """Enter a function into `SHAPES` under its own name, with "-" for "_".

    Args:
        function: progress in [0, 1] -> what is left of the fall, 1 at first.

    Returns:
        The function.
    """
    SHAPES[str(getattr(function, "__name__", function)).replace("_", "-")] = function
    return function


@shape
def constant(progress: float) -> float:
    """No fall at all."""
    return 1.0


@shape
def linear(progress: float) -> float:
    """A straight line down."""
    return 1 - progress


@shape
def minus_sqrt(progress: float) -> float:
    """One minus the square root of the progress: steep at first (the cooldown of warm-up, stable, decay)."""
    return 1 - math.sqrt(progress)


@shape
def cosine(progress: float) -> float:
    """Half a cosine down."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def shape_of(name: str, key: str = "schedule.shape", *, beside: tuple[str, ...] = ()) -> str:
    """Return the name of a shape, or refuse it.

    Args:
        name: what was asked for.
        key: the setting, for the message.
        beside: other words that the setting takes.

    Returns:
        The name.

    Raises:
        InputError: no such shape; those there are are named.

    Example:
        >>> shape_of("cosine")
        'cosine'
    """
    known = (*SHAPES, *beside)
    if name not in known:
        words = [repr(word) for word in known]
        raise InputError(f"{key}={name!r} must be one of {', '.join(words[:-1])} or {words[-1]}")
    return name


def mean_over(value: Callable[[int], float], start: float, stop: float, stair: float, stairs: int) -> float:
    """Return the mean of a step function over the samples [start, stop).

    Args:
        value: of each stair.
        start: samples seen before the step.
        stop: samples seen after it, greater than start.
        stair: samples of one stair.
        stairs: how many there are; the last value holds beyond them.

    Returns:
        The mean, weighted by overlap.

    Raises:
        InputError: a step without samples.

    Example:
        >>> mean_over(float, 4, 16, stair=8, stairs=100)
        0.666...
    """
    if not stop > start >= 0:
        raise InputError(f"the step [{start:g}, {stop:g}) must hold samples: stop > start >= 0")
    first, last = int(start / stair), math.ceil(stop / stair) - 1
    if first >= last:
        return value(min(first, stairs - 1))
    clipped = partial(min, stairs - 1)
    total = (first + 1) * stair - start
    weighted = total * value(clipped(first))
    for index in range(first + 1, last):
        weighted += stair * value(clipped(index))
    tail = stop - last * stair
    return (weighted + tail * value(clipped(last))) / (stop - start)


def stairs_of(length: float, stair: float) -> int:
    """Return how many stairs cover a run, at least one.

    Args:
        length: samples of the run, positive.
        stair: samples of one stair, positive.

    Returns:
        Their number.

    Raises:
        InputError: more than can be counted.

    Example:
        >>> stairs_of(100, 8)
        13
    """
    stairs = length / stair
    if not math.isfinite(stairs):
        raise InputError(f"schedule.stair={stair:g} samples is too small for a run of {length:g}; give a larger one")
    return max(1, math.ceil(stairs))


class Stairs(ABC):
    """A step function of samples: stair k covers [k*stair, (k+1)*stair); beyond the run the last stair holds.

    A subclass says how long a stair is and how many there are, in `_grid()`, and what each holds, in `_value(index)`.
    """

    def at(self, seen: float) -> float:
        """Return the reference factor of the stair that holds sample `seen`.

        Args:
            seen: samples of applied updates, not negative.

        Returns:
            The factor.
        """
        stair, stairs = self._grid()
        return self._value(min(int(seen / stair), stairs - 1))

    def mean(self, start: float, stop: float) -> float:
        """Return the mean factor over the samples [start, stop).

        Args:
            start: samples seen before the step.
            stop: samples seen after it, greater than start.

        Returns:
            The mean of the stairs, weighted by their overlap.
        """
        return mean_over(self._value, start, stop, *self._grid())

    @abstractmethod
    def _grid(self) -> tuple[float, int]: ...

    @abstractmethod
    def _value(self, index: int) -> float: ...
