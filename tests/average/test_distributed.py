"""Two gloo processes: ranks agree bit for bit, and with one process that sees the whole batch."""

import os

import pytest
import torch
from tests.gloo import answers, world
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.average import ModelEMA, MultiEMA, Storage, recalibrate
from isobatch.errors import InputError, NonFiniteError

STEPS, GLOBAL = 6, 8


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def batch(step):
    return torch.randn(GLOBAL, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(module, averages, part):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        module(batch(step)[part]).square().mean().backward()
        optimizer.step()
        for average in averages:
            average.update(samples=GLOBAL)


def kinds(module):
    return [
        ModelEMA(module, half_life=20),
        ModelEMA(module, half_life=20, dtype=torch.bfloat16, storage=Storage(rounding="stochastic", seed=3)),
        MultiEMA(module, half_lives=[10, 40], kind="hold"),
    ]


def measured(rank):
    """What a rank finds, as plain values."""
    wrapped = DistributedDataParallel(build())
    averages = kinds(wrapped)
    train(wrapped, averages, slice(4 * rank, 4 * rank + 4))
    raw = wrapped.module[0].weight.detach().clone()
    with averages[0].applied(wrapped):
        lent = wrapped.module[0].weight.detach().clone()
    restored = torch.equal(raw, wrapped.module[0].weight)
    layer = nn.BatchNorm1d(3).double()
    recalibrate(layer, [batch(0)[: 3 + 5 * rank], batch(1)])
    tensors = [{k: t.float().tolist() for k, t in a.state_dict()["tensors"].items()} for a in averages]
    return [rank, tensors, lent.tolist(), restored, layer.running_mean.tolist(), layer.running_var.tolist()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return answers(2, tmp_path_factory.mktemp("ranks"), measured)


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_ranks_agree_bit_for_bit(ranks):
    assert ranks[0][1] == ranks[1][1]


def test_ddp_equals_one_process_with_the_whole_batch(ranks):
    module = build()
    averages = kinds(module)
    train(module, averages, slice(None))
    for k in (0, 2):
        for key, value in averages[k].state_dict()["tensors"].items():
            torch.testing.assert_close(torch.tensor(ranks[0][1][k][key]), value.float(), rtol=1e-6, atol=1e-7)


def test_the_wrapper_lends_and_takes_back(ranks):
    for _, tensors, lent, restored, _, _ in ranks:
        assert restored
        torch.testing.assert_close(torch.tensor(lent).float(), torch.tensor(tensors[0]["average/0.weight"]))


def test_batch_norm_statistics_are_pooled_over_ranks(ranks):
    assert ranks[0][4:] == ranks[1][4:]
    everything = torch.cat([batch(0)[:3], batch(1), batch(0)[:8], batch(1)])
    torch.testing.assert_close(torch.tensor(ranks[0][4], dtype=torch.float64), everything.mean(0))
    torch.testing.assert_close(torch.tensor(ranks[0][5], dtype=torch.float64), everything.var(0))


class ModelOfBoth(nn.Module):
    """Batch norm in the body and in a head that the features do not need."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.BatchNorm1d(3).double(), nn.SyncBatchNorm(3).double()

    def forward(self, x):
        return self.head(self.body(x))


PARTS = {  # batches of each rank
    "one rank without": [[0, 1], []],
    "other rank without": [[], [0, 1]],
    "several without": [[], [0], []],
    "uneven": [[0, 1, 2], [3]],
    "uneven among three": [[0], [1, 2], [3, 4, 5]],
}


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("name", PARTS)
def test_ranks_with_any_number_of_batches_pool_what_there_is(name, heads, tmp_path):
    parts = PARTS[name]

    def action(rank):
        model = ModelOfBoth()
        forward = (lambda m, x: m(x)) if heads else (lambda m, x: m.body(x))
        read = recalibrate(model, [batch(k) for k in parts[rank]], forward=forward)
        torch.save([read, model.state_dict()], tmp_path / str(rank))

    world(len(parts), tmp_path, action)
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(len(parts))]
    everything = torch.cat([batch(k) for part in parts for k in part])
    for rank, (read, state) in enumerate(found):
        assert read == len(parts[rank])
        torch.testing.assert_close(state["body.running_mean"], everything.mean(0))
        torch.testing.assert_close(state["body.running_var"], everything.var(0))
        assert all(torch.equal(value, found[0][1][key]) for key, value in state.items() if "tracked" not in key)
        assert bool(state["head.running_mean"].any()) is heads


@pytest.mark.parametrize("trouble", ["a NaN", "an exception", "no batches anywhere"])
def test_a_rank_in_trouble_leaves_no_other_waiting(trouble, tmp_path):
    def action(rank):
        model, batches = ModelOfBoth(), [batch(rank)]
        if rank == 1 and trouble == "a NaN":
            batches[0][0, 0] = float("nan")
        if rank == 1 and trouble == "an exception":
            batches.append("no batch")
        kept = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises((InputError, NonFiniteError, AttributeError, TypeError)):
            recalibrate(model, [] if trouble == "no batches anywhere" else batches)
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in kept.items())

    world(2, tmp_path, action)


def test_a_bare_model_loads_what_a_wrapped_one_saved():
    wrapped = nn.DataParallel(build())
    ema = ModelEMA(wrapped, half_life=20)
    bare = ModelEMA(build(), half_life=20)
    bare.load_state_dict(ema.state_dict())
    with pytest.raises(InputError):
        bare.load_state_dict(None)
