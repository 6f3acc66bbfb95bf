"""Engines of this machine, each with processes of its own."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import isobatch

QUIET = ["-W", "ignore", "-m"]
KILLER = '''"""A task whose run is ended from outside in its middle, the first time."""
import os
import signal
from pathlib import Path

import helper_of_killer
import torch
from isobatch.tasks import LOSS, Run, TensorSamples, seeded


def make(settings, seed):
    with seeded(seed):
        model = torch.nn.Linear(3, 1)
    with seeded(0):
        x = torch.randn(64, 3)
    steps = []

    def loss(net, batch):
        steps.append(1)
        mark = Path(os.environ["MARKS"], str(seed)) if "MARKS" in os.environ else None
        if mark is not None and seed == 1 and len(steps) == 20 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return net(batch[0]).square().mean() * helper_of_killer.FACTOR

    return Run(model, TensorSamples(x, x), loss, lambda net: {"loss": float(net(x).square().mean())},
               declared={"loss": LOSS})
'''
TOML = """task = "killer_of_users:make"
data_size = 64
batch = { size = 8 }
optimizer = { name = "sgd", lr = 0.05 }
schedule = { length = "512 samples" }
ema = { decay = 0.9 }
"""
"""64 steps, of which the 20th ends seed 1."""


def task_of_users(folder):
    """A folder with a task of its own, what it imports, and a recipe."""
    Path(folder, "killer_of_users.py").write_text(KILLER)
    Path(folder, "helper_of_killer.py").write_text("FACTOR = 0.5\n")
    Path(folder, "recipe.toml").write_text(TOML)
    return Path(folder, "recipe.toml")


def environment(**more):
    """What another process needs to see the same isobatch."""
    path = os.pathsep.join([str(Path(isobatch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def said(process, pattern):
    """Wait until a process says something."""
    for line in process.stderr:
        if match := re.search(pattern, line):
            return match[1]
    raise AssertionError(f"ended without saying {pattern}")


@contextmanager
def dask_cluster(folder, *options, **variables):
    """Scheduler and two workers over TCP, and the address; a nanny brings killed workers back."""
    pipe = {
        "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "cwd": folder, "start_new_session": True,
        "env": environment(**variables),
    }  # fmt: skip
    words = [sys.executable, *QUIET, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*words, "--no-dashboard"], **pipe)
    started = [scheduler]
    try:
        address = said(scheduler, r"Scheduler at:\s+tcp://(\S+)")
        words = [sys.executable, *QUIET, "distributed.cli.dask_worker", f"tcp://{address}", "--nworkers", "2"]
        started.append(subprocess.Popen([*words, "--nthreads", "1", "--no-dashboard", *options], **pipe))
        said(started[1], r"(Registered to)")
        said(started[1], r"(Registered to)")
        yield scheduler, f"dask://{address}"
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.stderr.close()
            process.wait(30)
