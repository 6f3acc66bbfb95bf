"""Two processes over gloo: the ranks' chunks count as one batch's."""

import pytest
import torch
import torch.distributed as dist
from tests.gloo import answers
from torch import nn

from isobatch.optimizers import InvariantAdamW, InvariantRMSprop
from isobatch.optimizers.ranks import sum_numbers, sum_tensors_

SIZES = {"one chunk a rank": [[4], [4]], "two a rank": [[4, 4], [4, 4]], "unequal": [[2, 6, 1], [5]]}


def run(kind, sizes, noise, rank=None, every=1, reference=4):
    """Train on all chunks in this process (rank None), or on one rank's share under DDP; return the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    group = None if rank is None else dist.group.WORLD
    optimizer = kind(
        model.parameters(), 0.02, reference_batch=reference, noise=noise, variance_every=every, process_group=group
    )
    net = model if rank is None else nn.parallel.DistributedDataParallel(model)
    total = sum(map(sum, sizes))
    scale = 1 if rank is None else len(sizes)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(total, 3, generator=generator, dtype=torch.float64)
        parts = iter(x.split([n for share in sizes for n in share]))
        chunks = [(r, next(parts)) for r, share in enumerate(sizes) for _ in share]
        mine = [part for r, part in chunks if rank is None or r == rank]
        optimizer.zero_grad()
        for i, part in enumerate(mine):
            sync = rank is None or i == len(mine) - 1
            with optimizer.chunk(len(part)):
                if sync:
                    ((net(part) - 1).square().sum() * scale / total).backward()
                else:
                    with net.no_sync():
                        ((net(part) - 1).square().sum() * scale / total).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def trained(rank):
    """The weights of every job, and sums over ranks by themselves."""
    found = [run(*job[:3], rank=rank, **job[3]) for job in JOBS]
    tensors = [torch.full((2,), rank + 1.0), torch.full((3, 1), 10.0 * (rank + 1), dtype=torch.float64)]
    sum_tensors_(tensors, dist.group.WORLD)
    sums = sum_numbers(torch.tensor([rank, 2.5], dtype=torch.float64), dist.group.WORLD).tolist()
    return found, [tensor.flatten().tolist() for tensor in tensors], sums


JOBS = [
    (kind, sizes, noise, extra)
    for kind, sizes, noise, extra in [
        (InvariantAdamW, SIZES["one chunk a rank"], "coordinate", {}),
        (InvariantAdamW, SIZES["two a rank"], "coordinate", {}),
        (InvariantRMSprop, SIZES["two a rank"], "coordinate", {}),
        (InvariantAdamW, SIZES["unequal"], "coordinate", {}),
        (InvariantAdamW, SIZES["unequal"], "factored", {}),
        (InvariantAdamW, SIZES["unequal"], "tensor", {}),
        (InvariantAdamW, SIZES["two a rank"], "coordinate", {"every": 2}),
        (InvariantAdamW, SIZES["two a rank"], "coordinate", {"reference": 40}),
    ]
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return answers(2, tmp_path_factory.mktemp("ranks"), trained)


@pytest.mark.parametrize("job", range(len(JOBS)))
def test_two_ranks_equal_one_process(ranks, job):
    kind, sizes, noise, extra = JOBS[job]
    truth = run(kind, sizes, noise, **extra)
    for found, _, _ in ranks:
        for name, value in truth.items():
            torch.testing.assert_close(found[job][name], value, rtol=1e-12, atol=1e-12)


def test_sums_over_ranks(ranks):
    for _, tensors, numbers in ranks:
        assert tensors == [[3.0] * 2, [30.0] * 3]
        assert numbers == [1.0, 5.0]
