"""Warm-ups of an average: how the half-life grows while little has been seen.

Those on the sample clock are exact for any batch. Those of other libraries (StepWarmup) count optimizer steps, for runs
that must continue as they began there: counted in calls of update() their shape changes with the batch size; with
`batch_size` they count reference steps of that batch instead, and are then exact for any batch too.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from isobatch.curves.ramps import RAMPS
from isobatch.errors import InputError
from isobatch.units import finite, whole

Curve = Literal["tensorflow", "crowson", "exponential", "annealing"]


class Warmup(ABC):
    """A rule for the half-lives that an update spans at the start of a run."""

    @abstractmethod
    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return how many half-lives the update spans.

        Args:
            seen: samples before the update.
            samples: of the update, positive.
            half_life: H in samples after the warm-up.
            call: calls before this one; only the warm-ups counted in calls use it.

        Returns:
            x from 0 to infinity (a copy).
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings that warmup_from() reads."""

    def fitted(self, batch_size: float | None) -> "Warmup":
        """Return the warm-up for a decay that was stated at a batch.

        Args:
            batch_size: samples of one update of that decay; None where it is a half-life.

        Returns:
            The same, but for warm-ups whose curve is a decay of the same update.
        """
        return self


def constant_spans(samples: float, half_life: float) -> float:
    """Return samples / half-life, with 0 and infinity as limits.

    Args:
        samples: not negative.
        half_life: from 0 to infinity.

    Returns:
        Half-lives.

    Example:
        >>> constant_spans(30, 10)
        3.0
    """
    if samples == 0:
        return 0.0
    return math.inf if half_life == 0 else samples / half_life


@final
@dataclass(frozen=True)
class NoWarmup(Warmup):
    """The half-life is what it is from the first sample on."""

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return samples / half-life; see Warmup.spans().

        Args:
            seen: not used.
            samples: of the update.
            half_life: H in samples.
            call: not used.

        Returns:
            Half-lives.
        """
        return constant_spans(samples, half_life)

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return _settings(self)


@final
@dataclass(frozen=True)
class Ramp(Warmup):
    r"""The half-life is at most a fixed share of the samples seen: H(n) = min(H, ratio * n).

    The span of an update is the integral of dn / H(n) over its samples, so any sequence of batches gives the same
    average weights. With half_life=inf the half-life is that share of the progress for ever.

    Args:
        ratio: of the half-life to the samples seen, such as 0.09.

    Example:
        >>> round(Ramp(0.09).spans(1000, 1000, math.inf, 0), 6)  # ln(2) / 0.09
        7.701635

    References:
        arXiv 2312.02696 (EDM2 uses 0.09 at the left end of each batch; here exactly over it).
    """

    ratio: float = 0.09

    def __post_init__(self) -> None:
        finite("ratio", self.ratio, 0, open_low=True)

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return the half-lives that the update spans; see Warmup.spans().

        Args:
            seen: samples before the update.
            samples: of the update.
            half_life: H in samples after the ramp.
            call: not used.

        Returns:
            Half-lives; infinity for the first update, which copies.
        """
        bend = half_life / self.ratio
        return _bent(seen, samples, half_life, bend, 1 / self.ratio)

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return _settings(self)


@final
@dataclass(frozen=True)
class LinearRamp(Warmup):
    r"""The half-life grows in a straight line from 0 to H over the first samples: H(n) = H min(1, n / samples).

    Args:
        samples: length of the ramp; for a share of the run give the share times its length.

    Example:
        >>> LinearRamp(100).spans(100, 50, 25, 0)
        2.0
    """

    samples: float

    def __post_init__(self) -> None:
        finite("warm-up samples", self.samples, 0, open_low=True)

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return the half-lives that the update spans; see Warmup.spans().

        Args:
            seen: samples before the update.
            samples: of the update.
            half_life: H in samples after the ramp.
            call: not used.

        Returns:
            Half-lives; infinity for the first update, which copies.
        """
        slope = math.inf if half_life == 0 else self.samples / half_life
        return _bent(seen, samples, half_life, self.samples, slope)

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return _settings(self)


@final
@dataclass(frozen=True)
class CopyUntil(Warmup):
    """The average is a copy of the weights until so many samples were seen.

    Args:
        samples: seen before averaging begins.

    Example:
        >>> CopyUntil(100).spans(96, 8, 50, 0), CopyUntil(100).spans(104, 8, 50, 0)
        (inf, 0.16)
    """

    samples: float

    def __post_init__(self) -> None:
        finite("warm-up samples", self.samples, 0)

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return the half-lives that the update spans; see Warmup.spans().

        Args:
            seen: samples before the update.
            samples: of the update.
            half_life: H in samples.
            call: not used.

        Returns:
            Infinity while fewer samples were seen before the update, then samples / half-life.
        """
        return math.inf if seen < self.samples else constant_spans(samples, half_life)

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return _settings(self)


