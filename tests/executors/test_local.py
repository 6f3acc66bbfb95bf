"""Executors on this machine: a lost process costs its call, a poisoned call is named, any executor will do."""

import importlib
import io
import re
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict

import pytest
from tests.executors.tasks_of_users import Found, Once, work
from tests.recipes import recipe

from isobatch.errors import EngineError, InputError, WorkerLost
from isobatch.executors import (
    Line,
    LocalExecutor,
    Session,
    State,
    as_done,
    map_jobs,
    opened,
    remote,
    shipping,
    watching,
)
from isobatch.verify import cells
from isobatch.verify.workers import Job, train_curve

QUADRATIC = {"task": "quadratic", "optimizer": {"lr": 0.1}, "schedule": {"length": "64 samples", "warmup": "0 samples"}}


def jobs(tmp_path, **kills):
    return [Once(n, n, str(tmp_path), kills.get(f"n{n}", 0)) for n in range(6)]


def squares(found):
    return [one.number for one in found]


def test_a_lost_process_costs_its_call_only_and_the_call_is_made_again(tmp_path):
    found = map_jobs(work, jobs(tmp_path, n1=1, n4=2), workers=2)
    assert squares(found) == [0, 1, 4, 9, 16, 25]
    tries = [len(list(tmp_path.glob(f"{n}-*"))) for n in range(6)]
    assert tries == [1, 2, 1, 1, 3, 1]


def test_a_poisoned_call_is_named_after_the_rest_is_done(tmp_path):
    done = []
    with pytest.raises(InputError, match=r"^seed 3 .*ended from outside every time"):
        map_jobs(work, jobs(tmp_path, n3=9), workers=2, on_done=done.append)
    assert sorted(squares(done)) == [0, 1, 4, 16, 25]
    assert len(list(tmp_path.glob("3-*"))) == 3


def test_where_everything_is_poisoned_the_end_comes_early(tmp_path):
    with pytest.raises(InputError, match=r"seed \d.*; seed \d.*; seed \d"):
        map_jobs(work, jobs(tmp_path, **{f"n{n}": 9 for n in range(6)}), workers=2)
    assert len(list(tmp_path.iterdir())) < 18


def test_the_pool_waits_for_its_calls_and_takes_none_after_its_end():
    pool = LocalExecutor(2)
    made = [pool.submit(pow, n, 2) for n in range(5)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(60)
    pool.shutdown()
    assert [future.result(0) for future in made] == [0, 1, 4, 9, 16]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(pow, 2, 2)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor, LocalExecutor])
def test_any_executor_trains_the_same_bits(kind):
    made = [Job("a", recipe(**QUADRATIC), seed, 0, (0, 32, 64)) for seed in range(4)]
    plain = [train_curve(job) for job in made]
    with kind(2) as executor:
        found = map_jobs(train_curve, made, executor=executor)
    assert [one.values for one in found] == [one.values for one in plain]


class Broken(Executor):
    """Makes two calls, then is gone."""

    def __init__(self):
        self.made = 0

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.made += 1
        if self.made <= 2:
            future.set_result(fn(*args, **kwargs))
        else:
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


def test_an_engine_that_is_gone_leaves_what_was_finished_and_a_second_call_makes_the_rest(tmp_path):
    kept = {"name": lambda job: f"{job.number}.json", "read": lambda values: Found(**values)}
    (tmp_path / "tries").mkdir()
    todo = jobs(tmp_path / "tries")
    with pytest.raises(EngineError, match="same command trains only what is missing"):
        cells.run_all(work, todo, tmp_path, executor=Broken(), **kept)
    assert len(list((tmp_path / "cells").iterdir())) == 2
    found = cells.run_all(work, todo, tmp_path, workers=1, **kept)
    assert squares(found) == [0, 1, 4, 9, 16, 25]
    assert len(list((tmp_path / "tries").iterdir())) == 6


class Held(Executor):
    """Makes no call before it is asked to."""

    def __init__(self):
        self.calls = []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append((Future(), fn, args))
        return self.calls[-1][0]

    def make(self, index):
        future, fn, args = self.calls[index]
        future.set_result(fn(*args))


def test_calls_ahead_are_kept_when_they_come_first_and_cancelled_when_nobody_wants_them(tmp_path):
    held, (first, second, third, *_) = Held(), jobs(tmp_path)
    session = Session(held)
    for job in (first, second, third):
        session.add(job.number, work, job)
    held.make(1)
    held.make(0)
    assert [key for key, _ in session.done([0])] == [1, 0]
    session.close()
    assert held.calls[2][0].cancelled()


