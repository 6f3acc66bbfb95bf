"""Files that are on the disk when the call returns, with the hash of what was meant to be written."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, SaveError


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

    Args:
        path: the folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
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