@final
@dataclass(frozen=True)
class Debias(Warmup):
    r"""The weights at the start do not count: the average starts at zero and is divided by what it has collected.

    The share kept by an update over [a, b] is r**(b - a) (1 - r**a) / (1 - r**b) with r = 2**(-1 / H), which has the
    same product for any sequence of batches; the first update copies. Adam corrects its moments in this way.

    Example:
        >>> round(2 ** -Debias().spans(100, 100, 100.0, 0), 6)  # (1 / 2) (1 - 1 / 2) / (1 - 1 / 4)
        0.333333
    """

    def spans(self, seen: float, samples: float, half_life: float, call: int) -> float:
        """Return the half-lives that the update spans; see Warmup.spans().

        Args:
            seen: samples before the update.
            samples: of the update.
            half_life: H in samples.
            call: not used.

        Returns:
            Half-lives; infinity for the first update, which copies.
        """
        steady = constant_spans(samples, half_life)
        if seen == 0 or half_life == 0:
            return math.inf
        if half_life == math.inf:
            return math.log2((seen + samples) / seen)
        rate = math.log(2) / half_life
        return steady + math.log2(math.expm1(-rate * (seen + samples)) / math.expm1(-rate * seen))

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""
        return _settings(self)


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
        every: steps of one application, for which the curve gives one decay (t at its last step); None takes it from
            the average, whose decay is stated for so many samples, over batch_size.

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
    every: int | None = 1

    def __post_init__(self) -> None:
        if self.curve not in RAMPS:
            raise InputError(f"curve={self.curve!r} must be tensorflow, crowson, exponential or annealing")
        finite("scale", self.scale, 0, open_low=True)
        finite("power", self.power, 0, open_low=True)
        finite("min_decay", self.min_decay, 0, 1)
        whole("first", self.first, 0)
        whole("copies", self.copies, 0)
        if self.every is not None:
            whole("every", self.every)
        if self.batch_size is not None:
            finite("batch_size", self.batch_size, 0, open_low=True)

    def fitted(self, batch_size: float | None) -> "StepWarmup":
        """Return the warm-up with the steps of one application known; see Warmup.fitted().

        Args:
            batch_size: samples for which the decay is stated.

        Returns:
            The same where they were known.
        """
        if self.every is not None:
            return self
        known = batch_size is not None and self.batch_size is not None
        return dataclasses.replace(self, every=max(1, round(batch_size / self.batch_size)) if known else 1)

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
        fields = {key: value for key, value in asdict(self).items() if (key, value) != ("every", 1)}
        return {"name": type(self).__name__, **fields}

    def _step(self, step: int, steady: float) -> float:
        """Half-lives of one step whose decay would be 2**-steady without warm-up."""
        every = self.every or 1
        if every > 1:
            last = step - step % every + every - 1
            return self._application(last, steady * every) / every
        return self._application(step, steady)

    def _application(self, step: int, steady: float) -> float:
        if step < self.copies:
            return math.inf
        t = step - self.copies + self.first
        curve = RAMPS[self.curve](t, self.scale, self.power)
        own = math.inf if curve == 0 else -math.log2(curve)
        span = steady + own if self.curve == "exponential" else max(steady, own)
        return min(span, -math.log2(self.min_decay)) if self.min_decay else span


def overlaps(start: float, stop: float, batch: float) -> list[tuple[int, float]]:
    """Return the reference steps that an interval of samples covers, each with the share of it that is covered.

    Reference step j spans the samples from j * batch to (j + 1) * batch.

    Args:
        start: first sample.
        stop: end of the interval, after start.
        batch: reference batch.

    Returns:
        Pairs (j, share), shares in (0, 1].

    Example:
        >>> overlaps(4, 16, 8)
        [(0, 0.5), (1, 1.0)]
    """
    found = []
    for step in range(math.floor(start / batch), math.ceil(stop / batch)):
        share = (min(stop, (step + 1) * batch) - max(start, step * batch)) / batch
        if share > 0:
            found.append((step, share))
    return found


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
    if not isinstance(settings, Mapping):
        raise InputError(f"warm-up {settings!r} must be a mapping with the name and the fields of a warm-up")
    fields = dict(settings)
    name = fields.pop("name", None)
    if name not in kinds:
        raise InputError(f"warm-up {name!r} is unknown; known are {sorted(kinds)}")
    return kinds[name](**fields)


def _bent(seen: float, samples: float, half_life: float, bend: float, slope: float) -> float:
    """Integral of slope / n up to bend and of 1 / half_life after it."""
    stop = seen + samples
    late = constant_spans(stop - max(seen, bend), half_life) if stop > bend else 0.0
    if seen >= bend:
        return late
    if seen == 0:
        return math.inf
    return slope * math.log(min(stop, bend) / seen) + late


def _settings(warmup: Any) -> dict[str, Any]:
    return {"name": type(warmup).__name__, **asdict(warmup)}