def test_other_versions_are_refused_and_other_processors_are_named(tmp_path, monkeypatch):
    made = remote.call(work, jobs(tmp_path)[0], shipping.Bundle())
    mine = remote.versions()
    for name in ("isobatch", "torch"):
        monkeypatch.setattr(remote, "versions", lambda name=name: mine | {name: "0.0"})
        with pytest.raises(InputError, match=f"has {name} 0.0, the caller {re.escape(mine[name])}"):
            remote.invoke(made)
    monkeypatch.setattr(remote, "versions", lambda: mine)
    seen = iter(["this", "that", "that"])
    monkeypatch.setattr(remote, "_cpu", lambda: next(seen))
    held = Held()
    session = Session(held)
    for job in jobs(tmp_path)[:3]:
        session.add(job.number, work, job)
    for index in range(3):
        held.make(index)
    with pytest.warns(UserWarning, match="workers differ in processor: this and that") as said:
        list(session.done(range(3)))
    assert len(said) == 1


def test_a_users_module_travels_by_value_with_what_it_imports_and_an_edit_is_seen(tmp_path, monkeypatch):
    (tmp_path / "helper_of_users.py").write_text("FACTOR = 3\n")
    file = tmp_path / "function_of_users.py"
    for factor in (2, 5):
        file.write_text(f"from helper_of_users import FACTOR\ndef times(n):\n    return n * FACTOR * {factor}\n")
        with monkeypatch.context() as here:
            here.syspath_prepend(tmp_path)
            sent = shipping.bundle("function_of_users")
        assert sent.modules == ("function_of_users", "helper_of_users")
        for _ in range(2):  # the second call finds what the first one loaded
            with shipping.unpacked(sent):
                assert importlib.import_module("function_of_users").times(7) == 21 * factor
        assert not {"function_of_users", "helper_of_users"} & set(sys.modules)
    assert shipping.bundle("torch", "math", "operator", "isobatch_of_nobody").files == ()


def test_a_users_module_neither_hides_nor_takes_one_of_its_name(tmp_path, monkeypatch):
    """A worker has another `utils`; beside the task lies a `types.py` that the caller never imported."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, who in ((mine, "mine"), (theirs, "theirs")):
        (folder / "utils_of_all").mkdir(parents=True)
        (folder / "utils_of_all" / "__init__.py").write_text(f"WHO = {who!r}\n")
    (theirs / "utils_of_all" / "more.py").touch()
    (mine / "types.py").write_text("raise RuntimeError('not the one of Python')\n")
    (mine / "task_of_users.py").write_text("import types\nfrom utils_of_all import WHO\n")
    with monkeypatch.context() as here:
        here.syspath_prepend(mine)
        sent = shipping.bundle("task_of_users")
    assert sent.modules == ("task_of_users", "utils_of_all")
    monkeypatch.syspath_prepend(theirs)
    before = importlib.import_module("utils_of_all.more")
    with shipping.unpacked(sent):
        assert importlib.import_module("task_of_users").WHO == "mine"
        assert "utils_of_all.more" not in sys.modules
    assert sys.modules["utils_of_all"].WHO == "theirs"
    assert sys.modules["utils_of_all.more"] is before
    assert "task_of_users" not in sys.modules
    for name in ("utils_of_all", "utils_of_all.more"):
        del sys.modules[name]


def fails_without(what):
    raise ModuleNotFoundError("No module named 'nowhere'") if what == "module" else FileNotFoundError(2, "no", "d.csv")


@pytest.mark.parametrize(("what", "message"), [
    ("module", "cannot import what the run needs.*install it there"),
    ("file", "has no file d.csv.*put data where every worker finds it"),
])  # fmt: skip
def test_what_a_worker_lacks_is_said(what, message):
    with pytest.raises(InputError, match=message):
        remote.invoke(remote.call(fails_without, what, shipping.Bundle()))


def test_progress_counts_what_is_done_runs_and_waits(tmp_path):
    seen = []
    with watching(lambda state: seen.append((state.done, state.running, state.waiting, state.failed, state.lost))):
        map_jobs(work, jobs(tmp_path, n0=1), workers=2)
        with pytest.raises(InputError, match="seed 3"):
            map_jobs(work, jobs(tmp_path, n3=9), workers=2)
    assert seen[0] == (0, 2, 4, 0, 0)
    assert (6, 0, 0, 0, 1) in seen
    assert seen[-1] == (6, 0, 0, 1, 3)
    state = State(width=2, total=10, done=4, failed=1, lost=1, began=time.monotonic() - 60)
    assert str(state) == (
        "4 of 10 runs, 2 running, 4 waiting, 4 a minute, about 1.5 minutes left, 1 failed, workers lost 1 times"
    )


class Output(io.StringIO):
    """A stream that is a terminal, a notebook's, or neither."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def isatty(self):
        return self.kind == "terminal"


