"""Warm-ups of other libraries, which count optimizer steps: for runs that must continue as they began there.

Counted in calls of update() their shape changes with the batch size. With `batch_size` they count reference steps of
that batch instead, and are then exact for any batch: the mean log decay over the samples of an update.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from isobatch.average.momentum import overlaps
from isobatch.average.warmup import CopyUntil, Debias, LinearRamp, NoWarmup, Ramp, Warmup, constant_spans
from isobatch.errors import InputError
from isobatch.units import finite, whole

Curve = Literal["tensorflow", "crowson", "exponential", "annealing"]


@final
@dataclass(frozen=True)
class StepWarmup(Warmup):
    r"""A warm-up in steps t: min(rho, curve(t)), or for "exponential" rho * curve(t).

    tensorflow: (1 + t) / (10 + t). crowson: 1 - (1 + t / scale)**-power. exponential: 1 - exp(-t / scale).
    annealing: t / (scale + t). Not batch-invariant unless batch_size is given.

    Args:
        curve: one of the four.
        scale: inv_gamma, tau or gamma of the curve.
        power: of crowson.
        first: t of the first step that is not a copy.
        copies: steps at the start that copy the weights.
        min_decay: floor of the decay.
        batch_size: reference batch whose steps are counted; None counts calls.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(2 ** -StepWarmup("tensorflow", first=1).spans(0, 8, 1e6, call=0), 6)  # (1 + 1) / (10 + 1)
        0.181818
    """

    curve: Curve
    scale: float = 1.0
    power: float = 2 / 3
    first: int = 0
    copies: int = 0
    min_decay: float = 0.0
    batch_size: float | None = None

    def __post_init__(self) -> None:
        if self.curve not in ("tensorflow", "crowson", "exponential", "annealing"):
            raise InputError(f"curve={self.curve!r} must be tensorflow, crowson, exponential or annealing")
        finite("scale", self.scale, 0, open_low=True)
        finite("power", self.power, 0, open_low=True)
        finite("min_decay", self.min_decay, 0, 1)
        whole("first", self.first, 0)
        whole("copies", self.copies, 0)
        if self.batch_size is not None:
            finite("batch_size", self.batch_size, 0, open_low=True)

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return the half-lives that the update spans; see Warmup.spans().

        Args:
            seen: samples before the update.
            samples: of the update.
            half_life: H in samples after the warm-up.
            call: calls before this one.

        Returns:
            Half-lives.
        """
        if self.batch_size is None:
            return self._step(call, constant_spans(samples, half_life))
        steady = constant_spans(self.batch_size, half_life)
        if self._step(math.floor(seen / self.batch_size), steady) == steady:
            return constant_spans(samples, half_life)
        steps = overlaps(seen, seen + samples, self.batch_size)
        return sum(share * self._step(step, steady) for step, share in steps)

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return {"name": type(self).__name__, **asdict(self)}

    def _step(self, step: int, steady: float) -> float:
        """Half-lives of one step whose decay would be 2**-steady without warm-up."""
        if step < self.copies:
            return math.inf
        t = step - self.copies + self.first
        curve = {
            "tensorflow": (1 + t) / (10 + t),
            "crowson": 1 - (1 + t / self.scale) ** -self.power,
            "exponential": -math.expm1(-t / self.scale),
            "annealing": t / (self.scale + t),
        }[self.curve]
        own = math.inf if curve == 0 else -math.log2(curve)
        span = steady + own if self.curve == "exponential" else max(steady, own)
        return min(span, -math.log2(self.min_decay)) if self.min_decay else span


def warmup_from(settings: Mapping[str, Any]) -> Warmup:
    """Return the warm-up that settings() described.

    Args:
        settings: "name" and the fields.

    Returns:
        The warm-up.

    Raises:
        InputError: an unknown name.

    Example:
        >>> warmup_from({"name": "Ramp", "ratio": 0.05})
        Ramp(ratio=0.05)
    """
    kinds: dict[str, type[Warmup]] = {
        k.__name__: k for k in (NoWarmup, Ramp, LinearRamp, CopyUntil, Debias, StepWarmup)
    }
    fields = dict(settings)
    name = fields.pop("name")
    if name not in kinds:
        raise InputError(f"warm-up {name!r} is unknown; known are {sorted(kinds)}")
    return kinds[name](**fields)
