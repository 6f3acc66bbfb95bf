"""Slurm behind the standard executor, by submitit: a job of the cluster for every run."""

import importlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, WorkerLost
from isobatch.executors.resources import Resources
from isobatch.installed import need

_POLL = 0.2
"""Seconds between looks at local jobs; Slurm is asked as often as submitit thinks right."""
_GRACE = 15.0
"""Seconds that a shared disk has to show the result of a job that Slurm says has ended."""
_QUEUED = 300.0
"""Seconds that Slurm has to queue a preempted job again; where it cancels them, submitit would wait for ever."""


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
        self._ended: dict[Future[Any], float] = {}
        self._grace = 0.0 if getattr(jobs, "cluster", "slurm") == "local" else _GRACE
        self._lock, self._wake, self._stop = threading.Lock(), threading.Event(), False
        self._dropped = False
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
            self._waiting.append((future, partial(_outcome, fn, *args, **kwargs)))
        self._wake.set()
        return future

    def drop_waiting(self) -> None:
        """Cancel the jobs that have not begun, here and in the cluster's queue."""
        with self._lock:
            waiting = [future for future, _ in self._waiting]
        for future in (*waiting, *(future for future, job in list(self._running.items()) if job.state == "PENDING")):
            future.cancel()
        self._wake.set()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop looking after jobs.

        Args:
            wait: for those that run, unless they are cancelled.
            cancel_futures: cancel every job.
        """
        with self._lock:
            open_ = [*(future for future, _ in self._waiting), *self._running]
        if cancel_futures:
            self._dropped = True  # jobs that are being submitted at this moment too
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
                why = f"submitit cannot submit: {type(error).__name__}: {error}"
                for future, _ in refused:
                    with suppress(InvalidStateError):  # cancelled, maybe at this moment
                        future.set_exception(InputError(f"{why}; correct what --on asks for, or free space"))
            for future, job in list(self._running.items()):
                try:
                    ended = self._look(future, job)
                except Exception as error:  # this thread must go on, or every call would wait for ever
                    ended = True
                    with suppress(InvalidStateError):
                        future.set_exception(WorkerLost(f"job {job.job_id}: {type(error).__name__}: {error}"))
                if ended:
                    del self._running[future]
                    self._ended.pop(future, None)
                    self._wake.set()
            if self._stop and not self._running and not self._waiting:
                return

    def _look(self, future: Future[Any], job: Any) -> bool:
        """Look after a job; whether it has ended."""
        if future.cancelled() or (self._dropped and future.cancel()):
            job.cancel(check=False)
            return True
        ended = job.done()
        if not ended and job.state != "PREEMPTED":
            self._ended.pop(future, None)
            return False
        since = self._ended.setdefault(future, time.monotonic())
        there = job.paths.result_pickle.exists()  # submitit itself would wait for it, and for one job at a time
        if not there and time.monotonic() - since < (self._grace if ended else _QUEUED):
            return False
        if not there:  # of a lost node Slurm queues it again by itself, beside the call that is made again
            job.cancel(check=False)
        _finish(future, job)
        return True

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


def _outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, Any]:
    """What a job leaves: submitit itself keeps an error as text only."""
    try:
        return True, function(*args, **kwargs)
    except Exception as error:
        return False, error


def _finish(future: Future[Any], job: Any) -> None:
    try:
        if not job.paths.result_pickle.exists():
            raise WorkerLost(_last_line(job))
        kind, found = job._get_outcome_and_result()
        fine, result = found if kind == "success" else (False, WorkerLost(str(found).strip().splitlines()[-1]))
    except Exception as error:  # nothing that can be read
        fine, result = False, error if isinstance(error, WorkerLost) else WorkerLost(f"{type(error).__name__}: {error}")
    if fine:
        future.set_result(result)
    elif isinstance(result, WorkerLost) or type(result).__module__.startswith("submitit"):  # ended by Slurm
        future.set_exception(WorkerLost(f"job {job.job_id}: {result}"))
    else:
        future.set_exception(result)


def _last_line(job: Any) -> str:
    log = job.paths.stderr
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f"no result; its log {log} ends: {lines[-1] if lines else 'empty'}"


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
    # numbers of jobs come again, in a new container soon: none must find the result of an earlier job of its number
    folder = Path(more.pop("folder", "submitit"), f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}", "%j")
    if resources.gpus % 1:
        raise InputError(
            f"gpus={resources.gpus:g} must be a whole number: Slurm gives out whole GPUs; where it has shards of them, "
            "ask for one by gpus=0,gres=shard:1"
        )
    try:
        jobs = submitit.AutoExecutor(folder, cluster=cluster)
        jobs.update_parameters(
            timeout_min=int(minutes),
            cpus_per_task=max(1, round(resources.cpus)),
            **({"gpus_per_node": int(resources.gpus)} if resources.gpus else {}),
            **({} if resources.memory_gb is None else {"mem_gb": resources.memory_gb}),
            **{f"slurm_{name}": value for name, value in more.items()},
        )
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise InputError(f"--on slurm: {error}; correct the options after slurm:") from None
    executor = SubmititExecutor(jobs, workers or (16 if cluster == "slurm" else os.cpu_count() or 1))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