class Notebook(Output):
    """As a kernel's."""


Notebook.__module__ = "ipykernel.iostream"


@pytest.mark.parametrize("stream", [Output("terminal"), Notebook("notebook"), Output("log")], ids=lambda one: one.kind)
def test_a_line_of_progress_goes_over_sessions_and_suits_where_it_is_written(stream, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line = Line(stream)
    line(State(width=2, total=3, done=3))  # a look beforehand that does not count
    line.start(20)
    first, second = State(width=2, total=8), State(width=4, total=10)
    for seconds, state, done, failed in ((10, first, 4, 1), (80, first, 8, 1), (90, second, 2, 0), (150, second, 6, 1)):
        now[0], state.done, state.failed = 100.0 + seconds, done, failed
        line(state, 2)  # 2 of the 20 were there already
    end = "14 of 18 runs, 4 running, 0 waiting, 5.6 a minute, about 0.7 minutes left, 2 failed"
    said = stream.getvalue()
    if stream.kind == "log":
        assert said.splitlines()[-1] == f"isobatch: {end}"
        assert len(said.splitlines()) == 2
    else:
        assert said.split("\r")[-1].rstrip() == end
        assert "\n" not in said


def nap(seconds):
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("kind", [None, ThreadPoolExecutor])
def test_after_the_budget_what_runs_comes_in_and_what_waits_is_left(kind):
    with kind(2) if kind else nullcontext() as executor:
        session = Session(executor, workers=None if kind else 2, ends=time.monotonic() + 0.8)
        for index in range(12):
            session.add(index, nap, 0.2)
        with closing(session):
            found = dict(session.done(range(12)))
    assert 2 <= len(found) <= 10


def test_one_process_keeps_to_the_budget_too(tmp_path):
    kept = {"name": lambda job: f"{job.number}.json", "read": lambda values: Found(**values)}
    assert cells.run_all(work, jobs(tmp_path), tmp_path, workers=1, ends=time.monotonic() + 0.015, **kept) is None
    assert 1 <= len(list((tmp_path / "cells").iterdir())) < 6
    assert squares(cells.run_all(work, jobs(tmp_path), tmp_path, workers=1, **kept)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize(("on", "message"), [
    ("nowhere", "must be one of: local, dask"),
    ("no_such_module:pool", "cannot import no_such_module"),
    ("math:pi", "it must be a concurrent.futures.Executor"),
    ("local?gpus=1", "local takes no options"),
    ("ray?gpus=many", "must be a number"),
    ("ray?color=1", "must be one of cpus, gpus, memory_gb"),
    ("slurm:partition", "must be name=value"),
])  # fmt: skip
def test_a_name_that_is_none_is_refused_with_the_names_there_are(on, message):
    with pytest.raises(InputError, match=message), opened(on):
        raise AssertionError(on)


def pool():
    return ThreadPoolExecutor(1)


SHARED = ThreadPoolExecutor(1)


@pytest.mark.parametrize(("name", "ends"), [("pool", True), ("SHARED", False)])
def test_any_executor_can_be_named_and_one_that_is_made_for_the_call_ends_with_it(name, ends):
    with opened(f"{__name__}:{name}") as executor:
        assert isinstance(executor, ThreadPoolExecutor)
        assert dict(as_done(str, [1, 2], executor=executor)) == {0: "1", 1: "2"}
    with pytest.raises(RuntimeError, match="after shutdown") if ends else nullcontext():
        executor.submit(str, 3)


def test_an_error_of_the_engine_is_told_from_one_of_the_call():
    with pytest.raises(WorkerLost):
        raise WorkerLost("x")
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="invalid literal"):
        map_jobs(int, ["a"], executor=executor)
    assert asdict(Found(1, 2)) == {"number": 1, "process": 2}
