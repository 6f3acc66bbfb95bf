"""What of the process itself a run keeps and obeys: its random generators, and signals that ask it to stop."""

import random
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch

from isobatch.errors import InputError
from isobatch.units import finite


def rng_state() -> dict[str, Any]:
    """Return the global generators of Python, numpy and torch (CPU and every GPU) of this process.

    Returns:
        Tensors and JSON values for a checkpoint.

    Raises:
        InputError: numpy's global generator was replaced by another kind.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> set_rng_state(state)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the generator that data sets use
    if legacy["bit_generator"] != "MT19937":
        raise InputError(f"numpy's global generator is {legacy['bit_generator']}, not MT19937; keep its state yourself")
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the generators back where `rng_state` found them.

    Args:
        state: what `rng_state` gave.

    Raises:
        InputError: another number of GPUs; nothing was changed.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise InputError(
            f"field cuda: {len(state['cuda'])} GPU generators in the checkpoint, {devices} GPUs here; give the state "
            'with "cuda" cut or padded to them'
        )
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = {"key": legacy["key"].numpy().astype(np.uint32), "pos": legacy["pos"]}
    rest = {"has_gauss": legacy["has_gauss"], "gauss": legacy["gauss"]}
    np.random.set_state({"bit_generator": "MT19937", "state": words, **rest})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(generator, device)


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
            if handler is not None:  # one that was not set from Python cannot be put back by it
                signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._first[1] >= self._grace:
            raise Preempted(f"second signal ({signal.Signals(number).name}); stopped before the step boundary")
