"""[curves]: how lr, weight decay, momentum, the average's decay, or any other setting moves over a run."""

import math
import re
from collections.abc import Callable
from typing import Self

from pydantic import Field, StrictFloat, field_validator, model_validator

from isobatch.curves import Piece, Pieces, ways
from isobatch.errors import InputError
from isobatch.recipe.parts import Part

MOVED = ("lr", "weight_decay", "momentum", "ema")
"""The curves that the loop itself follows; others are read by whoever asks for them."""
_MISTAKES = {
    "learning_rate": "lr",
    "rate": "lr",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "weightdecay": "weight_decay",
    "mu": "momentum",
    "beta1": "momentum",
    "betas": "momentum",
    "ema_decay": "ema",
    "average": "ema",
}


class Segment(Part):
    """One segment of a curve; the factors are shares of the setting's own number.

    Of lr, weight_decay and named others the share is of the number itself; of momentum and ema it is of 1 - decay, so
    that to = 0.0 ends at a decay of 1.

    Args:
        span: such as "10 epochs" or "2000 steps"; only the last segment may leave it out: the rest of the run.
        by: hold, step, exp, power, inverse, or a shape of `isobatch.curves.SHAPES` (linear, minus-sqrt, cosine).
        start: factor at its left end; where the segment before it ends, or 1 for the first one, unless given.
        to: factor at its right end; of a step the factor from its left end on.
        p: exponent of power (2 unless given) or of inverse (0.5 unless given).
        every: span between two steps, such as "2.4 epochs", each of which multiplies by gamma.
        gamma: of those steps.
        scale: span in which inverse's denominator grows by 1; the samples before the segment unless given.
    """

    span: str | None = None
    by: str
    start: StrictFloat | None = Field(default=None, ge=0)
    to: StrictFloat | None = Field(default=None, ge=0)
    p: StrictFloat | None = Field(default=None, gt=0)
    every: str | None = None
    gamma: StrictFloat | None = Field(default=None, gt=0)
    scale: str | None = None

    @field_validator("by")
    @classmethod
    def _known(cls, by: str) -> str:
        if by not in ways():
            words = [repr(word) for word in ways()]
            raise ValueError(f"by={by!r} of a segment must be one of {', '.join(words[:-1])} or {words[-1]}")
        return by

    @model_validator(mode="after")
    def _fits(self) -> Self:
        takes = {
            "hold": ("start",),
            "step": ("to", "start", "every", "gamma"),
            "power": ("start", "to", "p"),
            "inverse": ("start", "p", "scale"),
        }.get(self.by, ("start", "to"))
        for name in ("start", "to", "p", "every", "gamma", "scale"):
            if getattr(self, name) is not None and name not in takes:
                words = ", ".join(takes)
                raise ValueError(f'{name}={getattr(self, name)!r} has no meaning in a segment by = "{self.by}", which '
                                 f"takes span, {words}; remove it")  # fmt: skip
        if self.by == "step":
            repeated = self.every is not None, self.gamma is not None
            if repeated[0] != repeated[1] or all(repeated) == (self.to is not None):
                raise ValueError('a segment by = "step" takes to = 0.1 (one step at its left end), or every and gamma '
                                 "together (a step each time)")  # fmt: skip
        elif "to" in takes and self.to is None:
            raise ValueError(f'a segment by = "{self.by}" needs to, the factor at its right end; add to = 0.0')
        return self


Curve = tuple[Segment, ...]
"""Segments one after the other; each is a share of the setting's own number."""


