"""What runs at a worker: a call with everything that it needs, one at a time in a process."""

import importlib.metadata
import math
import os
import platform
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import torch

from isobatch.errors import InputError
from isobatch.executors.shipping import Bundle, unpacked
from isobatch.installed import VERSION

T = TypeVar("T")
_ONE = threading.Lock()
"""A run owns the random numbers and the default type of its process."""
_MARK = secrets.token_hex(8)
"""Tells containers apart that share the name of their host, and whose processes have the same number."""
REFUSED = ("isobatch", "torch")
"""Differences that change what a run is."""


@dataclass(frozen=True)
class Call:
    """A call on its way to a worker.

    Args:
        work: function and job as processes send them to each other: they may need the bundle to be read.
        bundle: the user's own modules.
        versions: of the caller.
        attempt: from 0; another one is another call.
        origin: the caller's process, which needs no bundle.
        ends: seconds of the clock on the wall, after which the call is not begun.
    """

    work: bytes
    bundle: Bundle
    versions: dict[str, str]
    attempt: int = 0
    origin: str = ""
    ends: float = math.inf


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        work: the result as processes send it: it may need the caller's modules to be read.
        where: host and process.
        versions: of the worker.
        left: seconds of the worker's clock on the wall, where the call was not begun because its time was over.
    """

    work: bytes
    where: str
    versions: dict[str, str] = field(default_factory=dict)
    left: float | None = None


def call(function: Callable[[Any], Any], job: Any, sent: Bundle, attempt: int = 0, ends: float = math.inf) -> Call:
    """Return a call that any worker can make.

    Args:
        function: of one job, importable by name.
        job: plain values.
        sent: the user's own modules.
        attempt: from 0.
        ends: seconds of the clock on the wall, after which it is not begun.

    Returns:
        The call.
    """
    return Call(bytes(ForkingPickler.dumps((function, job))), sent, versions(), attempt, _origin(), ends)


def answered(answer: Answer) -> Any:
    """Return the result in an answer.

    Args:
        answer: of a worker.

    Returns:
        What the function returned.
    """
    return ForkingPickler.loads(answer.work)


def invoke(made: Call) -> Answer:
    """Make a call in this process, with nothing else beside it.

    Args:
        made: the call.

    Returns:
        Its answer.

    Raises:
        InputError: another version of isobatch or torch here, or a module or file that is not here.
    """
    mine, where = versions(), _here()
    for name in REFUSED:
        if mine[name] != made.versions[name]:
            raise InputError(
                f"worker {where} has {name} {mine[name]}, the caller {made.versions[name]}: curves of both are no one "
                f"comparison; install the same {name} on every worker and start the workers again"
            )
    with _ONE, unpacked(made.bundle if made.origin != _origin() else Bundle()):
        return sendable(partial(_answer, made, where, mine))


def _answer(made: Call, where: str, mine: dict[str, str]) -> Answer:
    if (now := time.time()) > made.ends:
        return Answer(b"", where, mine, left=now)
    try:
        function, job = ForkingPickler.loads(made.work)
        result = function(job)
    except (InputError, ImportError, FileNotFoundError) as error:
        if (more := _absent(error, where, made.bundle)) is None:
            raise
        raise InputError(more) from error
    return Answer(bytes(ForkingPickler.dumps(result)), where, mine | _processor(job))


def sendable(made: Callable[[], T]) -> T:
    """Make a call from which only errors come that the caller's process can read.

    Many cannot be made again from what they send of themselves (a class whose arguments are not those of its message, a
    class inside a function), or from the error that caused them, which some packages send along; read by the caller
    they would break the connection, and a worker would pass for lost.

    Args:
        made: the call.

    Returns:
        What it returns.

    Raises:
        RuntimeError: in place of such an error, in its words.

    Example:
        >>> sendable(lambda: 1 / 0)
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """
    try:
        return made()
    except Exception as error:
        if _readable(error):
            raise
        error.__cause__ = error.__context__ = None
        found = error if _readable(error) else RuntimeError(f"{type(error).__name__}: {error}")
        found = found.with_traceback(error.__traceback__)
    raise found  # here, where no error is its context


def _readable(error: Exception) -> bool:
    try:
        return type(ForkingPickler.loads(ForkingPickler.dumps(error))) is type(error)
    except Exception:  # whatever its class does
        return False


def _here() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _origin() -> str:
    return f"{_here()}, {_MARK}"


def _absent(error: BaseException, where: str, sent: Bundle) -> str | None:
    """What to say of a module or a file that this machine lacks."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ImportError, FileNotFoundError)):
        cause = cause.__cause__
    if cause is None:
        return None
    travelled = ", ".join(sent.modules) or "nothing"
    if isinstance(cause, ImportError):
        what, way = f"cannot import what the run needs ({cause})", "install it there"
    else:
        what, way = f"has no file {cause.filename}", "put data where every worker finds it, or load it from a package"
    return f"worker {where} {what}; only the task's own modules travel to workers ({travelled}): {way}. {error}"


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions that a run depends on.

    Returns:
        Name -> version; isobatch's with a hash of its code.
    """
    root = Path(__file__).parents[1]
    code = sha256(b"\0".join(path.read_bytes() for path in sorted(root.rglob("*.py")))).hexdigest()[:8]
    found = {"isobatch": f"{VERSION} ({code})", "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "numpy")}


def _processor(job: Any) -> dict[str, str]:
    found = {"processor": _cpu()}
    if str(getattr(job, "device", "cpu")).startswith("cuda"):
        found["GPU"] = torch.cuda.get_device_name()
    return found


@lru_cache(maxsize=1)
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
