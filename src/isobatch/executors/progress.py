"""Progress over all workers: runs done, running, waiting, lost, rate and time left."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TextIO

_SILENT = 60.0
"""Seconds between lines of progress in a log file."""


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
    began: float = field(default_factory=lambda: time.monotonic())

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


class Words:
    """Writes words that change: in place where people look on, a line a minute in a file.

    Args:
        file: a terminal, a notebook's output or a log; standard error unless given.
    """

    def __init__(self, file: TextIO | None = None):
        self._file = file or sys.stderr
        self._live = self._file.isatty() or type(self._file).__module__.startswith("ipykernel")
        self._said, self._length = time.monotonic(), 0

    def __call__(self, text: str) -> None:
        """Write them.

        Args:
            text: in one line.
        """
        now = time.monotonic()
        if self._live:
            self._file.write("\r" + text.ljust(self._length))
            self._length = len(text)
        elif now - self._said > _SILENT:
            self._said = now
            self._file.write(f"isobatch: {text}\n")
        else:
            return
        self._file.flush()

    def clear(self) -> None:
        """Leave the line empty where they were written in place."""
        if self._length:
            self._file.write("\r" + " " * self._length + "\r")
            self._file.flush()
            self._length = 0


class Line:
    """Writes the state over sessions that follow each other: in place where people look on, a line a minute in a file.

    Args:
        file: a terminal, a notebook's output or a log; standard error unless given.
        known: runs that are to be made in all; None where that shows only as they are asked for.

    Example:
        >>> with watching(Line()):
        ...     pass
    """

    def __init__(self, file: TextIO | None = None, known: int | None = None):
        self._words, self._last = Words(file), State(width=1)
        self.start(known)

    def start(self, known: int | None) -> None:
        """Count from here on.

        Args:
            known: as for a new line.
        """
        self._known, self._past = known, State(width=1, done=-self._last.done, failed=-self._last.failed)

    def over(self, state: State, found: int = 0) -> State:
        """Return the state of all sessions.

        Args:
            state: of the one that goes on.
            found: runs of those that are known which were there before.

        Returns:
            Their sum.
        """
        past, last = self._past, self._last
        if state is not last:
            past.done, past.failed, past.lost = past.done + last.done, past.failed + last.failed, past.lost + last.lost
            self._last = state
        total = max(past.done + state.total, (self._known or 0) - found)
        done, failed, lost = past.done + state.done, past.failed + state.failed, past.lost + state.lost
        return State(state.running, total, done, failed, lost, past.began)

    def __call__(self, state: State, found: int = 0) -> None:
        """Write it.

        Args:
            state: of the session that goes on.
            found: as for `over`.
        """
        self._words(str(self.over(state, found)))


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
