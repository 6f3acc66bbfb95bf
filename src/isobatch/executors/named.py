"""Executors by name: what `--on` takes."""

import importlib
import logging
import re
from collections.abc import Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from isobatch.errors import InputError
from isobatch.executors.local import on_cpu
from isobatch.executors.ray_cluster import ray_executor
from isobatch.executors.resources import Resources
from isobatch.executors.slurm import slurm_executor
from isobatch.installed import need

FORMS = "local, dask://host:8786, ray, ray://host:10001, slurm:partition=NAME, module:executor"
_ENGINE = re.compile(r"^(local(?=\?|$)|dask://[^?]+|ray(?:://[^?]+)?|slurm(?::[^?]*)?)(?:\?(.*))?$")
# What Dask and its event loop log, with a traceback each, when a connection is lost.
_LOST = ("distributed.client", "distributed.core", "distributed.batched", "distributed.comm", "tornado.application")


@contextmanager
def opened(on: str, *, workers: int | None = None, device: str = "cpu") -> Generator[Executor | None]:
    """Open an executor by its name, and close it.

    Dask and Ray take what a run needs after a question mark: `dask://host:8786?gpus=1&memory_gb=8`, `ray?gpus=0.25`.
    Slurm takes its own options, with commas: `slurm:partition=gpu,gpus=1,cpus=4,memory_gb=16,minutes=120`.

    Args:
        on: one of FORMS.
        workers: runs at once at most, for Slurm.
        device: where runs compute; a run on "cuda" takes one GPU unless `gpus` says otherwise.

    Yields:
        The executor; None for processes of this machine.

    Raises:
        InputError: no such form, a missing extra, or nobody there.

    Example:
        >>> with opened("local") as executor:
        ...     print(executor)
        None
    """
    match = _ENGINE.match(on)
    if match is None:
        yield from _own(on)
        return
    target, options = match[1], _options(on, match[2] or "", "&")
    if target == "local":
        if options:
            raise InputError(f"--on {on!r}: local takes no options; --workers and --device say what there is to say")
        yield None
    elif target.startswith("dask"):
        yield from _dask(on, target.removeprefix("dask://"), _resources(on, options, device))
    elif target.startswith("ray"):
        yield from ray_executor(None if target == "ray" else target, _resources(on, options, device))
    else:
        more = _options(on, target.partition(":")[2], ",") | options
        resources = _resources(on, {k: more.pop(k) for k in ("cpus", "gpus", "memory_gb") if k in more}, device)
        yield from slurm_executor(more, resources, workers)


def _options(on: str, text: str, separator: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(separator) if part]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise InputError(f"--on {on!r}: {wrong[0]!r} must be name=value; options are separated by {separator}")
    return {name: value for name, _, value in pairs}


def _resources(on: str, options: dict[str, str], device: str) -> Resources:
    values: dict[str, Any] = {} if on_cpu(device) else {"gpus": 1.0}
    for name, text in options.items():
        if name not in Resources.__dataclass_fields__:
            raise InputError(f"--on {on!r}: {name}={text} must be one of cpus, gpus, memory_gb")
        try:
            values[name] = float(text)
        except ValueError:
            raise InputError(f"--on {on!r}: {name}={text!r} must be a number") from None
        if not 0 <= values[name] < 1e6:
            raise InputError(f"--on {on!r}: {name}={text} must be a number from 0 on")
    return Resources(**values)


def _own(on: str) -> Generator[Executor]:
    module, colon, name = on.partition(":")
    if not colon or "/" in name or not name.isidentifier():
        raise InputError(f"--on {on!r} must be one of: {FORMS}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module does on import
        raise InputError(
            f"--on {on!r}: cannot import {module}: {type(error).__name__}: {error}; is its folder on PYTHONPATH?"
        ) from error
    made = found() if callable(found) and not isinstance(found, Executor) else found
    if not isinstance(made, Executor):
        raise InputError(f"--on {on!r} is {type(made).__name__}; it must be a concurrent.futures.Executor or make one")
    try:
        yield made
    finally:
        if made is not found:  # made for this call: nobody else ends it
            made.shutdown(wait=False)


def _dask(on: str, address: str, resources: Resources) -> Generator[Executor]:
    need("dask")
    connect = importlib.import_module("distributed").Client

    names = {"CPU": resources.cpus if resources.cpus != 1 else 0, "GPU": resources.gpus}
    wanted = {name: amount for name, amount in (names | {"MEMORY_GB": resources.memory_gb or 0}).items() if amount}
    # a scheduler that goes away is said once, by the session
    levels = {log: log.level for log in map(logging.getLogger, _LOST)}
    for log in levels:
        log.setLevel(logging.CRITICAL)
    try:
        client = connect(address if "://" in address else f"tcp://{address}", set_as_default=False, timeout="10s")
    except (OSError, ValueError) as error:
        _give_back(levels)
        raise InputError(f"--on {on!r}: no Dask scheduler answers there ({error}); start one: dask scheduler") from None
    try:
        if not client.nthreads():
            raise InputError(f"--on {on!r}: its scheduler has no workers; start some: dask worker tcp://{address}")
        there = [worker.get("resources", {}) for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        if not any(all(has.get(name, 0) >= amount for name, amount in wanted.items()) for has in there):
            asked = ",".join(f"{name}={amount:g}" for name, amount in wanted.items())
            raise InputError(
                f"--on {on!r}: no worker has {asked}, which a run takes, so that it would wait for ever; say what "
                f'workers have: dask worker tcp://{address} --resources "{asked}"'
            )
        yield client.get_executor(pure=False, **({"resources": wanted} if wanted else {}))
    finally:
        client.close(timeout=2)
        _give_back(levels)


def _give_back(levels: dict[logging.Logger, int]) -> None:
    for log, level in levels.items():
        log.setLevel(level)
