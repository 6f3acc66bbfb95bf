"""Clock and tensors together: one step of any average that is a linear recursion in half-lives."""

import math
from collections.abc import Sequence
from typing import final

from isobatch.average.clock import Cadence, Clock
from isobatch.average.layout import Stacks
from isobatch.average.teacher import Teacher
from isobatch.average.tracks import Tracks
from isobatch.average.watch import Watch
from isobatch.average.weights import Hold, hold, plain


@final
class Engine:
    """Advances K averages of one model on one clock.

    Args:
        tracks: the averages.
        count: K.
        cadence: when pending samples are applied.
        holds: whether the update is a first-order hold.
        batch_size: reference batch of the hold; None for the continuous limit.
    """

    def __init__(
        self, tracks: Tracks, count: int, cadence: Cadence, *, holds: bool = False, batch_size: float | None = None
    ):
        self.tracks, self.cadence = tracks, cadence
        self.holds, self.batch_size = holds, batch_size
        self.watch = Watch()
        self.clock = Clock(spans=(0.0,) * count, ages=(0.0,) * count)
        self.last: tuple[Hold, ...] = ()
        self.half_lives: tuple[float, ...] = ()
        self.teachers: dict[tuple[str, float | None], tuple[dict[str, Stacks], Teacher]] = {}

    def restart(self) -> None:
        """Start the averages again at the present weights; the count of samples goes on."""
        self.tracks.reset()
        zeros = (0.0,) * len(self.clock.spans)
        self.clock = self.clock._replace(pending=0, spans=zeros, ages=zeros, waiting=0, applied=0)
        self.last, self.half_lives = (), ()

    def advance(self, samples: float, spans: Sequence[float]) -> bool:
        """Take in one optimizer step.

        Args:
            samples: of the step, positive.
            spans: half-lives that it spans, one per average.

        Returns:
            Whether the averages moved; otherwise the step is pending.
        """
        self.tracks.refresh(quick=True)
        clock = self.clock.plus(samples, spans)
        due = clock.due(self.cadence)
        self.clock = self._applied(clock) if due else clock
        self.watch.note(self.tracks.probes())
        return due

    def flush(self) -> None:
        """Apply what is pending now."""
        if self.clock.waiting:
            self.tracks.refresh()
            self.clock = self._applied(self.clock)

    def _applied(self, clock: Clock) -> Clock:
        shares = [self._share(span, clock.pending) for span in clock.spans]
        self.tracks.read(clock.seen)
        self.tracks.move(shares)
        self.last = tuple(shares)
        self.half_lives = tuple(clock.pending / span if span else math.inf for span in clock.spans)
        return clock.settled(shares)

    def _share(self, span: float, samples: float) -> Hold:
        if self.holds:
            return hold(span, None if self.batch_size is None else samples / self.batch_size)
        share = plain(span)
        return Hold(1 - share, 0.0, share)
