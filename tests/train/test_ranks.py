"""Many processes are one: the same weights, the same verdict on the same step, every sample once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.gloo import world
from tests.recipes import recipe

from isobatch.checkpoint import Checkpoints
from isobatch.errors import NonFiniteError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import Guard, StepVerdict, Trainer
from isobatch.train.persistence import restore, state_of
from isobatch.train.world import World

OPTIMIZERS = {
    "momentum": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "clip": 0.5},
    "adamw": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    "lars": {"name": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 0.01},
    "lamb": {"name": "lamb", "lr": 0.01, "weight_decay": 0.1},
    "adamp": {"name": "adamp", "lr": 1e-3, "weight_decay": 0.1},
    "invariant": {"name": "invariant-adamw", "lr": 1e-3, "weight_decay": 0.1, "reference_batch": 1},
}
# even, uneven, and fewer samples than three ranks
SIZES = [12, 12, 11, 2, 7, 12, 25, 12]


def trainer(*, samples=None, patience=0, task="digits", **parts):
    made = recipe(**{
        "task": task, "data_size": 1437, "batch": {"size": 12}, "options": {"width": 8},
        "schedule": {"length": "600 samples", "warmup": "60 samples"}, "ema": {"decay": 0.9}, **parts,
    })  # fmt: skip
    run = make_run(made, 0)
    run.model.double()
    assert isinstance(run.samples, TensorSamples)
    tensors = [t.double() if t.is_floating_point() else t for t in run.samples.tensors]
    run.samples = TensorSamples(*(t[:samples] for t in tensors))
    return Trainer(run, made, order_seed=1, guard=Guard(patience))


def numbers(one):
    """Every tensor that a step may move, by name, on any rank."""
    found = {f"model/{name}": value for name, value in one.run.model.state_dict().items()}
    for name, parameter in one.run.model.named_parameters():
        for key, value in one.optimizer.state[parameter].items():
            found[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    if one.average is not None:
        found |= {f"average/{name}": value for name, value in one.average.average().items()}
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def same(got, wanted, within):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=within, msg=name)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_world_takes_the_steps_of_one_process(name, micro, size, tmp_path):
    def steps(one):
        return [one.step(batch).loss for batch in SIZES]

    def ranked(rank):
        one = trainer(optimizer=OPTIMIZERS[name], batch={"size": 12, "micro": micro})
        losses = steps(one)
        save_file(numbers(one) | {"losses": torch.tensor(losses, dtype=torch.float64)}, tmp_path / f"{rank}")

    world(size, tmp_path, ranked)
    alone = trainer(optimizer=OPTIMIZERS[name])
    losses = steps(alone)
    first = load_file(tmp_path / "0")
    for rank in range(1, size):
        same(load_file(tmp_path / f"{rank}"), first, within=0)
    assert first.pop("losses").tolist() == pytest.approx(losses, rel=1e-12)
    same(first, numbers(alone), within=1e-12)


def test_the_noise_over_ranks_is_that_of_the_same_chunks(tmp_path):
    """Chunks of four samples: the second moment is that of one process which accumulates over the same chunks."""
    optimizer = {**OPTIMIZERS["invariant"], "reference_batch": 4}
    sizes = [24, 24, 48, 24, 12, 24]

    def ranked(rank):
        one = trainer(optimizer=optimizer)
        for batch in sizes:
            one.step(batch)
        save_file(numbers(one), tmp_path / f"{rank}")

    world(3, tmp_path, ranked)
    alone = trainer(optimizer=optimizer)
    for batch in sizes:
        alone.step(batch)
    same(load_file(tmp_path / "0"), numbers(alone), within=1e-12)


def poison(one, rank, where):
    """Spoil the step on one rank: in its loss, so that the exchange carries it everywhere, or in its verdict alone."""
    if rank != 1:
        return lambda: None
    if where == "loss":
        step, healthy = one.gradient.run_, one.gradient.run_.loss
        step.loss = lambda model, batch: healthy(model, batch) * float("nan")
        return lambda: setattr(step, "loss", healthy)
    judge = one.guard.judge
    one.guard.judge = lambda loss, *rest: judge(float("nan"), *rest)
    return lambda: setattr(one.guard, "judge", judge)


@pytest.mark.parametrize("where", ["loss", "verdict"])
@pytest.mark.parametrize("task", ["digits", "digits-cnn"])
def test_what_is_bad_on_one_rank_is_skipped_by_all(task, where, tmp_path):
    norm = {"batch_norm": {"momentum": 0.1}} if task == "digits-cnn" else {}

    def ranked(rank):
        one = trainer(task=task, patience=1, optimizer=OPTIMIZERS["adamw"], **norm)
        one.step(), one.step(24)
        before, seen, drawn = numbers(one), one.seen, one.drawn
        heal = poison(one, rank, where)
        step = one.step(12)
        assert step.verdict is StepVerdict.SKIP
        assert "another rank" in step.reason or where == "loss" or rank == 1
        assert (one.seen, one.drawn, one.steps, one.skipped) == (seen, drawn + 12, 2, 1)
        same(numbers(one), before, within=0)
        with pytest.raises(NonFiniteError, match="step 3 with 36 samples"):
            one.step(12)
        assert (one.seen, one.drawn, one.skipped) == (seen, drawn + 12, 1)
        same(numbers(one), before, within=0)
        heal()
        assert one.step(12).verdict is StepVerdict.APPLY
        (tmp_path / f"done-{rank}").touch()

    world(3, tmp_path, ranked)
    assert len(list(tmp_path.glob("done-*"))) == 3


class Recorder:
    """Samples that remember which were asked for."""

    def __init__(self, samples):
        self.samples, self.drawn = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, indices):
        self.drawn += indices.tolist()
        return self.samples[indices]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_job_whose_world_changes_is_the_job_of_one_process(name, tmp_path):
    """1 -> 2 -> 4 -> 3 -> 1 processes through the disk, with a global batch of 13 and epochs of 60 samples."""
    parts = {"optimizer": OPTIMIZERS[name], "batch": {"size": 13}, "samples": 60, "data_size": 1437}
    stages, each = [1, 2, 4, 3, 1], 4

    def stage(number, rank):
        one = trainer(**parts)
        one.run.samples = recorder = Recorder(one.run.samples)
        one.gradient.run_.samples = recorder
        steps = []
        with Checkpoints(tmp_path / "run") as store:
            if number:
                found = store.load(rank=0)
                assert found.world_size == stages[number - 1]
                restore(one, found.state)
            assert one.seen == 13 * each * number
            for _ in range(each):
                one.step()
                steps.append(recorder.drawn[:])
                recorder.drawn.clear()
            store.save(state_of(one), seen=one.seen)
        if rank == 0:
            save_file(numbers(one), tmp_path / f"weights-{number}")
        (tmp_path / f"drawn-{number}-{rank}").write_text(json.dumps(steps))

    for number, size in enumerate(stages):
        world(size, tmp_path, lambda rank, number=number: stage(number, rank))
    stream = drawn(tmp_path, stages, each)
    assert len(stream) == 13 * each * len(stages)
    for start in range(0, len(stream) - 60, 60):
        assert sorted(stream[start : start + 60]) == list(range(60))
    alone = trainer(**parts)
    for number in range(len(stages)):
        for _ in range(each):
            alone.step()
        same(load_file(tmp_path / f"weights-{number}"), numbers(alone), within=1e-10)


def drawn(folder: Path, stages: list[int], each: int) -> list[int]:
    """The samples in the order of the steps, and of the ranks within a step."""
    stream = []
    for number, size in enumerate(stages):
        ranks = [json.loads((folder / f"drawn-{number}-{rank}").read_text()) for rank in range(size)]
        for step in range(each):
            stream += [index for rank in ranks for index in rank[step]]
    return stream


@pytest.mark.parametrize(("backend", "device"), [("gloo", "cpu"), ("nccl", "cuda:1")])
def test_numbers_are_sent_from_where_the_backend_takes_them(backend, device, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(World, "group", None)
    assert World(0, 2).place == torch.device(device)
    assert World().place == torch.device("cpu")
