"""One run per folder: a lock that the system drops by itself when its process dies, however it dies."""

import contextlib
import fcntl
import json
import os
import socket
import weakref
from pathlib import Path

from isobatch.checkpoint.files import disk_errors
from isobatch.errors import InputError

_NAME = "lock"


class FolderLock:
    """Exclusive right to write into a folder; held from the call of `take` to `drop`.

    It is a lock on the file `lock` in the folder, not the file's presence, so a killed run leaves nothing to clean up.
    Child processes made by fork do not hold it.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path):
        self._path = folder / _NAME
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock, or refuse with the name of the process that has it.

        Raises:
            InputError: another run, or another object of this one, writes here.
            SaveError: the folder may not be written.
        """
        if self._handle is not None:
            return
        with disk_errors(self._path):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 4096).decode(errors="replace").strip() or "an unnamed process"
            os.close(handle)
            raise InputError(
                f"{self._path.parent}: another run saves here ({holder}); stop it, or give this run a folder of its own"
            ) from None
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)  # a store that is dropped unclosed locks nobody out
        _held.add(self)
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def drop(self) -> None:
        """Give the lock back, also for children that still have its file open; nothing happens where it is not held."""
        if self._handle is not None:
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
