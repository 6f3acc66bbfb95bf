"""Ranks with nothing: the last batch is shorter than the world, and every collective still has a partner."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.gloo import world
from tests.recipes import recipe
from torch import nn

from isobatch import InputError
from isobatch.data import OrderBatchSampler, RepeatedBatchSampler, SampleOrder, TokenBatches, TokenBatchSampler
from isobatch.tasks import Run, TensorSamples
from isobatch.train import Trainer

RANKS, LAST = 3, (12, 2, 1, 12, 1)
NORMS = {
    "none": nn.Identity,
    "layer": lambda: nn.LayerNorm(6),
    "group": lambda: nn.GroupNorm(2, 6),
    "batch": lambda: nn.BatchNorm1d(6),
    "batch without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False, affine=False),
    "frozen batch": lambda: nn.BatchNorm1d(6).eval(),
}
EXTRAS = {
    "plain": {},
    "average": {"ema": {"decay": 0.9}},
    "clipped": {"optimizer": {"name": "sgd", "lr": 0.05, "clip": 0.1}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}},
    "invariant": {"optimizer": {"name": "invariant-adamw", "lr": 0.01, "reference_batch": 1}},
    "micro-batches": {"batch": {"size": 12, "micro": 2}},
    "noise": {"noise": {"every": 1}},
}


def made(norm="none", counts=None, **parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), NORMS[norm](), nn.Linear(6, 1)).double()
    x = torch.randn(60, 4, dtype=torch.float64)
    run = Run(
        model, TensorSamples(x, x.sum(1, keepdim=True)), lambda net, b: (net(b[0]) - b[1]).square().mean(),
        lambda net: {"loss": 0.0}, counts=counts,
    )  # fmt: skip
    settings = {
        "task": "digits", "data_size": 60, "batch": {"size": 12}, "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"length": "600 samples", "warmup": "0 samples"}, **parts,
    }  # fmt: skip
    return Trainer(run, recipe(**settings))


def weights(one):
    return {name: value.detach().clone() for name, value in one.run.model.named_parameters()}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_batch_of_fewer_samples_than_ranks_is_a_step_like_any_other(name, tmp_path):
    def ranked(rank):
        one = made(**EXTRAS[name])
        for size in LAST:
            one.step(size)
        save_file(weights(one), tmp_path / f"{rank}")

    world(RANKS, tmp_path, ranked)
    alone = made(**EXTRAS[name])
    for size in LAST:
        alone.step(size)
    for rank in range(RANKS):
        for key, value in load_file(tmp_path / f"{rank}").items():
            torch.testing.assert_close(value, weights(alone)[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_stand_in_moves_no_statistics(norm, tmp_path):
    """Four samples on three ranks, none on the third: its stand-in is one sample, of which batch norm has no variance.

    DDP gives every rank the first one's statistics before a pass; the third leaves them as they came.
    """

    def ranked(rank):
        one, sizes = made(norm), [2, 2, 0]
        one.step(12)
        given = {key: value.double().clone() for key, value in one.run.model.named_buffers()}
        training = one.run.model[1].training
        one._mine = lambda positions: positions[sum(sizes[:rank]) :][: sizes[rank]]  # uneven on purpose
        one.step(4)
        assert one.drawn == 16
        assert one.run.model[1].training == training
        left = {key: value.double() for key, value in one.run.model.named_buffers()}
        tables = {"given": given, "left": left, "weights": weights(one)}
        save_file({f"{k}/{n}": v.clone() for k, part in tables.items() for n, v in part.items()}, tmp_path / f"{rank}")

    world(RANKS, tmp_path, ranked)
    first, second, third = (load_file(tmp_path / f"{rank}") for rank in range(RANKS))
    for name, value in third.items():
        if name.startswith("left/"):
            assert torch.equal(value, first[name.replace("left/", "given/")]), name
            assert torch.equal(value, first[name]) == (norm == "frozen batch"), name
        if name.startswith("weights/"):
            assert torch.equal(value, first[name]), name
            assert torch.equal(value, second[name]), name


ORDER = SampleOrder(10, seed=0)
DOORS = {
    "batches": lambda rank: OrderBatchSampler(ORDER, 4, stop=9, rank=rank, world=3),
    "batches of a later start": lambda rank: OrderBatchSampler(ORDER, 4, drawn=2, stop=11, rank=rank, world=2),
    "one batch": lambda rank: OrderBatchSampler(ORDER, 8, stop=2, rank=rank, world=3),
    "the second epoch's end": lambda rank: OrderBatchSampler(ORDER, 6, stop=20, rank=rank, world=3),
    "repeated": lambda rank: RepeatedBatchSampler(ORDER, 4, 2, stop=5, rank=rank, world=4),
    "tokens": lambda rank: next(iter(TokenBatchSampler(TokenBatches(ORDER, [3] * 10), 6, stop=3, rank=rank, world=2))),
}


@pytest.mark.parametrize("name", DOORS)
def test_samplers_that_would_leave_a_rank_without_samples_say_so_on_every_rank(name):
    for rank in range(2):
        with pytest.raises(InputError, match=r"ranks|each rank"):
            DOORS[name](rank)


def test_a_last_batch_that_is_large_enough_passes():
    for rank in range(3):
        sampler = OrderBatchSampler(ORDER, 4, stop=11, rank=rank, world=3)
        assert [len(part) for part in sampler] == ([2, 2, 1] if rank == 0 else [1, 1, 1])
