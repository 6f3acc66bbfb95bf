"""Invariant optimizers on shards: the squares of each rank's own gradient, and the steps of one process."""

import pytest
import torch
from tests.gloo import world
from tests.shards import ROWS, WAYS, apart, mean_loss, net, rows, spread
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from isobatch.errors import InputError
from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop

FORMS = {
    "adamw": lambda p, **more: InvariantAdamW(p, lr=0.02, weight_decay=0.1, **more),
    "adam": lambda p, **more: InvariantAdam(p, lr=0.02, weight_decay=0.1, **more),
    "rmsprop": lambda p, **more: InvariantRMSprop(p, lr=0.01, momentum=0.9, **more),
}
# how the passes of a step come: sizes by rank, and whether FSDP2 reduces each pass or all of them with the last
EVEN, UNEVEN = [[ROWS], [ROWS], [ROWS], [ROWS]], [[5, 3], [2, 6], [7, 1], [4, 4]]
KINDS = {
    "even": ("adamw", {"reference_batch": ROWS, "micro_batch": ROWS}, EVEN, True),
    "uneven": ("adamw", {"reference_batch": 4}, UNEVEN, True),
    "held back": ("adam", {"reference_batch": 4}, UNEVEN, False),
    "window": ("rmsprop", {"reference_batch": 100, "micro_batch": ROWS}, EVEN, True),
    "seldom": ("adamw", {"reference_batch": ROWS, "micro_batch": ROWS, "variance_every": 2}, EVEN, True),
}


def stepped(model, kind, ranks, mine=None, clip=None):
    """Four steps of one process over the passes of all ranks, or (mine) of this rank of a sharded model."""
    name, more, sizes, reduces = KINDS[kind]
    apart_from_others = {} if mine is not None else {"process_group": "alone"}
    optimizer = FORMS[name](model.parameters(), **more, **apart_from_others)
    whole = sum(map(sum, sizes[:ranks]))
    for step in range(4):
        optimizer.zero_grad()
        for rank in range(ranks) if mine is None else [mine]:
            parts, groups = sizes[rank], []
            for number, size in enumerate(parts):
                groups.append((size, rows(size, 1000 * step + 10 * rank + number)))
            if mine is None and not reduces:  # one chunk of all rows of a rank, as its gradient travels
                joined = zip(*(pair for _, pair in groups), strict=True)
                groups = [(sum(parts), tuple(map(torch.cat, joined)))]
            for number, (size, (x, y)) in enumerate(groups):
                if mine is not None:
                    sync = reduces or number + 1 == len(groups)
                    for module in model.modules():
                        if isinstance(module, FSDPModule):
                            module.set_requires_gradient_sync(sync, recurse=False)
                loss = mean_loss(model, x, y) * (size / whole * (ranks if mine is not None else 1))
                if "micro_batch" in more:
                    loss.backward()
                else:
                    with optimizer.chunk(size):
                        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return optimizer


def same_as_one_process(way, size, kinds, clip=None):
    for kind in kinds:
        model, twin = net(), net()
        ranks, mine = spread(model, way, size)
        optimizer = stepped(model, kind, ranks, mine, clip)
        other = stepped(twin, kind, ranks, clip=clip)
        assert apart(dict(model.named_parameters()), dict(twin.named_parameters())) < 1e-11, (way, kind)
        for parameter, one in zip(model.parameters(), twin.parameters(), strict=True):
            here, there = optimizer.state[parameter], other.state[one]
            assert here.keys() == there.keys(), (way, kind)
            for key, value in there.items():
                if isinstance(value, torch.Tensor):
                    assert isinstance(here[key], DTensor) == isinstance(parameter, DTensor)
                    assert apart({key: here[key]}, {key: value}) < 1e-11, (way, kind, key)
                else:
                    assert here[key] == pytest.approx(value, rel=1e-12), (way, kind, key)
        assert max(p._version for p in model.parameters()) >= 4


def refused(size):
    model = net()
    spread(model, "fsdp", size)
    with pytest.raises(InputError, match="coordinate"):
        InvariantAdamW(model.parameters(), reference_batch=8, noise="row")
    optimizer = InvariantAdamW(model.parameters(), reference_batch=4, micro_batch=4)
    model.set_requires_gradient_sync(False)
    mean_loss(model, *rows(4, 0)).backward()
    model.set_requires_gradient_sync(True)
    with pytest.raises(InputError, match="reduces 2 passes at once"):
        mean_loss(model, *rows(4, 0)).backward()
    part = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    fully_shard(part[0])
    with pytest.raises(InputError, match="not managed by fully_shard"):
        InvariantAdamW(part.parameters(), reference_batch=8)
    other = net()
    spread(other, "fsdp", size)
    optimizer = InvariantAdamW(other.parameters(), reference_batch=4, micro_batch=4)
    mean_loss(other, *rows(4, 0)).backward()
    other[0].weight.grad.clamp_(-1e-3, 1e-3)
    other[0].bias.grad.clamp_(-1e-3, 1e-3)
    other[4].weight.grad.clamp_(-1e-3, 1e-3)
    other[4].bias.grad.clamp_(-1e-3, 1e-3)
    with pytest.raises(InputError, match="more than one factor"):
        optimizer.step()


def test_two_ranks(tmp_path):
    def act(rank):
        same_as_one_process("fsdp", 2, KINDS)
        same_as_one_process("fsdp", 2, ["uneven"], clip=0.05)
        same_as_one_process("tensor", 2, ["uneven"])
        refused(2)

    world(2, tmp_path, act)


@pytest.mark.slow
def test_four_ranks(tmp_path):
    def act(rank):
        same_as_one_process("hsdp", 4, ["even", "uneven", "held back"])
        same_as_one_process("both", 4, ["uneven"])
        same_as_one_process("fsdp", WAYS["hsdp"], ["uneven"])

    world(4, tmp_path, act)
