import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from tests.crash import fork, kill_me, on_call, run, wait

from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError, NonFiniteError, SaveError


def state(seen):
    generator = torch.Generator().manual_seed(seen)
    return {"model": {"w": torch.randn(40, 50, generator=generator), "b": torch.full((3,), float(seen))}, "seen": seen}


def assert_holds(store, *seens):
    step = store.latest()
    loaded = store.load(step)
    assert loaded.seen in seens
    assert loaded.state["seen"] == loaded.seen
    assert torch.equal(loaded.state["model"]["w"], state(loaded.seen)["model"]["w"])
    assert torch.equal(loaded.state["model"]["b"], state(loaded.seen)["model"]["b"])
    return loaded.seen


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "run") as store:
        store.save(state(10), seen=10)
        store.save(state(20), seen=20)
    return tmp_path / "run"


def save_once(folder, asynchronous, seen=30):
    with Checkpoints(folder, asynchronous=asynchronous) as store:
        store.save(state(seen), seen=seen)


def save_and_wait(store, seen):
    store.save(state(seen), seen=seen)
    store.wait()


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_any_file_call_of_a_save(folder, tmp_path, asynchronous, every):  # fault 1
    shutil.copytree(folder, tmp_path / "count")
    stop = on_call(0, kill_me)
    save_once(tmp_path / "count", asynchronous)
    calls, outcomes = stop(), []
    assert calls > 60
    for number in sorted({*range(1, calls, every), calls}):
        copy = tmp_path / f"killed-{number}"
        shutil.copytree(folder, copy)
        assert run(lambda number=number, copy=copy: (on_call(number, kill_me), save_once(copy, asynchronous))) == -9
        store = Checkpoints(copy)
        outcomes.append(assert_holds(store, 20, 30))
        with store:  # the lock died with its process
            assert not [name for name in names(copy) if "tmp" in name]
            store.save(state(40), seen=40)
        assert assert_holds(store, 40) == 40
        assert len(names(copy)) == 2
        shutil.rmtree(copy)
    assert outcomes == sorted(outcomes)  # once renamed it is the newest, before it is nothing
    assert set(outcomes) == {20, 30}


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EACCES"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_disk_that_refuses_at_any_file(folder, monkeypatch, code, asynchronous):  # fault 3
    real, left = os.fsync, [0]

    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with Checkpoints(folder, asynchronous=asynchronous) as store:
        for number in range(1, 5):  # two files of the rank, the manifest, the temporary folder
            left[0] = number
            with pytest.raises(SaveError, match=code) as caught:
                save_and_wait(store, 30)
            assert str(folder) in str(caught.value)
            assert "bytes" in str(caught.value)
            assert names(folder) == ["000001-seen-10", "000002-seen-20"]
            assert assert_holds(store, 20)
        save_and_wait(store, 30)  # and goes on when there is space again
    assert_holds(store, 30)


def test_file_size_limit_names_path_and_bytes(folder):  # fault 3: a quota, for real
    def limited():
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Checkpoints(folder) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            with pytest.raises(SaveError, match=r"00.safetensors: File too large \(EFBIG\) after .* of 8\d\d\d"):
                store.save(state(30), seen=30)
            assert_holds(store, 20)

    assert run(limited) == 0
    assert names(folder) == ["000001-seen-10", "000002-seen-20"]


