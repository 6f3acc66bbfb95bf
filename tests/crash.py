"""Forked children for tests that kill, fill and forbid: the parent looks at what is left."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable

CALLS = {"mkdir", "open", "write", "flush", "fsync", "rename", "unlink", "rmdir", "close", "readinto", "flock"}


def fork(action: Callable[[], object]) -> int:
    """Start an action in a forked child and return its pid; the child exits with 0, or 1 after an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking beside threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.alarm(60)  # no child outlives a test that failed
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Return the exit code of a child; minus the signal when one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(action: Callable[[], object]) -> int:
    return wait(fork(action))


def on_call(number: int, action: Callable[[], object]) -> Callable[[], int]:
    """Run an action just before the number-th call into the file system, in any thread; returns the count of calls."""
    count = 0

    def profile(frame, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in CALLS:
            count += 1
            if count == number:
                action()

    threading.setprofile(profile)
    sys.setprofile(profile)

    def stop() -> int:
        sys.setprofile(None)
        threading.setprofile(None)
        return count

    return stop


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
