"""Over gloo: ranks, micro-batches and single rows of the same samples give one number, and every rank gives it."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.gloo import answers, world
from tests.reference import noise as slow
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from isobatch.noise import NoiseScale

STEPS, SAMPLES = 3, 24
CASES = {
    "one chunk a rank": ({}, None),
    "micro-batches of one sample": ({}, [1] * 6),
    "unequal micro-batches": ({}, [3, 1, 2]),
    "buckets": ({"capture": "buckets"}, None),
    "buckets under no_sync": ({"capture": "buckets"}, [2, 1, 3]),
    "first micro-batch": ({"capture": "prefix"}, [2, 2, 2]),
    "rows": ({"capture": "rows", "rows": 64}, None),
    "sign": ({"geometry": "sign"}, [2, 2, 2]),
    "loss scale and clip": ({}, [2, 2, 2]),
    "budget": ({"every": None, "budget": 0.5}, None),
    "NaN on one rank": ({}, None),
}


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 1)).double()


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)


def loss(net, x):
    return (net(x).squeeze(1) - x.sum(1)).square().mean()


def run(name, rank, world):
    """Train under DDP on this rank's share; return the estimate's numbers."""
    options, sizes = CASES[name]
    net = build()
    ddp = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    noise = NoiseScale(ddp, optimizer, **({"every": 1, "half_life": 40.0} | options))
    if options.get("capture") == "buckets":
        inner = None if sizes else lambda _, bucket: default_hooks.allreduce_hook(dist.group.WORLD, bucket)
        ddp.register_comm_hook(None, noise.bucket_hook(inner))
    share = SAMPLES // world
    micro = sizes or [share]
    micro = [n * share // sum(micro) for n in micro] if share % sum(micro) == 0 else [share]
    for step in range(STEPS):
        x = data(step)[rank * share : (rank + 1) * share]
        if name == "NaN on one rank" and step == 1 and rank == 1:
            x = x * torch.nan
        net.zero_grad()
        for i, part in enumerate(x.split(micro)):
            ddp.require_backward_grad_sync = i == len(micro) - 1
            scaled = loss(ddp, part) * (len(part) / share) * (512 if "scale" in name else 1)
            if sizes:
                with noise.chunk(len(part)):
                    scaled.backward()
            else:
                scaled.backward()
        if "scale" in name:
            for p in net.parameters():
                p.grad.div_(512)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        noise.update(samples=SAMPLES)
        if not name.startswith("NaN"):
            optimizer.step()
    found = noise.estimate()
    return {
        "numbers": [found.trace, found.gradient_squared],
        "measurements": (found.measurements, found.excluded),
        "micro": micro,
        "gap": noise.pace.gap,
    }


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    def action(rank):
        return {name: run(name, rank, request.param) for name in CASES}

    return answers(request.param, tmp_path_factory.mktemp("ranks"), action)


def truth(name, micro, world):
    """The same samples in one process: chunk gradients by autograd, moments by sums over pairs, averaged by age."""
    options, sizes = CASES[name]
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    parts = micro * world if sizes or options.get("capture") != "rows" else [1] * SAMPLES
    if options.get("capture") == "buckets":
        parts = [sum(micro)] * world
    if options.get("capture") == "rows":
        parts = [1] * SAMPLES
    moments, ages = [], []
    for step in range(STEPS):
        x = data(step)
        G_j = []
        for part in x.split(parts):
            grads = torch.autograd.grad(loss(net, part), list(net.parameters()))
            G_j.append(torch.cat([g.flatten() for g in grads]).numpy())
        if not (name.startswith("NaN") and step == 1):
            moments.append(by_hand(name, G_j, parts, micro))
            ages.append((STEPS - 1 - step) * SAMPLES)
        if name.startswith("NaN"):
            continue
        optimizer.zero_grad()
        loss(net, x).backward()
        if "scale" in name:
            before = np.sum(slow.mean_gradient(G_j, parts) ** 2)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            after = sum(float(p.grad.square().sum()) for p in net.parameters())
            moments[-1] = moments[-1] * (after / before)
        optimizer.step()
    weights = 0.5 ** (np.array(ages) / 40.0)
    if name == "budget":
        return None
    return (weights[:, None] * np.array(moments)).sum(0) / weights.sum()


def by_hand(name, G_j, parts, micro):
    if CASES[name][0].get("geometry") == "sign":
        G2, S = slow.l1(G_j, parts)
        return np.array([S, G2])
    if CASES[name][0].get("capture") == "prefix":
        first = list(range(0, len(parts), len(micro)))
        B, b = sum(parts), micro[0]
        mean = float(np.sum(slow.mean_gradient(G_j, parts) ** 2))
        S = (b * sum(float(G_j[i] @ G_j[i]) for i in first) - b * len(first) * mean) / (len(first) - b * len(first) / B)
        return np.array([S, mean - S / B])
    return np.array([slow.trace_Sigma(G_j, parts), slow.G_squared(G_j, parts)])


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_the_chunks_themselves(ranks, name):
    found = [one[name] for one in ranks]
    expected = truth(name, found[0]["micro"], len(ranks))
    for one in found:
        assert one["numbers"] == found[0]["numbers"]
        assert one["gap"] == found[0]["gap"]
        assert one["measurements"] == ((2, 1) if name.startswith("NaN") else (STEPS, 0))
        if expected is not None:
            np.testing.assert_allclose(one["numbers"], expected, rtol=1e-10 if name != "loss scale and clip" else 1e-6)


def test_single_samples_agree_across_ranks_rows_and_accumulation(ranks):
    """The same samples as chunks of one: as rows under DDP, as micro-batches under DDP, and in one process."""
    world = len(ranks)
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    noises = {
        "rows": NoiseScale(net, every=1, half_life=40.0, rows=SAMPLES),
        "chunks": NoiseScale(net, every=1, half_life=40.0, capture="chunks"),
    }
    for step in range(STEPS):
        for name, noise in noises.items():
            net.zero_grad()
            for other in noises.values():
                other.discard()
            for part in data(step).split(SAMPLES if name == "rows" else 1):
                (loss(net, part) * (len(part) / SAMPLES)).backward()
            noise.update(samples=SAMPLES)
        optimizer.step()
    numbers = [(n.estimate().trace, n.estimate().gradient_squared) for n in noises.values()]
    numbers.append(tuple(ranks[0]["rows"]["numbers"]))
    if ranks[0]["micro-batches of one sample"]["micro"] == [1] * (SAMPLES // world):
        numbers.append(tuple(ranks[0]["micro-batches of one sample"]["numbers"]))
    for other in numbers[1:]:
        np.testing.assert_allclose(other, numbers[0], rtol=1e-6)


@pytest.mark.parametrize("capture", ["auto", "chunks", "rows", "norms", "prefix"])
@pytest.mark.parametrize("gradients", ["averaged", "none here"])
def test_a_rank_with_nothing_leaves_nobody_waiting(tmp_path, capture, gradients):
    """The last batch is shorter than the world: one rank has no backward pass, and perhaps no gradients at all."""

    def action(rank):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
        noise = NoiseScale(net, every=1, capture=capture, process_group=dist.group.WORLD)
        for step in range(24):
            net.zero_grad()
            nothing = step % 3 == 2 and rank == 1
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2 * step + rank))
            if not nothing:
                with noise.chunk(8):
                    (net(x).squeeze(1) - x.sum(1)).square().mean().backward()
            elif gradients == "averaged":
                for p in net.parameters():
                    p.grad = torch.zeros_like(p)
            for p in net.parameters():
                mine = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(mine)
                if p.grad is not None:
                    p.grad /= 2 if step % 3 < 2 else 1
            noise.update(samples=16 if step % 3 < 2 else 8)
        found = noise.estimate()
        assert found.measurements >= 16, found
        (tmp_path / f"{rank}.txt").write_text(f"{found.measurements} {found.value}")

    world(2, tmp_path, action)
    if gradients == "averaged":
        assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
