"""Processes of this machine: one thread each, GPUs shared out, and a lost one costs its own call only."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future, InvalidStateError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from isobatch.errors import WorkerLost
from isobatch.executors.remote import sendable
from isobatch.units import whole

_LOOK = 1.0
"""Seconds between two looks of a process at whether its parent still lives."""


def processes(workers: int | None, device: str = "cpu") -> int:
    """Return how many processes to use on this machine.

    Args:
        workers: as asked; None for one a core, or one a GPU.
        device: device and its options in one word; "cuda" without a number shares out every GPU.

    Returns:
        At least 1.

    Raises:
        InputError: not a positive whole number.
    """
    if workers is not None:
        return whole("workers", workers)
    if not on_cpu(device):
        return max(1, len(gpus(device)))
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def on_cpu(device: str) -> bool:
    """Return whether a device is the CPU.

    Args:
        device: device and its options in one word.

    Returns:
        Whether it is.

    Example:
        >>> on_cpu("cpu,bf16"), on_cpu("cuda:1")
        (True, False)
    """
    return device.partition(",")[0] == "cpu"


def gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs that are shared out between processes.

    Args:
        device: device and its options in one word.

    Returns:
        Names for CUDA_VISIBLE_DEVICES; none for the CPU, and none for a GPU that is named, such as "cuda:1".
    """
    if device.partition(",")[0] != "cuda":
        return ()
    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(seen) if len(seen) == count and seen[0] else tuple(map(str, range(count)))


class LocalExecutor(Executor):
    """Processes of this machine, each a pool of its own.

    A `ProcessPoolExecutor` is broken as a whole when one of its processes ends; here that call alone raises WorkerLost
    and the process is made again. Where the system refuses another process, calls wait for those that there are.
    Processes end with the one that made them, however that ends.

    Args:
        workers: processes at most; they start as calls come.
        device: where the calls compute: processes for the CPU are forked where the system can, others are spawned and
            see one of the GPUs in turn.
    """

    def __init__(self, workers: int, device: str = "cpu"):
        forks = on_cpu(device) and "fork" in multiprocessing.get_all_start_methods()
        if forks:
            _load()
        context, shared = multiprocessing.get_context("fork" if forks else "spawn"), gpus(device)
        self.workers = workers
        self._idle = [_Process(context, shared[i % len(shared)] if shared else None) for i in reversed(range(workers))]
        self._all, self._waiting = tuple(self._idle), deque[tuple[Future[Any], Callable[[], Any]]]()
        self._lock, self._closed, self._open = threading.RLock(), False, set[Future[Any]]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue a call.

        Args:
            fn: importable by name.
            *args: its arguments.
            **kwargs: its named arguments.

        Returns:
            Its future; WorkerLost where its process ended.

        Raises:
            RuntimeError: after shutdown.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot submit after shutdown")
            self._open.add(future)
            self._waiting.append((future, partial(sendable, partial(fn, *args, **kwargs))))
        self._start()
        return future

    def drop_waiting(self) -> None:
        """Cancel the calls that have not begun."""
        with self._lock:
            waiting = [future for future, _ in self._waiting]
            self._waiting.clear()
            self._open.difference_update(waiting)
        for future in waiting:
            future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes.

        Args:
            wait: for what still runs.
            cancel_futures: drop what waits, and end what runs at once.
        """
        with self._lock:
            self._closed, left = True, list(self._open)
            if cancel_futures:
                self._waiting.clear()
        for future in left if cancel_futures else ():
            future.cancel()
        if wait and not cancel_futures:
            futures.wait(left)
        if cancel_futures or not self._open:
            self._end(kill=cancel_futures)

    def _end(self, *, kill: bool) -> None:
        for process in self._all:
            process.close(kill=kill)

    def _start(self) -> None:
        refused: list[tuple[Future[Any], Exception]] = []
        with self._lock:
            while self._idle and self._waiting:
                future, call = self._waiting.popleft()
                if future.cancelled():
                    future.set_running_or_notify_cancel()
                    self._open.discard(future)
                    continue
                process = self._idle.pop()
                try:
                    inner = process.submit(call)
                except (OSError, RuntimeError) as error:  # memory is short, or this user has all the processes allowed
                    self._idle.append(process)
                    if len(self._idle) < len(self._all):
                        self._waiting.appendleft((future, call))
                        break
                    self._open.discard(future)
                    refused.append((future, error))
                else:
                    future.set_running_or_notify_cancel()
                    inner.add_done_callback(partial(self._ended, process, future))
            if self._closed and not self._open:
                self._end(kill=False)
        for future, error in refused:
            with suppress(InvalidStateError):  # cancelled at this moment
                future.set_exception(WorkerLost(f"no process can be started: {error}"))

    def _ended(self, process: "_Process", future: Future[Any], inner: Future[Any]) -> None:
        error = inner.exception() if not inner.cancelled() else WorkerLost("cancelled")
        with self._lock:
            if isinstance(error, BrokenProcessPool):
                process.renew()
                error = WorkerLost("a process of this machine was ended from outside")
            self._idle.append(process)
            self._open.discard(future)
            self._start()
        if future.cancelled():  # at the moment at which it began
            return
        if error is None:
            future.set_result(inner.result())
        else:
            future.set_exception(error)


class _Process:
    """One process, started with its first call."""

    def __init__(self, context: Any, gpu: str | None):
        self._context, self._gpu = context, gpu
        self._pool: ProcessPoolExecutor | None = None
        self._child: Any = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        if self._pool is not None:
            try:
                return self._pool.submit(call)
            except BrokenProcessPool:  # ended from outside between two calls
                self.renew()
        before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(1, self._context, initializer=_alone, initargs=(self._gpu, os.getpid()))
        try:
            future = self._pool.submit(call)
        except BaseException:
            self.renew()
            raise
        self._child = next(iter(set(multiprocessing.active_children()) - before), None)
        return future

    def renew(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def close(self, *, kill: bool) -> None:
        if self._pool is None:
            return
        if kill and self._child is not None:
            self._child.terminate()
        self._pool.shutdown(wait=False, cancel_futures=kill)


def _load() -> None:
    """Load torch and what its optimizers load on first use, once here instead of once a process."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)


def _alone(gpu: str | None, parent: int) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before the first use of a GPU
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True, name="isobatch-parent").start()


def _end_with(parent: int) -> None:
    # one that was killed says nothing: its processes would wait for calls for ever, with their memory and their locks
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGKILL)
