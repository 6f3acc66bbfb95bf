"""AutoWU: grow the learning rate until the loss turns, then decay; decisions from numbers, on the sample clock."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from isobatch.curves.shapes import cosine, mean_over
from isobatch.errors import InputError
from isobatch.units import finite, whole

DECAYS = ("cosine", "hold")


@dataclass(frozen=True)
class Look:
    """What a Gaussian process says of the losses so far, once for each draw of the points that it saw.

    Args:
        chances: for each draw, the largest chance over the warm-up that the loss was lower there than it is now.
        places: for each draw, where the expected loss is lowest, as a share of the samples so far.
    """

    chances: tuple[float, ...]
    places: tuple[float, ...]


@dataclass(frozen=True)
class Growth:
    """How the rate grows and when it may turn; everything in samples.

    Args:
        length: samples of the whole run.
        stair: samples of one reference step, over which the rate is held.
        low: lowest rate over the highest one.
        warmup: longest warm-up as a share of the run, in (0, 1].
        every: samples between two tests.
        patience: tests in a row that must say that the loss has turned.
        confidence: of one vote, in (0.5, 1).
        decay: "cosine" to 0, or "hold" the peak and follow the cosine over the last `cooldown` of the run.
        cooldown: share of the run, for "hold".

    Raises:
        InputError: lr_min that is not below lr_max, patience that outlasts the warm-up, or a share out of range.
    """

    length: float
    stair: float
    low: float = 1e-5
    warmup: float = 0.5
    every: float = 0.0
    patience: int = 3
    confidence: float = 0.95
    decay: str = "cosine"
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        finite("length", self.length, 0, open_low=True)
        finite("stair", self.stair, 0, open_low=True)
        finite("warmup", self.warmup, 0, 1, open_low=True)
        finite("cooldown", self.cooldown, 0, 1)
        finite("confidence", self.confidence, 0.5, 1, open_low=True, open_high=True)
        whole("patience", self.patience)
        if not 0 < finite("lr_min/lr_max", self.low) < 1:
            raise InputError(f"lr_min/lr_max={self.low:g} must be in (0, 1): lr_min must lie below lr_max")
        if self.decay not in DECAYS:
            raise InputError(f"decay={self.decay!r} must be one of {', '.join(DECAYS)}")
        if self.patience * self.interval > self.end:
            raise InputError(
                f"patience={self.patience} tests, one every {self.interval:g} samples, outlast the warm-up of "
                f"{self.end:g} samples; lower patience, test more often or lengthen the run"
            )

    @property
    def end(self) -> float:
        """Samples of the longest warm-up."""
        return self.warmup * self.length

    @property
    def interval(self) -> float:
        """Samples between two tests, at least one reference step."""
        return max(self.every, self.stair)

    @property
    def overshoot(self) -> float:
        """Decades by which the rate grows while the tests are patient."""
        return -math.log10(self.low) * self.patience * self.interval / self.end


def interval_for(overshoot: float, low: float, patience: int, end: float) -> float:
    """Return the samples between two tests that bound the growth during the patience.

        overshoot = patience * every/end * log10(1/low)  decades

    Args:
        overshoot: bound in decades, positive.
        low: lowest rate over the highest one.
        patience: tests in a row.
        end: samples of the longest warm-up.

    Returns:
        Samples.

    Example:
        >>> interval_for(0.25, 1e-5, 3, 600)
        10.0
    """
    bound = finite("overshoot", overshoot, 0, open_low=True)
    return bound * end / (patience * -math.log10(low))


@final
class AutoWU:
    """The factor on the highest rate: exponential growth, a turn, and a decay from the rate where the loss was lowest.

        f(s) = low**(1 - s/W),  s < W;   peak*(1 + cos(pi*(s-t)/(L-t)))/2 after the turn at t

    The turn comes when the last `patience` looks each had a majority of chances above the confidence; the peak is the
    mean over a look's draws of the rate at the lowest expected loss. At W the decay starts from the rate reached.

    Args:
        growth: how it grows and turns.

    Example:
        >>> rate = AutoWU(Growth(length=1000, stair=1, low=1e-4, every=10))
        >>> rate.mean(0, 1), rate.mean(250, 251)
        (0.0001, 0.01)

    References:
        arXiv 2107.05855 (Kim et al.), and its official code.
    """

    def __init__(self, growth: Growth):
        self.growth = growth
        self.turned: float | None = None
        self.peak = 1.0
        self.place: float | None = None
        self._starts: list[float] = []
        self._losses: list[float] = []
        self._recent: deque[bool] = deque(maxlen=growth.patience)
        self._now, self._next = 0.0, growth.interval

    @property
    def length(self) -> float:
        """Samples of the whole run."""
        return self.growth.length

    @property
    def searching(self) -> bool:
        """Whether the rate still grows."""
        return self.turned is None

    @property
    def due(self) -> bool:
        """Whether a look is due."""
        return self.searching and self._now >= self._next * (1 - 1e-12)

    def mean(self, start: float, stop: float) -> float:
        """Return the mean factor over the samples [start, stop).

        Args:
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            The factor, in [0, 1].
        """
        stairs = max(1, math.ceil(self.growth.length / self.growth.stair))
        return mean_over(self._value, start, stop, self.growth.stair, stairs)

    def observe(self, loss: float, start: float, stop: float) -> None:
        """Take in the loss of an applied step; at the end of the longest warm-up the rate turns.

        Args:
            loss: mean over the global batch, the same on every rank; one that is not finite is left out of the looks.
            start: samples seen before the step.
            stop: samples seen after it.
        """
        if not self.searching:
            return
        self._starts.append(start)
        self._losses.append(loss)
        self._now = stop
        if stop >= self.growth.end:
            self._turn(self.mean(start, stop))

    def points(self) -> tuple[list[float], list[float]]:
        """Return what a look sees: places as shares of the samples so far, and the finite losses there.

        Returns:
            Places in [0, 1) and losses.
        """
        if all(map(math.isfinite, self._losses)):
            now = self._now
            return [at / now for at in self._starts], list(self._losses)
        kept = [(at / self._now, loss) for at, loss in zip(self._starts, self._losses, strict=True)
                if math.isfinite(loss)]  # fmt: skip
        return [at for at, _ in kept], [loss for _, loss in kept]

    def decide(self, look: Look) -> bool:
        """Take in a look, and turn where patience is reached.

        Args:
            look: of `points()`, when `due`.

        Returns:
            Whether the rate turned; `place` then holds the samples at which the loss was lowest.
        """
        growth = self.growth
        self._next = (math.floor(self._now / growth.interval * (1 + 1e-12)) + 1) * growth.interval
        votes = sum(chance > growth.confidence for chance in look.chances)
        self._recent.append(votes > len(look.chances) / 2)
        if sum(self._recent) < growth.patience:
            return False
        now = self._value(int(self._starts[-1] / growth.stair))
        rates = [growth.low * (now / growth.low) ** place for place in look.places]
        self.place = _mean(look.places) * self._now
        self._turn(_mean(rates))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed search needs, as plain values."""
        return {
            "turned": self.turned,
            "peak": self.peak,
            "place": self.place,
            "starts": list(self._starts),
            "losses": list(self._losses),
            "recent": list(self._recent),
            "now": self._now,
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what `state_dict` gave.
        """
        self.turned, self.peak, self.place = state["turned"], state["peak"], state["place"]
        self._starts, self._losses = list(state["starts"]), list(state["losses"])
        self._recent = deque(state["recent"], maxlen=self.growth.patience)
        self._now, self._next = state["now"], state["next"]

    def _turn(self, peak: float) -> None:
        self.turned, self.peak = self._now, peak
        self._starts, self._losses = [], []

    def _value(self, index: int) -> float:
        growth, at = self.growth, index * self.growth.stair
        if self.turned is None:
            return growth.low ** max(0.0, 1 - at / growth.end)
        begin = self.turned
        if growth.decay == "hold":
            begin = max(begin, (1 - growth.cooldown) * growth.length)
        span = growth.length - begin
        progress = min(1.0, max(0.0, at - begin) / span) if span > 0 else 0.0
        return self.peak * cosine(progress)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