def test_too_little_space_is_seen_before_writing(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    with Checkpoints(folder) as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
        with pytest.raises(SaveError, match=r"8\d\d\d bytes are needed and 5000 are free"):
            store.save(state(30), seen=30)
    assert_holds(Checkpoints(folder), 20)


def test_folder_without_permission_shows_at_start(open_folder):  # faults 3, 36
    folder = open_folder / "run"
    save_once(folder, False)
    folder.chmod(0o555)
    (folder / "lock").chmod(0o444)

    def refused():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(SaveError, match=r"lock: Permission denied \(EACCES\), \d+ bytes free"):
            Checkpoints(folder).start()
        with pytest.raises(SaveError, match=r"Permission denied \(EACCES\)"):
            Checkpoints(folder / "below").start()
        assert_holds(Checkpoints(folder), 30)  # reading needs no right to write

    assert run(refused) == 0
    folder.chmod(0o755)


@pytest.fixture
def open_folder():
    with tempfile.TemporaryDirectory() as path:  # pytest's own are closed to other users
        Path(path).chmod(0o755)
        yield Path(path)


def test_a_file_where_the_folder_belongs(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(SaveError, match="run: File exists"):
        Checkpoints(tmp_path / "run").start()


def test_two_runs_in_one_folder(folder):  # fault 36
    ready, done = os.pipe(), os.pipe()

    def hold():
        with Checkpoints(folder) as store:
            store.save(state(30), seen=30)
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    pid = fork(hold)
    os.read(ready[0], 1)
    with pytest.raises(InputError, match=rf'another run saves here \(.*"pid": {pid}.*\).*folder of its own'):
        Checkpoints(folder).save(state(50), seen=50)
    assert assert_holds(Checkpoints(folder), 30)  # reading goes on
    os.write(done[1], b"x")
    assert wait(pid) == 0
    save_once(folder, False, seen=50)


def test_two_stores_of_one_process(folder):
    with Checkpoints(folder) as first:
        first.start()
        with pytest.raises(InputError, match=f'"pid": {os.getpid()}'):
            Checkpoints(folder).start()
    save_once(folder, False)
    Checkpoints(folder).start()  # dropped without close
    save_once(folder, False)


def test_a_child_neither_keeps_nor_drops_the_lock(folder):
    ready, gate = os.pipe(), os.pipe()

    def worker():  # a loader worker: it inherits the lock's open file
        os.write(ready[1], b"x")
        os.read(gate[0], 1)

    def parent():
        store = Checkpoints(folder)
        store.start()
        fork(worker)
        os.read(ready[0], 1)
        assert run(lambda: None) == 0  # a child that ends
        with pytest.raises(InputError, match="another run saves here"):
            Checkpoints(folder).start()
        kill_me()

    assert run(parent) == -9
    save_once(folder, False)  # although a worker of the dead run lives on
    os.write(gate[1], b"x")


def test_clock_links_and_strangers_do_not_matter(folder):  # fault 36
    os.utime(folder / "000002-seen-20", (0, 0))
    (folder / "latest").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("mine")
    (folder / "mine.tmp-00ff").mkdir()
    (folder / "000003-seen-30.tmp-00ff").mkdir()
    assert_holds(Checkpoints(folder), 20)
    save_once(folder, False, seen=5)  # a run that went back: the newest save is the latest, not the highest seen
    assert_holds(Checkpoints(folder), 5)
    assert names(folder) == ["000002-seen-20", "000003-seen-5", "latest", "mine.tmp-00ff", "notes.txt"]


def test_nothing_non_finite_is_ever_saved(folder):  # fault 20
    bad = state(30)
    bad["model"]["w"][3, 3] = torch.nan
    with Checkpoints(folder) as store:
        with pytest.raises(NonFiniteError, match=r"'model/w' .* allow_nonfinite=\['model/w'\]") as caught:
            store.save(bad, seen=30)
        assert (caught.value.parameter, caught.value.seen) == ("model/w", 30)
        with pytest.raises(NonFiniteError, match="'best' is inf"):
            store.save({"best": float("inf")}, seen=30)
    assert names(folder) == ["000001-seen-10", "000002-seen-20"]
    with Checkpoints(folder, allow_nonfinite=["model/*", "best"]) as store:
        store.save({**bad, "best": float("-inf")}, seen=30)
        found = store.load().state
    assert found["best"] == float("-inf")
    assert torch.equal(found["model"]["w"].isnan(), bad["model"]["w"].isnan())


@pytest.mark.parametrize("keep", [2, 3])
def test_retention_counts_good_ones_only(folder, keep):
    with Checkpoints(folder, keep=keep) as store:
        for seen in (30, 40, 50):
            store.save(state(seen), seen=seen)
        assert [step.seen for step in store.list()] == [20, 30, 40, 50][-keep:]
        newest = store.list()[-1].path / "rank-00000.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
        store.save(state(60), seen=60)  # 50 is cut short: it does not count, so a good one more stays
        assert [step.seen for step in store.list()] == [20, 30, 40, 50, 60][-keep - 1 :]
        assert_holds(store, 60)


def test_fewer_than_two_are_refused(tmp_path):
    for keep in (1, 0, True):
        with pytest.raises(InputError, match=f"keep={keep}"):
            Checkpoints(tmp_path, keep=keep)


def save_and_raise(folder, what, error, asynchronous):
    with Checkpoints(folder, asynchronous=asynchronous) as store:
        store.save(what, seen=30)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_exception_in_the_run_closes_everything(folder, error, asynchronous):  # fault 37
    threads = threading.active_count()
    with pytest.raises(error, match="from the user"):
        save_and_raise(folder, state(30), error("from the user"), asynchronous)
    assert threading.active_count() == threads
    assert_holds(Checkpoints(folder), 30)
    save_once(folder, False, seen=40)  # the lock is free


def test_the_first_error_stays_the_one_that_is_shown(folder):
    bad = {"w": torch.tensor([torch.nan])}
    with pytest.raises(ValueError, match="from the user") as caught:
        save_and_raise(folder, bad, ValueError("from the user"), asynchronous=True)
    assert "'w'" in caught.value.__notes__[0]
    with pytest.raises(NonFiniteError), Checkpoints(folder, asynchronous=True) as store:
        store.save(bad, seen=30)
    save_once(folder, False, seen=40)


def test_trial_save_fails_before_any_work(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="ENOSPC"):
        Checkpoints(tmp_path).start()
    monkeypatch.undo()
    assert names(tmp_path) == []
    save_once(tmp_path, False)  # the lock was given back
