"""Progress over all workers: runs done, running, waiting, lost, rate and time left."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class State:
    """Where the calls of a session stand.

    Args:
        width: calls that run at once.
        total: calls that were asked for.
        done: calls that have ended.
        failed: those of them that stopped early, or were given up.
        lost: times that a worker was lost.
        began: when, in seconds of a clock that only rises.
    """

    width: int
    total: int = 0
    done: int = 0
    failed: int = 0
    lost: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> int:
        """Calls that run now, as far as the width says."""
        return min(self.width, self.total - self.done)

    @property
    def waiting(self) -> int:
        """Calls that wait for a worker."""
        return self.total - self.done - self.running

    def __str__(self) -> str:
        """Say it in a line.

        Returns:
            Counts, the rate, and the time left.

        Example:
            >>> print(State(width=4, total=10, began=time.monotonic()))
            0 of 10 runs, 4 running, 6 waiting
        """
        parts = [f"{self.done} of {self.total} runs", f"{self.running} running", f"{self.waiting} waiting"]
        spent = time.monotonic() - self.began
        if self.done and spent > 0:
            minutes = spent / self.done * (self.total - self.done) / 60
            parts += [f"{60 * self.done / spent:.3g} a minute", f"about {minutes:.1f} minutes left"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.lost:
            parts.append(f"workers lost {self.lost} times")
        return ", ".join(parts)


_WATCH: ContextVar[Callable[[State], None] | None] = ContextVar("watch", default=None)


@contextmanager
def watching(on_state: Callable[[State], None]) -> Generator[None]:
    """Be told of every change while the block trains.

    Args:
        on_state: called in this thread with the state.

    Yields:
        None.

    Example:
        >>> with watching(print):
        ...     report(State(width=1, total=2))
        0 of 2 runs, 1 running, 1 waiting
    """
    token = _WATCH.set(on_state)
    try:
        yield
    finally:
        _WATCH.reset(token)


def report(state: State) -> None:
    """Tell who watches.

    Args:
        state: of a session.
    """
    watch = _WATCH.get()
    if watch is not None:
        watch(state)
