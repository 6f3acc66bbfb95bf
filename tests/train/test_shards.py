"""Training on shards: the steps of one process, checkpoints in parts, and any number of ranks that take them up."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from tests.crash import kill_me, on_call, run
from tests.gloo import world
from tests.jobs import TOML, signalled, start
from tests.recipes import recipe
from tests.shards import Largest, whole
from torch.distributed.tensor import DTensor

from isobatch.checkpoint import Checkpoints, load, load_model, load_optimizer, model_state, optimizer_state, placed
from isobatch.errors import NonFiniteError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import Guard, StepVerdict, Trainer
from isobatch.train.world import World

SIZES = [12, 12, 11, 1, 7, 12, 25, 12]
RUNS = {
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "clip": 0.5}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, "batch": {"size": 12, "micro": 2}},
    "invariant": {
        "optimizer": {"name": "invariant-adamw", "lr": 1e-3, "weight_decay": 0.1, "reference_batch": 1},
        "batch": {"size": 12, "micro": 4},
    },
    "noise": {"optimizer": {"name": "adamw", "lr": 1e-3}, "noise": {}},
}
JOB = recipe(
    task="digits", data_size=1437, options={"width": 8}, batch={"size": 24}, ema={"decay": 0.9},
    optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0},
    schedule={"length": "481 samples", "warmup": "48 samples"},
)  # fmt: skip


def trainer(*, shards, patience=0, **parts):
    made = recipe(**{
        "task": "digits", "data_size": 1437, "batch": {"size": 12}, "options": {"width": 8},
        "schedule": {"length": "600 samples", "warmup": "60 samples"}, "ema": {"decay": 0.9}, **parts,
    })  # fmt: skip
    one = make_run(made, 0)
    one.model.double()
    assert isinstance(one.samples, TensorSamples)
    one.samples = TensorSamples(*(t.double() if t.is_floating_point() else t for t in one.samples.tensors))
    return Trainer(
        one, made, order_seed=1, guard=Guard(patience), world=World.current(shards=True) if shards else World()
    )


def numbers(one):
    """Every tensor that a step may move, whole, by name; collective."""
    found = {f"model/{name}": value for name, value in one.run.model.state_dict().items()}
    for name, parameter in one.run.model.named_parameters():
        assert isinstance(parameter, DTensor) == one.world.shards
        for key, value in one.optimizer.state[parameter].items():
            found[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    found |= {f"average/{name}": value for name, value in one.average.average().items()}
    return {name: whole(value) for name, value in found.items()}


def same(got, wanted, within, why=""):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=within, msg=f"{why} {name}")


def steps_of_one_process():
    for name, parts in RUNS.items():
        sharded, alone = trainer(shards=True, **parts), trainer(shards=False, **parts)
        for size in SIZES:
            here, there = sharded.step(size), alone.step(size)
            assert here.loss == pytest.approx(there.loss, rel=1e-9), name
        same(numbers(sharded), numbers(alone), 1e-9, name)
        torch.testing.assert_close(averaged(sharded), averaged(alone), rtol=1e-9, atol=1e-9)
        assert sharded.step(12).loss == pytest.approx(alone.step(12).loss, rel=1e-9), name


def averaged(one):
    """What the averaged weights say; afterwards the root of FSDP2 must be sharded again."""
    x, *_ = one.run.samples[torch.arange(5)]
    with torch.no_grad(), one.average.applied(one.run.model):
        return one.run.model(x)


def one_verdict(rank):
    one = trainer(shards=True, patience=1, **RUNS["momentum"])
    one.step(12)
    before = numbers(one)
    last = [module for module in one.run.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    spoil = last.register_forward_hook(lambda module, inputs, output: output * (float("nan") if rank == 1 else 1.0))
    step = one.step(12)
    assert step.verdict is StepVerdict.SKIP
    same(numbers(one), before, 0.0)
    with pytest.raises(NonFiniteError):
        one.step(12)
    spoil.remove()


def states_move(folder):
    """A sharded state is saved in parts, and goes into shards and, outside of the world, into whole weights."""
    one = trainer(shards=True, **RUNS["adamw"])
    one.step(12)
    with Checkpoints(folder) as store:
        store.save({"model": model_state(one.run.model)}, seen=12)
        again = trainer(shards=True, **RUNS["adamw"])
        load_model(again.run.model, store.load().state["model"])
    same({n: whole(t) for n, t in again.run.model.state_dict().items()},
         {n: whole(t) for n, t in one.run.model.state_dict().items()}, 0.0)  # fmt: skip
    load_model(again.run.model, make_run(JOB, 3).model.double().state_dict())


def no_whole_copy(folder):
    """Neither a save nor a load makes a tensor that is larger than this rank's part of the largest layer."""
    model = torch.nn.Sequential(torch.nn.Linear(256, 64, bias=False), torch.nn.Linear(64, 4, bias=False)).double()
    World.current(shards=True).shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 256).double()).sum().backward()
    optimizer.step()
    with Checkpoints(folder) as store, Largest() as largest:
        state = {"model": model_state(model), "optimizer": optimizer_state(optimizer, model)}
        store.save(state, seen=1)
        found = store.load().state
        load_model(model, found["model"])
        load_optimizer(optimizer, model, found["optimizer"])
    assert 0 < largest.found <= 256 * 64 * 8 // World.current().size, largest.found


