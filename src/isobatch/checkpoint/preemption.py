"""Signals that ask a run to save and stop: a flag that is read at step boundaries."""

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from isobatch.errors import InputError
from isobatch.units import finite


class Preempted(KeyboardInterrupt):
    """A second signal: stop where you are. Not an Exception, so that no handler for errors takes it for one."""


class Preemption:
    """Turn SIGTERM and SIGUSR1 into a flag while the block runs; the handlers from before come back at its end.

    The first signal sets the flag and nothing else, so that weights, moments, clock and random state reach the next
    step boundary together; every loop of a run (training, accumulation, evaluation, warm-up) reads it there. The
    second one raises Preempted at once; a save that it breaks leaves the older checkpoints as they are.

    Args:
        signals: which; the default is SIGTERM and SIGUSR1.
        grace: seconds after the first signal in which further ones count as the same request. A launcher that passes
            on a signal which its children received too needs about 1.

    Raises:
        InputError: a negative grace, or not in the main thread, where Python delivers signals.

    Example:
        >>> with Preemption() as preemption:
        ...     preemption.requested
        False
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1), grace: float = 0.0):
        self._signals = tuple(signals)
        self._grace = finite("grace", grace, 0.0)
        self._before: dict[signal.Signals, Any] = {}
        self._first: tuple[signal.Signals, float] | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come: save at this step boundary and stop."""
        return self._first is not None

    @property
    def exit_code(self) -> int:
        """What the program should exit with: 128 plus the number of the signal, 0 when none has come."""
        return 0 if self._first is None else 128 + self._first[0]

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise InputError(
                f"Preemption entered in thread {threading.current_thread().name!r}; enter it in the main thread, "
                "where signals arrive"
            )
        self._first = None
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._first[1] >= self._grace:
            raise Preempted(f"second signal ({signal.Signals(number).name}); stopped before the step boundary")
