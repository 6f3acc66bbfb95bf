r"""The clock of an average: samples seen, what is pending, when it is applied, and the weights of that update.

An update that spans x half-lives keeps the share 2**-x of the average and gives the rest to the weights; a first-order
hold splits that rest between the weights at the two ends of the span.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, final

from isobatch.errors import InputError
from isobatch.units import finite, whole

AUTO_SPAN = 1 / 200


def counted(samples: object, name: str = "samples") -> int | float:
    """Return a number of samples as a plain Python number, so that it can go into JSON.

    Args:
        samples: positive, of any numeric type.
        name: what it is, for the message.

    Returns:
        An int where it is a whole type, else a float.

    Raises:
        InputError: not a number, not finite, or not positive.

    Example:
        >>> counted(8), counted(8.5)
        (8, 8.5)
    """
    if type(samples) is int and samples > 0:
        return samples
    size = finite(name, samples, 0, open_low=True)
    return int(samples) if isinstance(samples, Integral) else size


def checked_half_life(half_life: float) -> float:
    """Return a half-life in [0, inf], or refuse it.

    Args:
        half_life: in samples.

    Returns:
        The same as a float.

    Raises:
        InputError: negative, NaN or not a number.

    Example:
        >>> checked_half_life(float("inf"))
        inf
    """
    infinite = isinstance(half_life, Real) and half_life == math.inf
    return math.inf if infinite else finite("half_life", half_life, 0)


def refuse_replaced(seen: float, why: str) -> None:
    """Refuse an average that is loaded and that the next update would replace.

    Args:
        seen: samples that are said to stand behind it.
        why: it has no weight.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"seen={seen:g}: {why}, so the next update would replace the loaded average; give seen=, the samples of the "
        "run behind it (load_peer reckons them with batch_size)"
    )


def doublings(before: float, samples: float) -> float:
    """Return log2((before + samples) / before), to all digits also where a step is a billionth of what was before.

    Args:
        before: samples so far that count.
        samples: of the step.

    Returns:
        How often what counts was doubled; infinite where nothing counted yet.

    Example:
        >>> doublings(8, 8), doublings(0, 8)
        (1.0, inf)
    """
    if before <= 0:
        return math.inf
    if samples < before * 1e-6:
        return math.log1p(samples / before) / math.log(2)
    return math.log2((before + samples) / before)  # saved states go on to the bit


class Hold(NamedTuple):
    """zeta' = keep * zeta + before * theta_before + after * theta_after; the three sum to 1."""

    keep: float
    before: float
    after: float


def plain(halves: float) -> float:
    r"""Weight of the new weights in an update that spans `halves` half-lives.

    w = 1 - 2**(-x) = -expm1(-x ln 2), exact however close the decay is to 1.

    Args:
        halves: x, from 0 (nothing moves) to infinity (a copy).

    Returns:
        w in [0, 1].

    Raises:
        InputError: a negative or NaN span.

    Example:
        >>> plain(1.0)
        0.5

    References:
        arXiv 2307.13813 (rho ** kappa; here w = 1 - rho ** kappa).
    """
    if math.isnan(halves) or halves < 0:
        raise InputError(f"span={halves!r} half-lives must be in [0, inf]; samples and half-life must be positive")
    return -math.expm1(-halves * math.log(2))


def hold(halves: float, steps: float | None = None) -> Hold:
    r"""Weights of an update that takes the weights to move in a straight line between its two ends.

    With R = 2**(-x), rho = R**(1/k) and S = (1 - R) / (1 - rho): after = (k - rho S) / k, before = 1 - R - after. This
    is what k small post-step updates of a reference run give while the weights move at a constant rate. Without k the
    reference run is the continuous limit: after = 1 - (1 - R) / (x ln 2).

    Args:
        halves: x, half-lives that the update spans, from 0 to infinity.
        steps: k, reference steps that it spans (samples / reference batch); None for the continuous limit.

    Returns:
        The three weights. For k < 1 `before` is slightly negative: the reference run's own lag is longer.

    Raises:
        InputError: a negative or NaN span, or steps not positive.

    Example:
        >>> [round(w, 6) for w in hold(64 * -math.log2(0.99), steps=64)]
        [0.525596, 0.208246, 0.266157]

    References:
        Derived from the matrix form of arXiv 2307.13813 for a constant gradient.
    """
    total = plain(halves)
    if steps is not None and not steps > 0:
        raise InputError(f"steps={steps!r} must be > 0; give the samples of the update divided by the reference batch")
    if math.isinf(halves):
        return Hold(0.0, 0.0, 1.0)
    span = halves * math.log(2)
    one = 0.0 if steps is None else span / steps
    after = -math.expm1(_log_mean_decay(span) - _log_mean_decay(one) - one)
    return Hold(1.0 - total, total - after, after)


def _log_mean_decay(span: float) -> float:
    """log((1 - exp(-y)) / y), without cancellation for small y."""
    if span < 1e-2:
        return -span / 2 + span**2 / 24 - span**4 / 2880
    return math.log(-math.expm1(-span) / span)


