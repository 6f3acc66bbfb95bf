import os
import signal
import threading
import time

import pytest
import torch
from tests.crash import fork, run, wait

from isobatch.checkpoint import Checkpoints, Preempted, Preemption, writer
from isobatch.errors import InputError

SIGNALS = [signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_a_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert (preemption.requested, preemption.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (preemption.requested, preemption.exit_code) == (True, 128 + number)
    assert signal.getsignal(number) is before
    with preemption:  # entered again, it begins again
        assert not preemption.requested


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_leaves_at_once(second):
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Preempted, match=f"second signal .{second.name}"):
        two_signals(second)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not issubclass(Preempted, Exception)


def two_signals(second, grace=0.0):
    with Preemption(grace=grace):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            os.kill(os.getpid(), second)
            time.sleep(0.01)
        except Exception:  # what a careless caller does must not hold it up
            pytest.fail("swallowed")


def test_a_launcher_that_sends_twice_is_one_request():
    two_signals(signal.SIGTERM, grace=5.0)


def test_only_the_main_thread_receives_signals():
    errors = []

    def enter():
        try:
            Preemption().__enter__()
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter, name="other")
    thread.start()
    thread.join()
    assert "thread 'other'" in errors[0]
    with pytest.raises(InputError, match="grace=-1"):
        Preemption(grace=-1)


PHASES = ["warm-up", "accumulation", "step", "evaluation", "save"]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_signal_in_any_phase_saves_at_the_next_step_boundary(tmp_path, phase, number, asynchronous):  # fault 7
    def hit(now, step):
        if now == phase and step == (2 if phase == "warm-up" else 6):
            os.kill(os.getpid(), number)

    def train():
        weight, seen = torch.zeros(3), 0
        with Preemption() as preemption, Checkpoints(tmp_path, asynchronous=asynchronous) as store:
            for step in range(100):
                hit("warm-up", step)
                weight += 0.5
                hit("accumulation", step)
                weight += 0.5
                hit("step", step)
                seen += 8
                hit("evaluation", step)
                if step % 3 == 0:
                    store.save({"w": weight}, seen=seen)
                    hit("save", step)
                if preemption.requested:
                    store.save({"w": weight}, seen=seen)
                    break
        os._exit(preemption.exit_code)

    assert run(train) == 128 + number
    loaded = Checkpoints(tmp_path).load()
    assert loaded.seen == 8 * (3 if phase == "warm-up" else 7)
    assert torch.equal(loaded.state["w"], torch.full((3,), loaded.seen / 8))


def test_a_second_signal_inside_a_save_leaves_the_older_one(tmp_path):
    ready = os.pipe()

    def train():
        with Preemption() as preemption, Checkpoints(tmp_path) as store:
            store.save({"w": torch.ones(3)}, seen=8)

            def slow(*arguments):
                os.write(ready[1], b"x")
                while True:  # a blocking read would miss a signal that comes just before it
                    time.sleep(0.01)

            writer.seal = slow
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.requested
            with pytest.raises(Preempted):
                store.save({"w": torch.zeros(3)}, seen=16)

    pid = fork(train)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGUSR1)
    assert wait(pid) == 0
    assert Checkpoints(tmp_path).load().seen == 8
    assert any("tmp" in path.name for path in tmp_path.iterdir())
    with Checkpoints(tmp_path) as store:
        store.save({"w": torch.zeros(3)}, seen=16)
    assert not any("tmp" in path.name for path in tmp_path.iterdir())
