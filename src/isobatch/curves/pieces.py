"""A curve made of pieces: warm-up, hold, steps, decays, one after the other, each a function of its progress."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from isobatch.curves.shapes import SHAPES, Stairs, stairs_of
from isobatch.errors import InputError
from isobatch.units import finite


class Piece(NamedTuple):
    """One piece of a curve on the clock of samples.

    Args:
        samples: that it spans, positive; infinity for the rest of the run.
        by: one of `ways()`.
        start: factor at its left end.
        to: factor at its right end; of step without `every`, the factor throughout.
        p: exponent of power and inverse.
        every: samples between two steps; infinity for one step at its left end.
        gamma: factor of each of those steps.
        scale: samples that inverse takes for one unit of its denominator.
    """

    samples: float
    by: str
    start: float
    to: float
    p: float = 1.0
    every: float = math.inf
    gamma: float = 1.0
    scale: float = 1.0


def _shaped(piece: Piece, passed: float) -> float:
    left = SHAPES[piece.by](passed / piece.samples)
    return piece.start * left + piece.to * (1 - left)


def _hold(piece: Piece, passed: float) -> float:
    return piece.start


def _step(piece: Piece, passed: float) -> float:
    if math.isinf(piece.every):
        return piece.to
    # a step that falls on the left end of a stair counts, whatever its rounding
    return piece.start * piece.gamma ** math.floor(passed / piece.every + 1e-9)


def _exp(piece: Piece, passed: float) -> float:
    return piece.start * (piece.to / piece.start) ** (passed / piece.samples)


def _power(piece: Piece, passed: float) -> float:
    done = passed / piece.samples
    up = done if piece.to > piece.start else 1 - done
    low, high = sorted((piece.start, piece.to))
    return low + (high - low) * up**piece.p


def _inverse(piece: Piece, passed: float) -> float:
    return piece.start * (1 + passed / piece.scale) ** -piece.p


WAYS: dict[str, Callable[[Piece, float], float]] = {
    "hold": _hold,
    "step": _step,
    "exp": _exp,
    "power": _power,
    "inverse": _inverse,
}
"""How a piece runs, beside the shapes of `SHAPES` -> its factor after so many samples of it.

hold: start. step: `to` throughout, or start*gamma**k after k times `every` samples. exp: start*(to/start)**progress.
power: the distance from its lower end goes as a power p of the progress from there. inverse:
start*(1+samples/scale)**-p. A shape: start*left + to*(1-left), left of the progress.
"""


def ways() -> tuple[str, ...]:
    """Return the words for a piece: the shapes that fall, and `WAYS`."""
    return (*(name for name in SHAPES if name != "constant"), *WAYS)


def factor(piece: Piece, passed: float) -> float:
    """Return the factor of a piece after so many samples of it.

    Args:
        piece: the piece.
        passed: samples of it, at most all.

    Returns:
        The factor.

    Raises:
        InputError: a factor beyond any number.

    Example:
        >>> factor(Piece(100, "power", 0.0, 1.0, p=2.0), 50)
        0.25
    """
    try:
        found = WAYS.get(piece.by, _shaped)(piece, passed)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InputError(
            f"a curve by {piece.by} grows beyond any number within {passed:g} samples; use a smaller gamma"
        )
    return found


@dataclass(frozen=True)
class Pieces(Stairs):
    """Factor on a setting as a step function of samples, made of pieces; with the face of a `Staircase`.

    Stair k covers the samples [k*stair, (k+1)*stair) and holds the value at its left end; a fall or rise that begins
    between two stairs is first seen at the next one. Beyond the run the last stair holds.

    Args:
        pieces: from the first sample on; together they cover the run.
        length: samples of the whole run, positive.
        stair: samples of one reference step, positive.

    Example:
        >>> up = Piece(80, "linear", 0.1, 1.0)
        >>> lr = Pieces((up, Piece(math.inf, "cosine", 1.0, 0.0)), length=800, stair=8)
        >>> lr.at(0), round(lr.mean(0, 80), 6), lr.at(80)
        (0.1, 0.505, 1.0)
    """

    pieces: tuple[Piece, ...]
    length: float
    stair: float = 1.0
    _ends: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())
    _stairs: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        finite("schedule length", self.length, 0, open_low=True)
        finite("stair", self.stair, 0, open_low=True)
        ends = tuple(accumulate(piece.samples for piece in self.pieces))
        last = self.pieces[-1]
        if math.isinf(last.samples):
            before = ends[-2] if len(ends) > 1 else 0.0
            rest = max(self.length - before, 0.0)
            object.__setattr__(self, "pieces", (*self.pieces[:-1], last._replace(samples=rest or 1.0)))
            ends = (*ends[:-1], before + (rest or 1.0))
        if ends[-1] < self.length * (1 - 1e-9):
            raise InputError(
                f"a curve of {ends[-1]:g} samples does not cover the run of {self.length:g}; add a last piece that "
                'holds: { by = "hold" }'
            )
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_stairs", stairs_of(self.length, self.stair))

    @property
    def shape(self) -> str:
        """How the pieces run, one after the other."""
        return ", ".join(piece.by for piece in self.pieces)

    @property
    def warmup(self) -> float:
        """Samples of the first piece where it rises, else 0."""
        first = self.pieces[0]
        return first.samples if first.by not in ("hold", "step") and first.to > first.start else 0.0

    @property
    def decay_from(self) -> float | None:
        """Samples at which a curve first falls; None where it never does."""
        begins = 0.0
        for piece in self.pieces:
            if self.ends_at(piece) < piece.start or (piece.by == "step" and piece.to < piece.start):
                return begins
            begins += piece.samples
        return None

    @property
    def final(self) -> float:
        """Factor at the end of the run, as the last piece tends to it."""
        begins = self._ends[-2] if len(self._ends) > 1 else 0.0
        return factor(self.pieces[-1], min(self.length, self._ends[-1]) - begins)

    @staticmethod
    def ends_at(piece: Piece) -> float:
        """Return the factor to which a piece runs at its right end.

        Args:
            piece: the piece.

        Returns:
            The factor.
        """
        return factor(piece, piece.samples)

    def _grid(self) -> tuple[float, int]:
        return self.stair, self._stairs

    def _value(self, index: int) -> float:
        position = index * self.stair
        # a stair that begins where a piece ends, to rounding, belongs to the next one
        place = min(bisect_right(self._ends, position * (1 + 1e-9)), len(self.pieces) - 1)
        passed = position - (self._ends[place - 1] if place else 0.0)
        piece = self.pieces[place]
        return factor(piece, min(max(passed, 0.0), piece.samples))
