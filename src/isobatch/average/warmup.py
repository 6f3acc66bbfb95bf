"""Warm-ups of an average on the sample clock: how the half-life grows while little has been seen."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, final

from isobatch.units import finite


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
