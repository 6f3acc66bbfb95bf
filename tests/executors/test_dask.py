"""A Dask scheduler and two workers as processes of their own, over TCP."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tests.executors.tasks_of_users import Found, Once, work
from tests.recipes import recipe

from isobatch.errors import EngineError
from isobatch.executors import map_jobs, opened, width
from isobatch.verify import cells
from isobatch.verify.workers import Job, train_curve

pytest.importorskip("distributed")
QUADRATIC = {"task": "quadratic", "optimizer": {"lr": 0.1}, "schedule": {"length": "64 samples", "warmup": "0 samples"}}
QUIET = ["-W", "ignore", "-m"]


def said(process, pattern):
    for line in process.stderr:
        if match := re.search(pattern, line):
            return match[1]
    raise AssertionError(f"ended without saying {pattern}")


@contextmanager
def cluster(folder):
    """Scheduler and address; a nanny brings killed workers back."""
    pipe = {
        "stderr": subprocess.PIPE,
        "stdout": subprocess.DEVNULL,
        "text": True,
        "cwd": folder,
        "start_new_session": True,
    }
    command = [
        sys.executable,
        *QUIET,
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    scheduler = subprocess.Popen(command, **pipe)
    started = [scheduler]
    try:
        address = said(scheduler, r"Scheduler at:\s+tcp://(\S+)")
        command = [
            sys.executable,
            *QUIET,
            "distributed.cli.dask_worker",
            f"tcp://{address}",
            "--nworkers",
            "2",
            "--nthreads",
            "1",
            "--no-dashboard",
        ]
        started.append(subprocess.Popen(command, **pipe))
        said(started[1], r"(Registered to)")
        said(started[1], r"(Registered to)")
        yield scheduler, f"dask://{address}"
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.stderr.close()
            process.wait(30)


def test_dask_trains_the_same_bits_over_a_killed_worker_and_its_end_is_resumed(tmp_path):
    """One cluster for all, which takes seconds to start."""
    (tmp_path / "tries").mkdir()
    made = [Job("a", recipe(**QUADRATIC), seed, 0, (0, 32, 64)) for seed in range(4)]
    plain = [train_curve(job).values for job in made]
    kept = {"name": lambda job: f"{job.number}.json", "read": lambda values: Found(**values)}
    todo = [Once(n, n, str(tmp_path / "tries"), int(n == 2)) for n in range(4)]
    gone = []
    with cluster(tmp_path) as (scheduler, on), opened(on) as executor:
        assert width(executor, None) == 2
        assert [one.values for one in map_jobs(train_curve, made, executor=executor)] == plain
        found = map_jobs(work, todo, executor=executor)
        assert [one.number for one in found] == [0, 1, 4, 9]
        assert len(list((tmp_path / "tries").glob("2-*"))) == 2
        assert os.getpid() not in {one.process for one in found}

        def kill(one):
            if not gone:
                os.kill(scheduler.pid, signal.SIGKILL)
            gone.append(one)

        more = [Once(n, n, str(tmp_path / "tries")) for n in range(10, 40)]
        with pytest.raises(EngineError, match="same command trains only what is missing"):
            cells.run_all(work, more, tmp_path, executor=executor, on_done=kill, **kept)
    stored = len(list((tmp_path / "cells").iterdir()))
    assert 1 <= stored < 30
    fresh = []
    again = cells.run_all(work, more, tmp_path, workers=1, on_done=fresh.append, **kept)
    assert [one.number for one in again] == [n**2 for n in range(10, 40)]
    assert sum(one.process == os.getpid() for one in fresh) == 30 - stored
