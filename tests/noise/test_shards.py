"""The noise scale of a sharded model: ranks are chunks, put together before the norm, as in one process."""

import pytest
import torch
from tests.gloo import world
from tests.shards import ROWS, Largest, apart, mean_loss, net, rows, spread
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from isobatch import noise as noises
from isobatch.errors import InputError
from isobatch.noise import NoiseScale

EVEN, UNEVEN = [[ROWS], [ROWS], [ROWS], [ROWS]], [[5, 3], [2, 6], [7, 1], [4, 0]]
# settings, sizes of the passes by rank, whether they are declared, whether FSDP2 reduces each pass
KINDS = {
    "plain": ({}, EVEN, False, True),
    "layers": ({"groups": "layer"}, EVEN, False, True),
    "adam": ({"geometry": "adam"}, UNEVEN, True, True),
    "sign": ({"geometry": "sign"}, EVEN, False, True),
    "uneven": ({}, UNEVEN, True, True),
    "held back": ({}, UNEVEN, True, False),
    "clipped": ({"groups": "optimizer"}, UNEVEN, True, True),
    "frozen": ({}, UNEVEN, True, True),
    "unfrozen later": ({}, EVEN, False, True),
}
FROZEN = (
    "0.weight",
    "2.weight",
    "2.bias",
    "3.bias",
)  # part of a call of fully_shard, a whole one, part of the root
STEPS = 8


def measured(model, kind, ranks, mine=None):
    """Eight measured steps of one process over the passes of all ranks, or (mine) of this rank of a sharded model."""
    more, sizes, declared, reduces = KINDS[kind]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in FROZEN or "frozen" not in kind)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    alone = {} if mine is not None else {"process_group": "alone"}
    scale = NoiseScale(model, optimizer, every=1, capture="chunks", **more, **alone)
    total = sum(map(sum, sizes[:ranks]))
    for step in range(STEPS):
        optimizer.zero_grad()
        if kind == "unfrozen later" and step == 2:
            model.requires_grad_(True)
        for rank in range(ranks) if mine is None else [mine]:
            parts = [(n, rows(max(n, 1), 1000 * step + 10 * rank + i)) for i, n in enumerate(sizes[rank])]
            if mine is None and not reduces:
                kept = [xy for n, xy in parts if n]
                parts = [(sum(sizes[rank]), tuple(torch.cat(tensors) for tensors in zip(*kept, strict=True)))]
            for number, (size, (x, y)) in enumerate(parts):
                if mine is not None:
                    _sync(model, reduces or number + 1 == len(parts))
                loss = mean_loss(model, x, y) * (size / total * (ranks if mine is not None else 1))
                if declared:
                    with scale.chunk(size):
                        loss.backward()
                else:
                    loss.backward()
        if kind == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scale.update(samples=total)
        optimizer.step()
        if step == 3:
            with torch.no_grad():
                model(rows(2, 0)[0])  # leaves the root of FSDP2 unsharded
    return scale


def _sync(model, sync):
    for module in model.modules():
        set_sync = getattr(module, "set_requires_gradient_sync", None)
        if set_sync is not None:
            set_sync(sync, recurse=False)


def same_as_one_process(way, size, kinds):
    for kind in kinds:
        model, twin = net(), net()
        ranks, mine = spread(model, way, size)
        here, there = measured(model, kind, ranks, mine), measured(twin, kind, ranks)
        one, other = here.estimate(), there.estimate()
        assert one.value == pytest.approx(other.value, rel=1e-6), (way, kind)
        assert (one.trace, one.gradient_squared) == pytest.approx((other.trace, other.gradient_squared), rel=1e-6), (
            way,
            kind,
        )
        assert one.parts.keys() == other.parts.keys()
        for name, part in one.parts.items():
            assert part.trace == pytest.approx(other.parts[name].trace, rel=1e-6), (way, kind, name)
        for a, b in zip(here.progress.pairs, there.progress.pairs, strict=True):
            a, b = ((row[:3] / row[1]).tolist() for row in (a, b))  # up to what FSDP2 divides by before it adds
            assert a == pytest.approx(b, rel=1e-6), (way, kind)
        assert len(here.progress.pairs) >= STEPS - (5 if kind == "unfrozen later" else 3)
        assert apart(dict(model.named_parameters()), dict(twin.named_parameters())) < 1e-9


def paced(size):
    """Without `every` all ranks measure the same steps."""
    model = net()
    ranks, mine = spread(model, "fsdp", size)
    scale = NoiseScale(model, budget=0.02)
    for step in range(12):
        model.zero_grad()
        mean_loss(model, *rows(ROWS, 10 * step + mine)).backward()
        scale.update(samples=ROWS * ranks)
    turns = [None] * size
    torch.distributed.all_gather_object(turns, (scale.progress.turn, scale.pace.gap))
    assert len(set(turns)) == 1
    assert scale.progress.turn >= 2
    state = scale.state_dict()
    again = NoiseScale(model, budget=0.02)
    again.load_state_dict(state)
    assert again.estimate().value == scale.estimate().value


def no_whole_copy(size):
    """A measured step makes nothing larger than a layer, which FSDP2 has whole anyway, and keeps shards alone."""
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(6)]).double()
    mesh = init_device_mesh("cpu", (size,))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    scale = NoiseScale(model, every=1)
    with Largest() as largest:
        for _ in range(2):
            model.zero_grad()
            model(torch.randn(4, 64).double()).square().mean().backward()
            scale.update(samples=4 * size)
    layer = 64 * 64 * 8
    assert 0 < largest.found <= layer
    tensors = [t for t in scale.state_dict()["tensors"].values() if isinstance(t, torch.Tensor)]
    held = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)
    assert 6 * layer // size <= held <= 6 * layer // size + 4096


def refused(size):
    model = net()
    spread(model, "fsdp", size)
    for capture in ("rows", "norms", "buckets"):
        with pytest.raises(InputError, match="has parts"):
            NoiseScale(model, capture=capture)
    with pytest.raises(InputError, match="chunk"):
        NoiseScale(model).halves(lambda x, y: mean_loss(model, x, y), *rows(4, 0))
    with pytest.raises(InputError, match="shard"):
        noises.measure(lambda m, batch: mean_loss(m, *batch), model, [rows(4, i) for i in range(8)])


def test_two_ranks(tmp_path):
    def act(rank):
        same_as_one_process("fsdp", 2, KINDS)
        same_as_one_process("tensor", 2, ["uneven"])
        paced(2)
        refused(2)
        no_whole_copy(2)

    world(2, tmp_path, act)


@pytest.mark.slow
def test_four_ranks(tmp_path):
    def act(rank):
        same_as_one_process("hsdp", 4, ["plain", "adam", "sign", "held back"])
        same_as_one_process("both", 4, ["layers", "uneven"])
        same_as_one_process("fsdp", 4, ["uneven"])

    world(4, tmp_path, act)
