"""The clock of an average: samples seen, what is pending, and when the pending is applied."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from isobatch.average.weights import Hold
from isobatch.errors import InputError
from isobatch.units import finite, whole

AUTO_SPAN = 1 / 200


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
            InputError: a field is missing.
        """
        missing = sorted(set(Clock._fields) - state.keys())
        if missing:
            raise InputError(f"the clock in the state lacks {missing}; it was written by another version or damaged")
        fields: dict[str, Any] = {name: state[name] for name in Clock._fields}
        fields["spans"], fields["ages"] = tuple(number_in(x) for x in state["spans"]), tuple(state["ages"])
        return Clock(**fields)


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

    Example:
        >>> number_in("inf")
        inf
    """
    return math.inf if value == "inf" else float(value)
