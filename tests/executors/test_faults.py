"""Processes that end, are refused or outlive their parent, errors that cannot be sent, clocks that are ahead."""

import copyreg
import errno
import importlib
import os
import select
import signal
import time
from argparse import Namespace
from concurrent.futures import Executor, Future
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import crash

from isobatch.cli.options import Ended, executor_of
from isobatch.errors import EngineError, InputError, WorkerLost
from isobatch.executors import LocalExecutor, Session, local, map_jobs, ray_cluster, remote, shipping


def square(number):
    return number**2


def test_a_process_that_is_ended_between_two_calls_is_made_again():
    with LocalExecutor(1) as pool:
        first = pool.submit(os.getpid).result(60)
        os.kill(first, signal.SIGKILL)
        until = time.monotonic() + 20
        while not pool._all[0]._pool._broken and time.monotonic() < until:
            time.sleep(0.01)
        assert pool.submit(os.getpid).result(60) != first


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_where_the_system_refuses_processes_calls_wait_for_those_that_there_are(monkeypatch, allowed):
    started, real = [], os.fork

    def fork():
        if len(started) >= allowed:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(1)
        return real()

    monkeypatch.setattr(os, "fork", fork)
    refused = pytest.raises(InputError, match=r"no process can be started: .*temporarily unavailable")
    with nullcontext() if allowed else refused:
        assert map_jobs(square, range(6), workers=4) == [0, 1, 4, 9, 16, 25]
    assert len(started) == allowed


def test_processes_end_with_a_parent_that_was_killed(monkeypatch):
    """Or they would keep their memory, their GPU and the lock on an unfinished run from the next call."""
    monkeypatch.setattr(local, "_LOOK", 0.02)
    held, open_as_long = os.pipe()  # by the processes too

    def killed():
        pool = LocalExecutor(2)
        for future in [pool.submit(time.sleep, 0.01) for _ in range(2)]:
            future.result(30)
        pool.submit(time.sleep, 60)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    child = crash.fork(killed)
    os.close(open_as_long)
    assert crash.wait(child) == -signal.SIGKILL
    assert select.select([held], [], [], 20)[0]
    assert os.read(held, 1) == b""
    os.close(held)


@pytest.mark.parametrize("on", ["local", f"{__name__}:Elsewhere"])
def test_a_command_that_trains_runs_is_ended_by_sigterm_as_by_ctrl_c(on):
    """Studies and branches too: jobs of a cluster would go on, and waste its time."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Ended), executor_of(Namespace(on=on, workers=1, device="cpu")):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


class Arguments(Exception):
    """Made with other arguments than those that it keeps."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class Refuses(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


class Changes(Exception):
    def __reduce__(self):
        return str, ("no error at all",)


def fails(kind):
    class Inside(Exception):
        pass

    if kind == "arguments":
        raise Arguments("the loss", "too large")
    if kind == "caused":
        try:
            raise Inside
        except Inside as error:
            raise ValueError("the loss: too large") from error
    raise {"inside": Inside, "refuses": Refuses, "changes": Changes, "fine": ValueError}[kind]("the loss: too large")


def with_causes(error):
    return type(error), error.args, {"causes": (error.__cause__, error.__context__)}


@pytest.mark.parametrize("where", [
    lambda kind: map_jobs(fails, [kind], workers=2),
    lambda kind: remote.invoke(remote.call(fails, kind, shipping.Bundle())),
], ids=["process", "worker"])  # fmt: skip
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("kind", ["arguments", "inside", "refuses", "changes", "fine", "caused"])
def test_an_error_that_cannot_be_sent_comes_in_its_words(kind, chained, where, monkeypatch):
    """Read by the caller it would break the pool: the worker would pass for lost, and memory for short."""
    if chained:  # what Dask's import does to every exception: its causes are sent along
        for of in (ValueError, RuntimeError):
            monkeypatch.setitem(copyreg.dispatch_table, of, with_causes)
    with pytest.raises(Exception, match="the loss: too large") as caught:
        where(kind)
    assert caught.type is (ValueError if kind in ("fine", "caused") else RuntimeError)


