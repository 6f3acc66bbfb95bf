import os
from datetime import timedelta

import pytest
import torch
from tests.crash import fork, kill_me, on_call, wait
from torch import distributed as dist

from isobatch.checkpoint import Checkpoints, load, writer
from isobatch.errors import InputError, NonFiniteError, SaveError


def state(seen, rank):
    return {"w": torch.full((2000,), float(seen)), "rank": rank, "seen": seen}


def launch(folder, world, action, **options):
    """Run action(store, rank) in world gloo processes and return their exit codes."""
    meeting = folder.parent / f"meeting-{os.urandom(4).hex()}"

    def rank_main(rank):
        torch.set_num_threads(1)
        store = dist.FileStore(str(meeting), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=20))
        try:
            with Checkpoints(folder, **options) as checkpoints:
                action(checkpoints, rank)
        finally:
            dist.destroy_process_group()

    pids = [fork(lambda rank=rank: rank_main(rank)) for rank in range(world)]
    return [wait(pid) for pid in pids]


@pytest.fixture
def folder(tmp_path):
    def two(store, rank):
        for seen in (10, 20):
            store.save(state(seen, rank), seen=seen, meta={"batch_plan": [4, 4]})

    assert launch(tmp_path / "run", 2, two) == [0, 0]
    return tmp_path / "run"


def assert_whole(folder, seen, world=2):
    step = Checkpoints(folder).latest()
    assert step.seen == seen
    for rank in range(world):
        loaded = load(step.path, rank=rank, world=world)
        assert (loaded.state["rank"], loaded.state["seen"]) == (rank, seen)
        assert torch.equal(loaded.state["w"], state(seen, rank)["w"])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_rank_keeps_its_own_state(folder, asynchronous):
    def resume(store, rank):
        assert store.load().state["rank"] == rank
        assert store.load(rank=0).state["rank"] == 0
        for seen in (30, 40, 50):
            store.save(state(seen, rank), seen=seen)
        assert store.load().seen == 50

    assert launch(folder, 2, resume, asynchronous=asynchronous) == [0, 0]
    assert_whole(folder, 50)
    assert len(Checkpoints(folder).list()) == 2
    assert len(list(Checkpoints(folder).latest().path.iterdir())) == 5


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("call", [1, 4, 8])
def test_one_rank_killed_in_its_write(folder, victim, call):  # fault 2
    def save(store, rank):
        if rank == victim:
            on_call(call, kill_me)
            store.save(state(30, rank), seen=30)
        with pytest.raises(SaveError, match="a rank was lost"):
            store.save(state(30, rank), seen=30)

    codes = launch(folder, 2, save)
    assert codes[victim] == -9
    assert codes[1 - victim] == 0
    assert_whole(folder, 20)

    def again(store, rank):  # the same step once more, after the crash
        assert store.load().seen == 20
        store.save(state(30, rank), seen=30)

    assert launch(folder, 2, again) == [0, 0]
    assert_whole(folder, 30)
    assert sorted(path.name for path in folder.iterdir()) == ["000002-seen-20", "000003-seen-30", "lock"]


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rank_that_refuses_stops_all(folder, bad, asynchronous):
    def save(store, rank):
        mine = state(30, rank)
        if rank == bad:
            mine["w"][7] = torch.nan
        with pytest.raises(
            NonFiniteError if rank == bad else SaveError, match="'w'" if rank == bad else f"\\[{bad}\\]"
        ):
            save_and_wait(store, mine, 30)
        if rank == bad:
            mine = {"w": object()}
        with pytest.raises(InputError if rank == bad else SaveError):
            save_and_wait(store, mine, 30)
        save_and_wait(store, state(40, rank), 40)

    assert launch(folder, 2, save, asynchronous=asynchronous) == [0, 0]
    assert_whole(folder, 40)


def save_and_wait(store, what, seen):
    store.save(what, seen=seen)
    store.wait()


def test_ranks_at_different_steps_are_not_mixed(folder):
    def save(store, rank):
        with pytest.raises(SaveError):
            store.save(state(30 + rank, rank), seen=30 + rank)

    assert launch(folder, 2, save) == [0, 0]
    assert_whole(folder, 20)


def test_another_world_size_is_refused_with_both(folder):
    def resume(store, rank):
        with pytest.raises(InputError, match=r"field world_size=2, this run has 3; give rank=0"):
            store.load()
        assert store.load(rank=0).world_size == 2
        store.save(state(30, rank), seen=30)

    assert launch(folder, 3, resume) == [0, 0, 0]
    assert_whole(folder, 30, world=3)
    with pytest.raises(InputError, match="field world_size=3, this run has 1"):
        Checkpoints(folder).load()


def test_a_damaged_rank_file_damages_the_step(folder):
    data = folder / "000002-seen-20" / "rank-00001.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"\1")

    def resume(store, rank):
        with pytest.raises(InputError if rank == 0 else SaveError):
            store.latest()
        if rank == 0:
            with pytest.warns(UserWarning, match="passed over: .*rank-00001.safetensors"):
                assert store.load(fallback=True).seen == 10
        else:
            assert store.load(fallback=True).seen == 10

    assert launch(folder, 2, resume) == [0, 0]


def test_a_second_run_is_refused_on_every_rank(folder):
    with Checkpoints(folder) as first:
        first.start()
        codes = launch(folder, 2, lambda store, rank: None)
    assert codes == [1, 1]


def test_exception_on_the_ranks_leaves_no_group_behind(folder):
    def fail(store, rank):
        store.save(state(30, rank), seen=30)
        raise KeyboardInterrupt

    assert launch(folder, 2, fail, asynchronous=True) == [1, 1]
    assert_whole(folder, 30)
    assert writer.scan(folder)[-1].seen == 30