@final
@dataclass(frozen=True)
class Cadence:
    """When pending samples are applied: every m calls, once a share of a half-life has passed, or every n samples.

    Args:
        calls: m, or None.
        samples: n, at whole multiples of n on the clock, or None; with neither, after 1/200 of the shortest half-life.
    """

    calls: int | None = None
    samples: float | None = None

    @staticmethod
    def parse(value: object) -> "Cadence":
        """Return the cadence that a user's word stands for.

        Args:
            value: m, "auto", or {"samples": n}.

        Returns:
            The cadence.

        Raises:
            InputError: anything else.

        Example:
            >>> Cadence.parse("auto").word()
            'auto'
        """
        if value == "auto":
            return Cadence()
        if isinstance(value, Mapping):
            return Cadence(samples=finite("cadence samples", value.get("samples"), 0, open_low=True))
        if isinstance(value, str):
            raise InputError(f'cadence={value!r} must be a whole number of updates or "auto"')
        return Cadence(calls=whole("cadence", value))

    def word(self) -> int | str | dict[str, float]:
        """Return the JSON-able form that parse() reads."""
        if self.calls is not None:
            return self.calls
        return "auto" if self.samples is None else {"samples": self.samples}


class Clock(NamedTuple):
    """State of the clock; every change makes a new one, so that a refused update leaves it as it was.

    Args:
        seen: samples that update() was told of.
        pending: of these, samples since the last application.
        spans: half-lives pending, one per average.
        ages: mean age in samples of the weights in each average, at the last application.
        calls: calls of update().
        waiting: calls since the last application.
        applied: applications since the averages started.
    """

    seen: float = 0
    pending: float = 0
    spans: tuple[float, ...] = (0.0,)
    ages: tuple[float, ...] = (0.0,)
    calls: int = 0
    waiting: int = 0
    applied: int = 0

    def plus(self, samples: float, spans: Sequence[float]) -> "Clock":
        """Return the clock after one more optimizer step.

        Args:
            samples: of the step.
            spans: half-lives that it spans, one per average.

        Returns:
            The clock with the step pending.
        """
        total = tuple(a + b for a, b in zip(self.spans, spans, strict=True))
        return Clock(
            self.seen + samples,
            self.pending + samples,
            total,
            self.ages,
            self.calls + 1,
            self.waiting + 1,
            self.applied,
        )

    def due(self, cadence: Cadence) -> bool:
        """Whether what is pending should be applied now.

        Args:
            cadence: of the average.

        Returns:
            True when it is time.
        """
        if cadence.calls is not None:
            return self.waiting >= cadence.calls
        if cadence.samples is None:
            return max(self.spans) >= AUTO_SPAN
        return math.floor(self.seen / cadence.samples) > math.floor((self.seen - self.pending) / cadence.samples)

    def settled(self, shares: Sequence[Hold]) -> "Clock":
        """Return the clock with nothing pending.

        Args:
            shares: weights with which the pending samples were applied.

        Returns:
            The clock, with the mean ages moved on.
        """
        late = self.pending
        ages = tuple(
            s.keep * (age + late) + s.before * late if s.keep else s.before * late
            for s, age in zip(shares, self.ages, strict=True)
        )
        return Clock(self.seen, 0, (0.0,) * len(ages), ages, self.calls, 0, self.applied + 1)

    def state(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "seen": self.seen,
            "pending": self.pending,
            "spans": [number_out(x) for x in self.spans],
            "ages": list(self.ages),
            "calls": self.calls,
            "waiting": self.waiting,
            "applied": self.applied,
        }

    @staticmethod
    def load(state: Mapping[str, Any]) -> "Clock":
        """Return the clock that state() described.

        Args:
            state: what state() returned.

        Returns:
            The clock.

        Raises:
            InputError: a field is missing or holds something else.
        """
        if not isinstance(state, Mapping):
            raise InputError(f"the clock in the state is {type(state).__name__}, not a mapping; the state is damaged")
        missing = sorted(set(Clock._fields) - state.keys())
        if missing:
            raise InputError(f"the clock in the state lacks {missing}; it was written by another version or damaged")
        fields: dict[str, Any] = {name: state[name] for name in Clock._fields}
        for name in ("spans", "ages"):
            if not isinstance(fields[name], list | tuple) or not fields[name]:
                raise InputError(f"clock {name}={fields[name]!r} must be a list of numbers; the state is damaged")
            fields[name] = tuple(_not_negative(name, number_in(x)) for x in fields[name])
        for name in ("calls", "waiting", "applied"):
            fields[name] = whole(f"clock {name}", fields[name], 0)
        return Clock(**{**fields, **{name: _not_negative(name, fields[name]) for name in ("seen", "pending")}})


def number_out(value: float) -> float | str:
    """Return a number that JSON can hold; infinity becomes "inf".

    Args:
        value: a number.

    Returns:
        The number, or the word.

    Example:
        >>> number_out(math.inf)
        'inf'
    """
    return "inf" if value == math.inf else value


def number_in(value: float | str) -> float:
    """Return the number that number_out() wrote.

    Args:
        value: a number or "inf".

    Returns:
        The number.

    Raises:
        InputError: anything else.

    Example:
        >>> number_in("inf")
        inf
    """
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f'{value!r} must be a number or "inf"; the state is damaged')
    return float(value)


def _not_negative(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise InputError(f"clock {name}={value!r} must be a number of at least 0; the state is damaged")
    return value
