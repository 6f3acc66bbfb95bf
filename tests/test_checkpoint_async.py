import threading
import time

import pytest
import torch

from isobatch.checkpoint import Checkpoints, load, writer
from isobatch.errors import NonFiniteError, SaveError


@pytest.fixture
def gate(monkeypatch):
    """Saves wait in front of the disk until the gate opens; the trial save does not."""
    opened, real = threading.Event(), writer.write_step

    def slow(folder, content, ranks):
        assert opened.wait(10)
        return real(folder, content, ranks)

    monkeypatch.setattr(writer, "write_step", slow)
    return opened


def weights(value):
    return {"w": torch.full((1000,), float(value)), "history": [value], "step": torch.tensor(value)}


def test_the_file_holds_the_values_of_the_call(tmp_path, gate):  # fault 33
    state = weights(1)
    with Checkpoints(tmp_path, asynchronous=True) as store:
        store.save(state, seen=10, meta={"drawn": 1})
        state["w"] += 5
        state["w"][3] = torch.nan
        state["step"].zero_()
        state["history"].append(2)
        state["new"] = 3
        assert store.list() == []
        gate.set()
        assert str(store.load().state) == str(weights(1))


def test_one_save_is_in_flight_at_most(tmp_path, gate):
    before = threading.active_count()
    with Checkpoints(tmp_path, asynchronous=True) as store:
        store.save(weights(1), seen=1)
        assert threading.active_count() == before + 1
        opener = threading.Timer(0.1, gate.set)
        opener.start()
        started = time.monotonic()
        store.save(weights(2), seen=2)  # waits for the first
        assert time.monotonic() - started > 0.05
        opener.join()
        assert threading.active_count() <= before + 1
        assert store.list()[0].seen == 1
    assert [step.seen for step in store.list()] == [1, 2]
    assert threading.active_count() == before


def test_consecutive_saves_differ_and_equal_synchronous_ones(tmp_path):  # fault 34
    generator, state = torch.Generator().manual_seed(0), {"w": torch.zeros(50, 60), "n": 0}
    with Checkpoints(tmp_path / "a", keep=9, asynchronous=True) as late, Checkpoints(tmp_path / "s", keep=9) as now:
        for seen in range(6):
            state["w"] += torch.randn(50, 60, generator=generator)
            state["n"] += 1
            late.save(state, seen=seen)
            now.save(state, seen=seen)
    for ours, theirs in zip(late.list(), now.list(), strict=True):
        for name in ("rank-00000.json", "rank-00000.safetensors"):
            assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes()
    assert len({(step.path / "rank-00000.safetensors").read_bytes() for step in late.list()}) == 6


@pytest.mark.parametrize("call", ["save", "wait", "check", "latest", "load"])
def test_a_failure_is_raised_by_the_next_call_and_once(tmp_path, call):
    calls = {
        "save": lambda store: store.save(weights(3), seen=3),
        "wait": Checkpoints.wait,
        "check": Checkpoints.check,
        "latest": Checkpoints.latest,
        "load": Checkpoints.load,
    }
    with Checkpoints(tmp_path, asynchronous=True) as store:
        store.save(weights(1), seen=1)
        store.save({"w": torch.tensor([torch.inf])}, seen=2)
        while call == "check" and any(thread.name == "isobatch-save" for thread in threading.enumerate()):
            time.sleep(0.01)
        with pytest.raises(NonFiniteError, match="'w'"):
            calls[call](store)
        store.save(weights(4), seen=4)
        assert store.load().seen == 4
    assert [step.seen for step in store.list()] == [1, 4]


def test_check_does_not_wait(tmp_path, gate):
    with Checkpoints(tmp_path, asynchronous=True) as store:
        store.save(weights(1), seen=1)
        store.check()
        assert store.list() == []
        gate.set()


def test_failures_of_every_kind_surface(tmp_path, monkeypatch):
    class Strange(BaseException):
        pass

    def fail(*arguments):
        raise Strange("not an Exception")

    with Checkpoints(tmp_path, asynchronous=True) as store:
        store.start()
        monkeypatch.setattr(writer, "write_step", fail)
        store.save(weights(1), seen=1)
        with pytest.raises(Strange):
            store.wait()


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as store:
        for seen in (1, 2):
            store.save(weights(seen), seen=seen)

        def stuck(step):
            raise SaveError(f"{step.path}: busy")

        monkeypatch.setattr(writer, "remove", stuck)
        with pytest.warns(UserWarning, match="an old checkpoint stays: .*busy"):
            store.save(weights(3), seen=3)
        monkeypatch.undo()
        store.save(weights(4), seen=4)
        assert [step.seen for step in store.list()] == [3, 4]
        assert load(store.latest().path).seen == 4


def test_reserved_memory_is_taken_once_and_holds_the_same_copies(tmp_path):
    before, state = threading.active_count(), weights(1)
    with Checkpoints(tmp_path, asynchronous=True) as store:
        assert store.cold
        store.reserve({**state, "mask": torch.tensor(torch.nan)})  # values do not matter yet
        assert not store.cold
        block = store._arena._block.data_ptr()
        store.save(state, seen=1)
        state["w"] += 1
        assert str(store.load().state) == str(weights(1))
        store.reserve({"w": torch.zeros(3)})
        store.save(weights(2), seen=2)
        assert store._arena._block.data_ptr() == block
        store.reserve({"w": torch.zeros(4000)})
        store.save({"w": torch.ones(4000)}, seen=3)
        assert store.load().state["w"].sum() == 4000
        store.reserve({"w": torch.zeros(1 << 22)})
    assert threading.active_count() == before
    with Checkpoints(tmp_path) as store:
        assert not store.cold  # a synchronous save copies nothing
        store.reserve(state)
        assert len(store._arena) == 0
