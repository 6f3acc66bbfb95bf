"""split(make, ...): the check as a function."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import distributed as dist

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.split.check import check, runner
from isobatch.split.processes import PATIENCE, apart, unlaunched, world
from isobatch.split.result import SplitReport
from isobatch.split.target import TaskLoop
from isobatch.tasks import Run, beside, find, make_any
from isobatch.units import finite, whole


def split(
    make: Callable[..., Any],
    parts: int | Sequence[int] = (2, 4),
    *,
    batch_size: int = 8,
    processes: int = 1,
    seed: int = 0,
    float64: bool | None = None,
    timeout: float | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> SplitReport:
    """Check whether one update of a batch is the same in parts.

    Runs the same samples as 1 x B, as k x B/k for several k, as uneven parts and, with `processes`, on
    several processes, for three updates from the same state; compares loss, gradient, update, moments, averages,
    schedulers, buffers and counts to a measured noise floor.

    Args:
        make: of no argument, of (seed), or of (settings, seed) as a task's; gives a Subject, a wrapper, or an object
            with model, samples and update(batch, parts).
        parts: numbers of equal parts; one number is checked beside its half.
        batch_size: samples an update, at least 4 and a multiple of every number of parts.
        processes: processes to spread the batch over, beside one.
        seed: under which the trainer is made.
        float64: compute in float64 (True), in the trainer's own types (False), or in float64 where it is possible.
        timeout: seconds after which everything is ended; without it the check runs in this process.
        on_wait: with a timeout told every second how long the check has been running.

    Returns:
        The report.

    Raises:
        InputError: make or the update raised, its data differ from call to call, the check hung or was killed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from isobatch.split import Subject
        >>> def make():
        ...     x, net = torch.randn(24, 3), nn.Linear(3, 1)
        ...     sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     def update(batch, parts):
        ...         for piece in batch.chunk(parts):
        ...             net(piece).square().mean().backward()  # never divided by parts
        ...         sgd.step()
        ...         sgd.zero_grad()
        ...     return Subject(net, update, x)
        >>> split(make).causes[0].name
        'missing-division'
    """
    batch_size = whole("batch_size", batch_size, 4)
    numbers, processes = _parts(parts, batch_size), whole("processes", processes)
    if batch_size % processes:
        raise InputError(f"processes={processes} must divide batch_size={batch_size}; give a multiple")
    if timeout is not None:
        timeout = finite("timeout", timeout, 0, 1e6, open_low=True)
    if whole("seed", seed, 0) >= 2**63:
        raise InputError(f"seed={seed} must be below 2**63")

    if dist.is_available() and dist.is_initialized():
        raise InputError("a process group is open here, and one process is the reference; call split outside of it")

    def whole_check() -> SplitReport:
        patience = timeout or PATIENCE
        worlds = {processes: world(make, processes, seed, patience)} if processes > 1 else {}
        with unlaunched():
            return check(runner(make, seed), numbers, batch_size, worlds, float64)

    if timeout is None:
        return whole_check()
    return SplitReport.from_dict(apart([lambda: whole_check().to_dict()], timeout, on_wait)[0])


def target(name: str) -> Callable[..., Any]:
    """Return the function that a target on the command line names.

    Args:
        name: "module:make", "path/to/file.py:make", a task's name, or a recipe (.toml) that names a task.

    Returns:
        make.

    Raises:
        InputError: no such file, module or function, or one that raises when it is imported.

    Example:
        >>> target("collections:OrderedDict").__name__
        'OrderedDict'
    """
    if name.endswith(".toml"):
        return _of_recipe(beside(Recipe.load(name), Path(name).parent))
    return find(name, "target")


def _of_recipe(recipe: Recipe) -> Callable[..., Any]:
    def make(settings: Any, seed: int) -> Any:
        given = make_any(recipe, seed)
        return TaskLoop(given, recipe) if isinstance(given, Run) else given

    return make


def launched() -> int:
    """Return how many processes torchrun started this one with, 1 without torchrun.

    Returns:
        WORLD_SIZE of the environment.

    Raises:
        InputError: it is no number.
    """
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Return which of the processes of torchrun this one is, 0 without torchrun.

    Returns:
        RANK of the environment.

    Raises:
        InputError: it is no number.
    """
    return _told("RANK", 0)


def _told(name: str, least: int) -> int:
    text = os.environ.get(name, str(least))
    if not text.isdecimal():
        raise InputError(
            f"the environment variable {name}={text!r} must be a whole number, as torchrun sets it; unset it"
        )
    return whole(name, int(text), least)


def _parts(parts: int | Sequence[int], batch: int) -> list[int]:
    given = [parts, parts // 2] if isinstance(parts, int) and parts > 3 and parts % 2 == 0 else parts
    numbers = sorted({whole("parts", one) for one in ([given] if isinstance(given, int) else given)})
    if not numbers or numbers[0] < 2:
        raise InputError(f"parts={parts!r} must be numbers of at least 2, such as 4 or (2, 4)")
    for one in numbers:
        if batch % one:
            raise InputError(
                f"parts={one} must divide batch_size={batch}; give a multiple (uneven parts are added by themselves)"
            )
    return numbers
