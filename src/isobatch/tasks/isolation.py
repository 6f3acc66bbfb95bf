"""A run on its own: what a task does to the process that it runs in ends with the run."""

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout

from isobatch.errors import InputError, IsobatchError
from isobatch.tasks.finding import WHOLE, MakeError, told


@contextmanager
def alone(seed: int, device: str) -> Generator[None]:
    """Give a run a process as it would find it first, and give the process back as it was.

    Random numbers (torch, numpy, random) are the run's own. torch's default type, its deterministic mode and its number
    of threads are restored; on the CPU a run has one thread, so that it is the same one in any number of processes.
    What it prints goes to stderr: stdout belongs to the verdict.

    Args:
        seed: of the random numbers.
        device: where the run is trained, as in a job.

    Yields:
        None.
    """
    import numpy as np
    import torch

    cuda = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    before, held = np.random.get_state(), random.getstate()  # noqa: NPY002 - what tasks may use
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    one_thread(device)
    with torch.random.fork_rng(devices=cuda), redirect_stdout(sys.stderr):
        seed_all(seed)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
            random.setstate(held)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def one_thread(device: str) -> None:
    """Let torch compute with one thread on the CPU.

    Args:
        device: where a run is trained, as in a job; another one than the CPU is left alone.
    """
    import torch

    if device.startswith("cpu") and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def seed_all(seed: int) -> None:
    """Seed every generator that a task may draw from.

    Args:
        seed: not negative, below 2^63.
    """
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def saying_which_run(task: str | None, arm: str, seed: int) -> Generator[None]:
    """Turn what a user's task raises into bad input that says which run it was.

    An exit is no exception to it: a task that leaves with 0 must not end a comparison with the exit code of SAME.

    Args:
        task: as the recipe names it.
        arm: of the run.
        seed: of the run.

    Yields:
        None.

    Raises:
        InputError: whatever the task raised.
    """
    where = f"task={task!r} failed in arm {arm}, seed {seed}"
    try:
        yield
    except MakeError as failure:  # says where it failed already, and not in which run
        raise InputError(f"{where}: {told(failure.__cause__ or failure)}; {WHOLE}") from failure.__cause__
    except (IsobatchError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # whatever the user's task does
        raise InputError(f"{where}: {told(error)}; {WHOLE}") from error