def test_two_ranks(tmp_path):
    def act(rank):
        steps_of_one_process()
        one_verdict(rank)
        states_move(tmp_path / "store")
        no_whole_copy(tmp_path / "large")

    world(2, tmp_path, act)
    stored = load(next((tmp_path / "store").glob("0*"))).state["model"]
    plain = make_run(JOB, 0).model.double()
    load_model(plain, stored)
    assert all(torch.equal(value, placed(stored[name], None)) for name, value in plain.state_dict().items())


STAGES = [(4, 24, 5), (2, 36, 3), (3, 12, 4), (1, 24, None)]  # ranks, batch, ended by a signal in this step


def stages(out, *, shard):
    for number, (size, batch, at) in enumerate(STAGES):

        def act(rank, number=number, batch=batch, at=at):
            hook = None if at is None else signalled(signal.SIGTERM, at)
            start(out, made=JOB, on_step=hook, resume=number > 0, batch_size=batch, shard=shard)

        if shard and size > 1:
            world(size, out.parent, act)
        else:
            assert run(lambda act=act: act(0)) == 0
    return stored_numbers(out)


def stored_numbers(out):
    newest = Checkpoints(out / "checkpoints").latest()
    state = placed(load(newest.path).state, None)
    found = {f"model/{name}": value for name, value in state["model"].items()}
    found |= {f"average/{name}": value for name, value in state["average"]["tensors"].items()}
    for name, entry in state["optimizer"]["state"].items():
        found |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in entry.items()}
    return found | {f"clock/{key}": torch.tensor(float(value)) for key, value in state["clock"].items()}


@pytest.mark.slow
def test_four_then_two_then_three_then_one_with_the_batch_changed_on_the_way(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "alone").mkdir()
    same(stages(tmp_path / "shards" / "out", shard=True), stages(tmp_path / "alone" / "out", shard=False), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("victim", "at"), [("last", 1), ("last", 5), ("last", 9), ("first", 12), ("first", 20)])
def test_a_rank_that_is_killed_in_a_save_leaves_the_step_before_whole(size, victim, at, tmp_path):
    out = tmp_path / "out"
    world(size, tmp_path, lambda rank: start(out, made=JOB, shard=True, on_step=signalled(signal.SIGTERM, 3)))
    before = stored_numbers(out)

    def act(rank):
        one = trainer(shards=True, **RUNS["adamw"])
        one.step(12)
        with Checkpoints(out / "checkpoints") as store:
            if rank == (0 if victim == "first" else size - 1):
                on_call(at, kill_me)
            store.save({"model": model_state(one.run.model)}, seen=99)

    with pytest.raises(AssertionError):
        world(size, tmp_path, act)
    newest = Checkpoints(out / "checkpoints").latest()
    if newest.seen != 99:
        same(stored_numbers(out), before, 0.0)
    assert newest.seen in (72, 99)


@pytest.mark.slow
def test_torchrun_with_shards(tmp_path):
    file, out = tmp_path / "recipe.toml", tmp_path / "out"
    file.write_text(TOML)
    words = [str(file), "--out", str(out), "--shard", "--every", "240 samples", "--json"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "isobatch", "train", *words]
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["seen"] == 481
    names = {path.name for path in Checkpoints(out / "checkpoints").latest().path.iterdir()}
    parts = {f"rank-{rank:05d}.{kind}" for rank in range(2) for kind in ("json", "safetensors")}
    assert names == parts | {"manifest.json"}
