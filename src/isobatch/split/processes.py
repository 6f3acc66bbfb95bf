"""Forked processes with a deadline: a world of ranks as torchrun starts it, or one check that may hang or be killed."""

import json
import multiprocessing
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.errors import InputError, IsobatchError
from isobatch.split.compare import distance
from isobatch.split.layouts import Layout, Record, run_layout
from isobatch.split.observe import Pass, Update
from isobatch.split.sketch import joined
from isobatch.tasks.finding import told

PATIENCE = 300.0
_INSIDE: list[str] = []  # not empty in a process that was forked here: the word that marks what it starts
_MARK = "ISOBATCH_CHECK"
_AGENT = "TORCHELASTIC_"
_LAUNCHED = {"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
             "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"}  # fmt: skip
_LEFT = re.compile(r"Connection closed by peer|Connection reset|gloo/transport")
_KINDS = {kind.__name__: kind for kind in (Layout, Record, Update, Pass)}


def apart(
    actions: Sequence[Callable[[], Any]], seconds: float = PATIENCE, on_wait: Callable[[float], None] | None = None
) -> list[Any]:
    """Run actions at the same time, each in a forked process of its own, and end all of them when one fails.

    Args:
        actions: each gives plain values.
        seconds: after which everything is ended.
        on_wait: told every second for how long they have been running.

    Returns:
        What each gave.

    Raises:
        InputError: one raised, was killed, or did not end in time.
    """
    forks = multiprocessing.get_context("fork")
    mark = _INSIDE[0] if _INSIDE else secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="isobatch-split-") as folder:
        files = [Path(folder) / f"{index}.json" for index in range(len(actions))]
        pairs = zip(actions, files, strict=True)
        processes = [forks.Process(target=_child, args=(action, file, mark)) for action, file in pairs]
        try:
            for process in processes:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
                    process.start()
            _watch(processes, files, seconds, on_wait)
            return [json.loads(file.read_text())["value"] for file in files]
        finally:
            for process in processes:
                _end(process)
            if not _INSIDE:
                _end_marked(f"{_MARK}={mark}".encode())


def _child(action: Callable[[], Any], file: Path, mark: str) -> None:
    if not _INSIDE:
        os.setsid()  # so that what it starts, other ranks among them, can be ended with it
    _INSIDE.append(mark)
    os.environ[_MARK] = mark
    os.dup2(2, 1)  # what a library or a program prints past Python
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        text = json.dumps({"value": action()})
    except IsobatchError as error:
        text = json.dumps({"error": str(error)})
    except BaseException as error:
        text = json.dumps({"error": told(error)})
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)  # the answer is there, and a thread that the trainer left would be waited for


def _watch(
    processes: Sequence[Any], files: Sequence[Path], seconds: float, on_wait: Callable[[float], None] | None
) -> None:
    began = time.monotonic()
    running = list(processes)
    while running:
        left = max(seconds - (time.monotonic() - began), 0.0)
        ended = wait([process.sentinel for process in running], left if on_wait is None else min(left, 1.0))
        if on_wait is not None and not ended:
            on_wait(time.monotonic() - began)
        for process, file in zip(processes, files, strict=True):
            if process in running and process.exitcode is not None:
                running.remove(process)
                _told_by(process, file)
        if running and time.monotonic() - began >= seconds:
            raise InputError(
                f"the check hung: no end within {seconds:g} s; all its processes were ended. Give it longer with "
                "--timeout, or look for a collective that not all processes join"
            )


def _told_by(process: Any, file: Path) -> None:
    if not file.exists():
        code = process.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        more = "; out of memory? check a smaller model or a smaller --batch-size" if code == -signal.SIGKILL else ""
        raise InputError(f"a process of the check {how} before it was done{more}")
    told_ = json.loads(file.read_text())
    if "error" in told_:
        raise InputError(told_["error"])


def _end(process: Any) -> None:
    if process.pid is None:
        return
    if process.exitcode is None:
        process.kill()
    if not _INSIDE:
        with suppress(ProcessLookupError, PermissionError):  # nothing is left of its session
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    process.close()


def _end_marked(mark: bytes) -> None:
    """End the programs that the trainer started in sessions of their own, known by the environment they were given."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def world(make: Callable[..., Any], count: int, seed: int, seconds: float) -> Callable[[list[Layout]], list[Record]]:
    """Return what makes layouts on several processes, with the environment that torchrun gives them.

    Args:
        make: makes the trainer.
        count: of processes.
        seed: under which it is made.
        seconds: after which a run is ended.

    Returns:
        A function of layouts; every process takes its part of each batch.
    """

    def rank(index: int, port: int, layouts: list[Layout]) -> Any:
        names = {
            "RANK": index,
            "LOCAL_RANK": index,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["TORCHELASTIC_RUN_ID"] = "isobatch"  # by which trainers know that their processes are started
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
        try:
            return [_plain(one) for one in _until_failed(make, layouts, seed)]
        finally:
            dist.destroy_process_group()

    def run(layouts: list[Layout]) -> list[Record]:
        port = _free_port()
        ranks = apart([lambda index=index: rank(index, port, layouts) for index in range(count)], seconds)
        return [_merged([_back(one[place]) for one in ranks]) for place in range(len(layouts))]

    return run


def _until_failed(make: Callable[..., Any], layouts: list[Layout], seed: int) -> list[Record]:
    """The records of layouts; after one that failed here, the other ranks wait for this one no longer."""
    records: list[Record] = []
    for layout in layouts:
        failed = records[-1].failed if records else ""
        records.append(Record(layout, failed=failed) if failed else run_layout(make, layout, seed))
    return records


@contextmanager
def unlaunched() -> Generator[None]:
    """Hide what torchrun told this process: the reference is one process, and a trainer would wait for the others.

    Yields:
        None.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name in _LAUNCHED or name.startswith(_AGENT)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _merged(records: list[Record]) -> Record:
    """One record of a world: counts of the first rank, passes and rows of all."""
    first, others = records[0], records[1:]
    for one in (each for record in records for update in record.updates for each in update.passes):
        one.loss /= len(records)  # what all of them train is the mean
    # the first to fail makes the fewest updates; the others only see that it left
    failed = sorted(
        (one for one in records if one.failed), key=lambda one: (len(one.updates), _LEFT.search(one.failed) is not None)
    )
    if failed:
        first.failed = failed[0].failed
        return first
    for place, update in enumerate(first.updates):
        for other in others:
            mine = other.updates[place]
            update.passes += mine.passes
            update.rows += mine.rows
            for name, rows in mine.outputs.items():
                update.outputs.setdefault(name, []).extend(rows)
            first.drift = max(
                first.drift, distance(joined(mine.after, update.after), joined(update.after, update.after))
            )
        reported = [one.updates[place].reported for one in records]
        if all(one is not None for one in reported):
            update.reported = sum(one for one in reported if one is not None) / len(records)
    return first


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"": "Tensor", "of": value.tolist()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, "of": {one.name: _plain(getattr(value, one.name)) for one in fields(value)}}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _back(value: Any) -> Any:
    if isinstance(value, dict):
        kind = value.get("")
        if kind == "Tensor":
            return torch.tensor(value["of"], dtype=torch.float64)
        if kind is not None:
            return _KINDS[kind](**{key: _back(one) for key, one in value["of"].items()})
        return {key: _back(one) for key, one in value.items()}
    return [_back(one) for one in value] if isinstance(value, list) else value
