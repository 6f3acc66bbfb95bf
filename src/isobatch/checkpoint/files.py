"""A run's folder on the disk: files that are there when the call returns, hashed, and a lock on the folder."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import weakref
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from isobatch.errors import InputError, IsobatchError, SaveError, warn

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_STRANGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)


def write_file(path: Path, parts: Iterable[bytes | memoryview], size: int) -> str:
    """Write a new file, fsync it, and read it back.

    Args:
        path: a name that does not exist.
        parts: the content in order.
        size: bytes of all parts, for the message when the disk is full.

    Returns:
        SHA-256 of the parts as they were in memory.

    Raises:
        SaveError: the disk refused it, or gave back something else; names the path and the bytes.
    """
    digest, written = hashlib.sha256(), 0
    try:
        with path.open("xb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                written += len(part)
            file.flush()
            os.fsync(file.fileno())
        found = hash_file(path)
    except OSError as error:
        raise SaveError(
            f"{path}: {_reason(error)} after {written} of {size} bytes; older checkpoints are intact: free space, or "
            "save to another folder"
        ) from error
    if found != digest.hexdigest():
        raise SaveError(
            f"{path}: read back SHA-256 {found}, wrote {digest.hexdigest()} ({size} bytes); the disk or its cable is "
            "failing: save to another one"
        )
    return found


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: a rename is not on the disk before its folder is.

    Some file systems (FUSE, SMB) know no such thing and make names durable by themselves, or not at all.

    Args:
        path: the folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn what the disk refuses in the block into a SaveError that names the path.

    Args:
        path: what the block works on.

    Yields:
        Nothing.

    Raises:
        SaveError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path}: {_reason(error)}{_free(path.parent)}; check that the folder exists for every rank and may be "
            "written, or save to another one"
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn what reading a damaged or foreign checkpoint raises in the block into an InputError that names the path.

    Hashes tell that a file is as it was written, not that this library wrote it.

    Args:
        path: what the block reads.

    Yields:
        Nothing.

    Raises:
        InputError: the disk refused it, or the content is not of the format.
    """
    try:
        yield
    except IsobatchError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); take another checkpoint") from error
    except _STRANGE as error:
        raise InputError(
            f"{path}: its content is not of this format ({type(error).__name__}: {error}); it was written by another "
            "program, take another checkpoint"
        ) from error


def need_space(folder: Path, size: int) -> None:
    """Refuse to begin a write that cannot fit.

    Args:
        folder: where it goes.
        size: bytes that it takes.

    Raises:
        SaveError: fewer bytes are free.
    """
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < size:
        raise SaveError(
            f"{folder}: {size} bytes are needed and {free} are free; older checkpoints are intact: free space, or save "
            "to another folder"
        )


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """Parse a JSON object, strictly.

    Args:
        path: where it came from, for the message.
        data: its bytes.

    Returns:
        The object.

    Raises:
        InputError: not JSON, a repeated key, NaN or Infinity, or not an object.

    Example:
        >>> parse(Path("a.json"), b'{"a": 1}')
        {'a': 1}
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}); take another checkpoint") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not an object; take another checkpoint")
    return value


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free} bytes free"
    except OSError:  # the folder itself is missing or forbidden
        return ""


def _reason(error: OSError) -> str:
    return f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'unknown')})"


_NAME = "lock"
_OURS = b'{"pid": '


class FolderLock:
    """Exclusive right to write into a folder; held from the call of `take` to `drop`.

    It is a lock on the file `lock` in the folder, not the file's presence, so a killed run leaves nothing to clean up.
    Child processes made by fork do not hold it. A disk without locks is named in a warning and refuses nobody.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path):
        self._path = folder / _NAME
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock, or refuse with the name of the process that has it.

        Raises:
            InputError: another run, or another object of this one, writes here; or `lock` is somebody else's file.
            SaveError: the folder may not be written.
        """
        if self._handle is not None:
            return
        with disk_errors(self._path):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._lock(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)  # a store that is dropped unclosed locks nobody out
        _held.add(self)
        with contextlib.suppress(OSError):  # a word for who comes next; a full disk shows in the trial save
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _lock(self, handle: int) -> None:
        with disk_errors(self._path):
            said = os.pread(handle, 4096, 0).strip(b"\0 \n")  # zeros are what a power cut leaves
        if not _OURS.startswith(said[: len(_OURS)]):
            raise InputError(
                f"{self._path} holds something of yours ({said[:20]!r}...) and would be overwritten; give this run a "
                "folder of its own"
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = said.decode(errors="replace") or "an unnamed process"
            raise InputError(
                f"{self._path.parent}: another run saves here ({holder}); stop it, or give this run a folder of its own"
            ) from None
        except OSError as error:
            warn(f"{self._path.parent}: this disk has no locks ({_reason(error)}); let one run alone save here")

    def drop(self) -> None:
        """Give the lock back, also for children that still have its file open; nothing happens where it is not held."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close the file without giving the lock back: a forked child must not unlock its parent's folder."""
        if self._handle is not None:
            self._handle = None
            self._close()


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _forget_in_child() -> None:
    # a loader worker that outlives its killed parent would keep the folder locked against the resumed run
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