class Elsewhere(Executor):
    """Makes each call at once, by a clock that is ahead."""

    def __init__(self, ahead=0):
        self.ahead, self.calls = ahead, 0

    def submit(self, fn, /, *args, **kwargs):
        future, real = Future(), time.time
        self.calls += 1
        with pytest.MonkeyPatch.context() as there:
            there.setattr(time, "time", lambda: real() + self.ahead)
            future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.parametrize(("ahead", "left", "made"), [(0, 30, 3), (-3600, 30, 3), (3600, 30, 3), (3600, -1, 0)])
def test_a_clock_that_is_ahead_does_not_end_the_budget(ahead, left, made):
    executor = Elsewhere(ahead)
    with (
        closing(Session(executor, ends=time.monotonic() + left)) as session,
        pytest.warns(UserWarning, match=r"clock of worker .* is 3600 s ahead") if ahead > 0 < left else nullcontext(),
    ):
        for number in range(3):
            session.add(number, square, number)
        assert len(dict(session.done(range(3)))) == made
    assert executor.calls <= 6


def test_a_disk_that_was_full_when_modules_came_does_not_spoil_later_calls(monkeypatch):
    sent = shipping.Bundle((("module_of_nobody.py", b"N = 1\n"), ("other_of_nobody.py", b"N = 2\n")))
    real = Path.write_bytes

    def full(path, data):
        if path.name == "other_of_nobody.py":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as here:
        here.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"), shipping.unpacked(sent):
            raise AssertionError
    with shipping.unpacked(sent):
        assert imports("other_of_nobody") == 2


def imports(name):
    return importlib.import_module(name).N


def test_a_container_of_the_same_host_and_number_gets_its_modules(monkeypatch):
    made = remote.call(imports, "sent_of_nobody", shipping.Bundle((("sent_of_nobody.py", b"N = 3\n"),)))
    with pytest.raises(InputError, match="cannot import what the run needs"):
        remote.invoke(made)  # the caller itself has no need of them
    monkeypatch.setattr(remote, "_MARK", "another")
    assert remote.answered(remote.invoke(made)) == 3


class RayError(Exception):
    pass


RAY = {name: type(name, (RayError,), {"__module__": "ray.exceptions"}) for name in (
    "RayTaskError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError", "RaySystemError",
)}  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "words"), [
    ("WorkerCrashedError", WorkerLost, "first"),
    ("NodeDiedError", WorkerLost, "first"),
    ("OutOfMemoryError", WorkerLost, "first"),
    ("ObjectLostError", WorkerLost, "first"),  # the machine that held the result
    ("RaySystemError", EngineError, "RaySystemError: first"),
    ("ConnectionError", EngineError, "ConnectionError: first"),  # a server that is gone
    ("RayTaskError", ZeroDivisionError, "of the call"),
])  # fmt: skip
@pytest.mark.parametrize("text", ["first\nsecond", ""])
def test_what_ray_says_is_a_loss_an_engine_that_is_gone_or_an_error_of_the_call(name, kind, words, text):
    error = RAY.get(name, ConnectionError)(text)
    error.cause = ZeroDivisionError("of the call")
    inner, future, cancelled = Future(), Future(), Future()
    inner.set_exception(error)
    cancelled.cancel()
    for one in (future, cancelled):
        ray_cluster._pass_on(SimpleNamespace(RayError=RayError, **RAY), one, inner)
    assert cancelled.cancelled()
    assert type(future.exception(0)) is kind
    assert (words if text else words.replace("first", "")) in str(future.exception(0))


@pytest.mark.parametrize(("error", "kind"), [
    (RAY["RaySystemError"]("gone"), EngineError), (ConnectionError("gone"), EngineError),
    (RuntimeError("after shutdown"), EngineError), (TypeError("of ours"), TypeError),
])  # fmt: skip
def test_an_engine_that_is_gone_when_a_call_is_sent_is_said(error, kind):
    class Gone(Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise error

    with closing(Session(Gone())) as session, pytest.raises(kind, match=str(error)):
        session.add(0, square, 0)
