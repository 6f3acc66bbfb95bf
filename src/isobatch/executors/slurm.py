"""Slurm behind the standard executor, by submitit: a job of the cluster for every run."""

import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, WorkerLost
from isobatch.executors.resources import Resources
from isobatch.installed import need

_POLL = 0.2
"""Seconds between looks at local jobs; Slurm is asked as often as submitit thinks right."""


class SubmititExecutor(Executor):
    """Calls as jobs of a submitit executor, several at once in one array.

    Args:
        jobs: submits them; its folder must be on a disk that the jobs' machines share.
        workers: jobs at once.
    """

    def __init__(self, jobs: Any, workers: int):
        self.workers, self._jobs = workers, jobs
        self._waiting = deque[tuple[Future[Any], Callable[[], Any]]]()
        self._running: dict[Future[Any], Any] = {}
        self._lock, self._wake, self._stop = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="submitit")
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue a job.

        Args:
            fn: the function.
            *args: its arguments.
            **kwargs: its named arguments.

        Returns:
            Its future; cancelling it cancels the job.
        """
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((future, partial(fn, *args, **kwargs)))
        self._wake.set()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop looking after jobs.

        Args:
            wait: for those that run, unless they are cancelled.
            cancel_futures: cancel every job.
        """
        with self._lock:
            open_ = [*(future for future, _ in self._waiting), *self._running]
        if cancel_futures:
            for future in open_:
                future.cancel()
        self._stop = True
        self._wake.set()
        if wait:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self._wake.wait(_POLL if self._running else None)
            self._wake.clear()
            try:
                self._start()
            except Exception as error:  # sbatch refuses, the folder is full: every waiting call hears of it
                with self._lock:
                    refused, self._waiting = list(self._waiting), deque()
                for future, _ in refused:
                    if not future.cancelled():
                        future.set_exception(InputError(f"submitit cannot submit: {type(error).__name__}: {error}"))
            for future, job in list(self._running.items()):
                if future.cancelled():
                    job.cancel(check=False)
                    del self._running[future]
                elif job.done():
                    del self._running[future]
                    _finish(future, job)
                    self._wake.set()
            if self._stop and not self._running and not self._waiting:
                return

    def _start(self) -> None:
        taken = []
        with self._lock:
            while self._waiting and len(self._running) + len(taken) < self.workers:
                future, made = self._waiting.popleft()
                if not future.cancelled():
                    taken.append((future, made))
        if taken:
            try:
                jobs = self._jobs.submit_array([made for _, made in taken])
            except Exception:
                with self._lock:
                    self._waiting.extendleft(reversed(taken))
                raise
            self._running |= dict(zip((future for future, _ in taken), jobs, strict=True))


def _finish(future: Future[Any], job: Any) -> None:
    try:
        outcome, result = job._get_outcome_and_result()
    except Exception as error:  # no result on disk: the job's machine or process was lost
        lines = str(error).strip().splitlines()
        future.set_exception(WorkerLost(f"job {job.job_id} left no result: {lines[0] if lines else error}"))
        return
    if outcome == "error":
        future.set_exception(WorkerLost(f"job {job.job_id} failed: {str(result).strip().splitlines()[-1]}"))
    else:
        future.set_result(result)


def slurm_executor(options: dict[str, str], resources: Resources, workers: int | None) -> Generator[Executor]:
    """Open an executor on a Slurm cluster.

    Args:
        options: minutes of one run (60), folder of logs and results on a shared disk, cluster ("slurm", or "local" for
            processes of this machine), and any of submitit's for Slurm: partition, qos, account, constraint, ...
        resources: of one run.
        workers: runs at once, 16 unless given.

    Yields:
        The executor.

    Raises:
        InputError: no Slurm here, or an option that submitit does not know.
    """
    need("slurm")
    submitit: Any = importlib.import_module("submitit")
    more = dict(options)
    cluster, minutes = more.pop("cluster", "slurm"), more.pop("minutes", "60")
    folder = Path(more.pop("folder", "submitit"), "%j")
    try:
        jobs = submitit.AutoExecutor(folder, cluster=cluster)
        jobs.update_parameters(
            timeout_min=int(minutes),
            cpus_per_task=max(1, round(resources.cpus)),
            gpus_per_node=int(-(-resources.gpus // 1)),
            **({} if resources.memory_gb is None else {"mem_gb": resources.memory_gb}),
            **{f"slurm_{name}": value for name, value in more.items()},
        )
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise InputError(f"--on slurm: {error}") from None
    executor = SubmititExecutor(jobs, workers or (16 if cluster == "slurm" else os.cpu_count() or 1))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