def pieces_of(name: str, segments: Curve, samples: Callable[[str, str], float], length: float, stair: float) -> Pieces:
    """Return a recipe's curve on the clock of samples.

    Args:
        name: of the curve, for messages.
        segments: as the recipe says them.
        samples: (quantity, key) -> samples.
        length: samples of the run.
        stair: samples of one reference step.

    Returns:
        The curve.

    Raises:
        InputError: no segment, a span missing before the last, one that is not positive, a fall to 0 by exp, a segment
            that goes nowhere, or a curve that does not cover the run.
    """
    if not segments:
        raise InputError(f'curves.{name}=[] has no segment; give one such as {{ by = "hold" }}, or remove it')
    found: list[Piece] = []
    level, passed = 1.0, 0.0
    for index, segment in enumerate(segments):
        key = f"curves.{name}.{index}"
        if segment.span is None and index + 1 < len(segments):
            raise InputError(f"{key}.span is missing; only the last segment may leave it out (the rest of the run)")
        span = math.inf if segment.span is None else _positive(samples, segment.span, f"{key}.span")
        piece = _piece(segment, key, samples, (span, level, passed))
        found.append(piece)
        passed += span
        if math.isinf(span):
            span = max(length - (passed if math.isfinite(passed) else sum(p.samples for p in found[:-1])), 1.0)
        level = Pieces.ends_at(piece._replace(samples=span))
    if passed < length * (1 - 1e-9):
        last = segments[-1]
        raise InputError(
            f"curves.{name} covers {passed:,.12g} of the {length:,.12g} samples of the run (its last span is "
            f'"{last.span}"); leave the last span out, or add a segment {{ by = "hold" }}'
        )
    return Pieces(tuple(found), length, stair)


def _piece(
    segment: Segment, key: str, samples: Callable[[str, str], float], where: tuple[float, float, float]
) -> Piece:
    """Return one segment on the clock of samples; `where`: its span, the level before it, the samples before it."""
    span, level, passed = where
    start = level if segment.start is None else segment.start
    to = start if segment.to is None else segment.to
    piece = Piece(span, segment.by, start, to)
    if segment.by not in ("hold", "step", "inverse") and start == to:
        raise InputError(
            f'{key} goes from {start:g} to {to:g} by = "{segment.by}": nowhere; give its start (a warm-up from 0 is '
            'start = 0.0), or by = "hold"'
        )
    if segment.by == "exp" and not (start and to):
        raise InputError(f"{key} goes from {start:g} to {to:g} by exp, which needs both positive; use a small one")
    if segment.by == "power":
        return piece._replace(p=segment.p or 2.0)
    if segment.by == "step" and segment.every is not None and segment.gamma is not None:
        return piece._replace(every=_positive(samples, segment.every, f"{key}.every"), gamma=segment.gamma)
    if segment.by == "inverse":
        if segment.scale is None and not passed:
            raise InputError(f'{key} by = "inverse" begins the curve, so it needs scale, such as "10000 steps"')
        scale = passed if segment.scale is None else _positive(samples, segment.scale, f"{key}.scale")
        return piece._replace(p=segment.p or 0.5, scale=scale)
    return piece


def _positive(samples: Callable[[str, str], float], quantity: str, key: str) -> float:
    found = samples(quantity, key)
    if not 0 < found < math.inf:
        raise InputError(f'{key}="{quantity}" must be positive and finite')
    return found


def known_name(name: str) -> None:
    """Refuse a curve whose name is no name, or one that is meant for a known curve.

    Args:
        name: of the curve.

    Raises:
        InputError: such a name; what was meant is named.

    Example:
        >>> known_name("teacher_temperature")
    """
    if name in MOVED:
        return
    meant = _MISTAKES.get(name.lower().replace("-", "_")) or next(
        (known for known in MOVED if name.lower().replace("-", "_") == known), None
    )
    if meant is not None:
        raise InputError(f"unknown key curves.{name}; did you mean curves.{meant}? the loop follows {', '.join(MOVED)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"curves.{name!r} must be a name of small letters, digits and _, such as teacher_temperature")


def in_samples(segments: Curve, samples: Callable[[str, str], float], unit: str) -> Curve:
    """Return a curve with its spans in samples, so that they survive another batch.

    Args:
        segments: as the recipe says them.
        samples: (quantity, key) -> samples.
        unit: of the clock.

    Returns:
        The same curve.
    """
    written = []
    for segment in segments:
        spans = {
            name: f"{samples(quantity, name):.12g} {unit}"
            for name in ("span", "every", "scale")
            if (quantity := getattr(segment, name)) is not None
        }
        written.append(segment.model_copy(update=spans))
    return tuple(written)
