"""What a measurement says: a value with its interval, or why there is none and what it would take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from isobatch.markup import panel
from isobatch.noise.statistic import Moments, Spread, noise_scale, ratio_interval
from isobatch.student import student_t

FEWEST = 12
WIDEST = 4.0
ALIKE = (
    "all parts of a step had one and the same gradient, so that there is no noise to be seen: ranks or micro-batches "
    "read the same samples (no DistributedSampler, no shard of the data, one seed for all workers), or the data set is "
    "one batch"
)
_ROUNDING = 1e-7
"""A tr(Sigma) below this share of |G|^2 of a step's samples is rounding."""


class Identification(StrEnum):
    """Whether a noise scale may be used."""

    IDENTIFIED = "identified"
    NOT_IDENTIFIED = "not identified"
    UNDEFINED = "undefined"


@dataclass(frozen=True)
class NoiseEstimate:
    """A gradient noise scale with its uncertainty; `str()` gives the sentence.

    Args:
        value: tr(Sigma)/|G|^2 in samples; None where undefined, or where |G|^2 came out negative.
        low: lower end of the interval.
        high: upper end, infinite where |G|^2 cannot be told from 0.
        verdict: "identified" when the interval is finite and high/low at most 4.
        sentence: the same in words.
        needed_samples: about how many more samples on the clock would identify it; None when identified or undefined.
        gradient_squared: |G|^2, averaged and unclamped.
        trace: tr(Sigma), averaged and unclamped.
        level: coverage of the interval.
        measurements: steps (or chunks, in a one-shot measurement) behind it.
        excluded: measurements left out because something was not finite, or not a gradient of this step.
        reason: why it is undefined; empty otherwise.
        caveats: what a reader must know beside it.
        parts: the same by layer or parameter group, where asked for.
    """

    value: float | None
    low: float
    high: float
    verdict: Identification
    sentence: str
    needed_samples: float | None
    gradient_squared: float
    trace: float
    level: float
    measurements: int
    excluded: int = 0
    reason: str = ""
    caveats: tuple[str, ...] = ()
    parts: Mapping[str, "NoiseEstimate"] = field(default_factory=lambda: MappingProxyType({}))

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        rows = [["part", "noise scale", "low", "high", "verdict"]]
        for name, one in {"": self, **self.parts}.items():
            value = "-" if one.value is None else f"{one.value:,.4g}"
            rows.append([name or "all", value, f"{one.low:,.4g}", f"{one.high:,.4g}", str(one.verdict)])
        return panel(self.sentence, rows, self.caveats, badge=str(self.verdict))

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values; what is not finite becomes None."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["verdict"], out["caveats"] = str(self.verdict), list(self.caveats)
        for name in ("high", "gradient_squared", "trace", "needed_samples"):
            out[name] = out[name] if out[name] is not None and math.isfinite(out[name]) else None
        out["parts"] = {name: part.to_json() for name, part in self.parts.items()}
        return out


def judge(
    found: Moments,
    spread: Spread,
    *,
    span: float,
    measurements: int,
    longest: float = math.inf,
    level: float = 0.95,
    unit: str = "samples",
    excluded: int = 0,
    fewest: int = FEWEST,
    why_excluded: str = "something in them was not finite",
) -> NoiseEstimate:
    r"""Return the verdict on averaged estimates.

    Identified: at least `fewest` measurements, and a finite interval with high/low <= 4. Otherwise the samples needed
    follow from the relative error, which falls with the square root of the samples.

    Args:
        found: averaged |G|^2 and tr(Sigma).
        spread: their covariance.
        span: samples on the clock behind the average.
        measurements: how many entered it.
        longest: samples that the averaging window can hold at most.
        level: coverage of the interval.
        unit: what the clock counts.
        excluded: how many measurements were left out.
        fewest: measurements below which nothing is identified.
        why_excluded: in words, where all of them were.

    Returns:
        The estimate.

    Example:
        >>> import numpy as np
        >>> known = Spread(np.array([[1.0, 0.0], [0.0, 0.0001]]), 1e9)
        >>> judge(Moments(1.0, 100.0), known, span=6400, measurements=100).sentence
        'noise scale 100 samples (95% interval 97.3 to 103), from 100 measurements'
    """
    if measurements == 0:
        lost = f"all {excluded} measurements were excluded: {why_excluded}"
        return undefined(lost if excluded else "nothing has been measured yet", excluded=excluded, level=level)
    if found.trace == 0 and found.gradient_squared == 0:
        return undefined("every gradient was zero", excluded=excluded, level=level, measurements=measurements)
    if abs(found.trace) <= _ROUNDING * found.gradient_squared * span / measurements:
        return undefined(ALIKE, excluded=excluded, level=level, measurements=measurements)
    value = noise_scale(found)
    low, high = ratio_interval(found.trace, found.gradient_squared, spread, level)
    enough = measurements >= fewest and spread.freedom > 0
    identified = enough and value is not None and low > 0 and high <= WIDEST * low
    about = f"{_plain(low)} to {_plain(high)}" if math.isfinite(high) else f"at least {_plain(low)}"
    interval = f"{level * 100:g}% interval {about}"
    needed = None
    if identified:
        sentence = f"noise scale {_plain(value)} {unit} ({interval}), from {measurements} measurements"
    else:
        needed = _needed(found, spread, span, measurements, level, fewest)
        sentence = f"noise scale not yet identified ({interval} {unit}): needs about {_plain(needed)} more {unit}"
        if span + needed > longest:
            sentence += f", more than the window of {_plain(longest)} holds; raise half_life"
    if excluded:
        sentence += f"; {excluded} measurement{'s' if excluded > 1 else ''} excluded"
    return NoiseEstimate(
        value=value,
        low=low,
        high=high,
        verdict=Identification.IDENTIFIED if identified else Identification.NOT_IDENTIFIED,
        sentence=sentence,
        needed_samples=needed,
        gradient_squared=found.gradient_squared,
        trace=found.trace,
        level=level,
        measurements=measurements,
        excluded=excluded,
    )


def undefined(reason: str, *, excluded: int = 0, level: float = 0.95, measurements: int = 0) -> NoiseEstimate:
    """Return the estimate that there is none.

    Args:
        reason: why.
        excluded: how many measurements were left out.
        level: coverage that was asked for.
        measurements: how many were kept.

    Returns:
        An estimate without a value.

    Example:
        >>> print(undefined("only one chunk a step"))
        noise scale undefined: only one chunk a step
    """
    return NoiseEstimate(
        value=None,
        low=0.0,
        high=math.inf,
        verdict=Identification.UNDEFINED,
        sentence=f"noise scale undefined: {reason}",
        needed_samples=None,
        gradient_squared=math.nan if measurements == 0 else 0.0,
        trace=math.nan if measurements == 0 else 0.0,
        level=level,
        measurements=measurements,
        excluded=excluded,
        reason=reason,
    )


def _needed(
    found: Moments, spread: Spread, span: float, measurements: int, level: float, fewest: int = FEWEST
) -> float:
    """Return how many more samples bring the interval's half-width in log scale to half of log 4."""
    least = span * max(fewest / measurements - 1, 0.0)
    if spread.freedom <= 0:
        return max(least, span)
    v_ss, v_sg, v_gg = (float(v) for v in spread.covariance[[0, 0, 1], [0, 1, 1]])
    g = max(found.gradient_squared, math.sqrt(v_gg))
    s = max(found.trace, math.sqrt(v_ss))
    if not (g > 0 and s > 0):
        return max(least, span)
    relative = max(v_ss / s**2 - 2 * v_sg / (s * g) + v_gg / g**2, 0.0)
    times = relative * student_t(max(spread.freedom, 1.0), (1 + level) / 2) ** 2 / (math.log(WIDEST) / 2) ** 2
    return max(least, span * (times - 1), span / measurements)


def _plain(number: float | None) -> str:
    """Write a number with three digits that count, and no exponent."""
    if number is None or not math.isfinite(number):
        return "unknown" if number is None else "infinity"
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(number)))
    return f"{round(number, digits):,.{max(digits, 0)}f}"
