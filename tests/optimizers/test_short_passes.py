"""With `micro_batch`, a short pass counts what it holds, or is refused: never as a full one."""

import contextlib
import copy
import gc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.gloo import world
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from isobatch.errors import InputError
from isobatch.noise import NoiseScale
from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop

KINDS = [InvariantAdamW, InvariantAdam, InvariantRMSprop]


def mlp():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()


class Wrapped(nn.Module):
    """A model in a holder whose own forward nobody calls, as a LightningModule's."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def encode(self, x):
        return self.net(x)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, *, inputs=None, mask=None):
        @dataclass
        class Output:
            logits: torch.Tensor
            loss: object = None

        return Output(self.net(inputs["x"][0]))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = mlp(), nn.Linear(1, 1).double(), reentrant

    def forward(self, x):
        return self.second(checkpoint(self.first, x, use_reentrant=self.reentrant))


class Flattens(nn.Module):
    """Whose layers see more rows than the batch has."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(torch.stack([x, 2 * x], 1).flatten(0, 1)).view(len(x), 2).mean(1, keepdim=True)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6).double(), nn.Linear(6, 1).double()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.down.weight = self.up.weight

    def forward(self, x):
        return self.down(torch.tanh(self.up(x))).sum(1, keepdim=True)


def mean(output, x):
    return (output - 5 * x.sum(1, keepdim=True)).square().mean()


def compiled(net, x):
    return mean(torch.compile(net, backend="eager")(x), x)


def penalised(net, x):
    inside = x.clone().requires_grad_(True)
    slope = torch.autograd.grad(net(inside).sum(), inside, create_graph=True)[0]
    return mean(net(x), x) + slope.square().mean()


def looked_at(net, x):
    net(torch.zeros(32, 3, dtype=torch.float64))  # of which nobody takes a gradient
    return mean(net(x), x)


def in_place(net, x):
    return mean(net(x).mul_(2), x)


def evaluated(net, x):
    value = mean(net(x), x)
    with torch.no_grad():
        net(torch.zeros(32, 3, dtype=torch.float64))
    return value


def with_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        return mean(net(x), x)


MODELS = {
    "plain": (mlp, lambda net, x: mean(net(x), x)),
    "in a holder": (Wrapped, lambda net, x: mean(net.net(x), x)),
    "another method": (Wrapped, lambda net, x: mean(net.encode(x), x)),
    "by keyword, nested, a dataclass out": (Named, lambda net, x: mean(net(inputs={"x": (x,)}).logits, x)),
    "checkpointed": (lambda: Checkpointed(False), lambda net, x: mean(net(x), x)),
    "rows made of the batch": (Flattens, lambda net, x: mean(net(x), x)),
    "body and head": (Two, lambda net, x: mean(net.head(torch.tanh(net.body(x))), x)),
    "tied": (Tied, lambda net, x: mean(net(x), x)),
    "called twice": (mlp, lambda net, x: mean(net(x) - net(2 * x), x)),
    "gradient penalty": (mlp, penalised),
    "a forward without a gradient": (mlp, looked_at),
    "an evaluation between": (mlp, evaluated),
    "an output that is changed in place": (mlp, in_place),
    "autocast": (mlp, with_autocast),
    "compiled": (mlp, compiled),
    "DataParallel": (mlp, lambda net, x: mean(nn.DataParallel(net)(x), x)),
}
SIZES = {"last": [4, 4, 4, 2], "all but one": [4, 1, 2, 3], "first": [1, 4, 4], "larger": [4, 8, 4], "whole": [4, 4, 4]}


def moments(model, call, sizes, kind=InvariantAdamW, declare=False, steps=3, together=False, **options):
    """Return v after some steps of passes of these sizes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = model()
    optimizer = kind(net.parameters(), 1e-3, reference_batch=4, micro_batch=None if declare else 4, **options)
    for step in range(steps):
        x = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        parts = x.split(sizes)
        losses = [call(net, part) * len(part) / len(x) for part in parts] if together else []
        for i, part in enumerate(parts):
            with optimizer.chunk(len(part)) if declare else contextlib.nullcontext():
                (losses[i] if together else call(net, part) * len(part) / len(x)).backward()
        optimizer.step()
    return torch.cat([state["exp_avg_sq"].flatten() for state in optimizer.state.values()])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_short_pass_counts_what_it_holds(name, sizes):
    model, call = MODELS[name]
    seen = moments(model, call, SIZES[sizes])
    torch.testing.assert_close(seen, moments(model, call, SIZES[sizes], declare=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"noise": "factored"}, {"variance_every": 2}])
@pytest.mark.parametrize("together", [True, False])
def test_every_kind_and_all_forwards_before_all_backwards(kind, options, together):
    call = MODELS["plain"][1]
    found = [moments(mlp, call, [4, 4, 2], kind, declare, 5, together, **options) for declare in (False, True)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 1)

    def forward(self, ids):
        return self.out(self.table(ids)).mean(1)


@pytest.mark.parametrize("unit", ["tokens", "rows"])
def test_tokens_and_rows(unit):
    def run(declare):
        torch.manual_seed(0)
        net = Words()
        full = 24 if unit == "tokens" else 4
        optimizer = InvariantAdamW(net.parameters(), reference_batch=full, micro_batch=None if declare else full)
        for step in range(3):
            optimizer.zero_grad()
            for rows in (4, 4, 3):
                ids = torch.randint(0, 5, (rows, 6), generator=torch.Generator().manual_seed(step + rows))
                size = ids.numel() if unit == "tokens" else rows
                with optimizer.chunk(size) if declare else contextlib.nullcontext():
                    (net(ids).square().mean() * rows / 11).backward()
            optimizer.step()
        return torch.cat([state["exp_avg_sq"].flatten() for state in optimizer.state.values()])

    torch.testing.assert_close(run(False), run(True), rtol=1e-6, atol=0)


def twice_the_rows(net, x):
    return mean(net(torch.cat([x, x])), torch.cat([x, x]))


def sequence_first(net, x):
    return mean(net(x.repeat(7, 1, 1)), x.repeat(7, 1, 1))


def odd_object(net, x):
    class Graph:
        def __init__(self, nodes):
            self.nodes = nodes

    class Reads(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = (inner,)

        def forward(self, graph):
            layer = self.inner[0]
            return nn.functional.linear(
                torch.tanh(nn.functional.linear(graph.nodes, *layer[0].parameters())), *layer[2].parameters()
            )

    return mean(Reads(net)(Graph(x)), x)


def views_of_another_size(net, x):
    return mean(net(x), x) + net(x[:1]).mean()


REFUSED = {
    "rows twice": (twice_the_rows, "given 8 rows"),
    "sequence first": (sequence_first, "given 7 rows"),
    "an object, layers that are never called": (odd_object, "could not be seen"),
    "two sizes in one pass": (views_of_another_size, "1 and 4 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_counted_is_refused_and_may_be_declared(name):
    call, word = REFUSED[name]
    with pytest.raises(InputError, match=rf"{word}.*chunk\(samples\)"):
        moments(mlp, call, [4, 4, 2])
    moments(mlp, call, [4, 4, 2], declare=True)


def test_parameters_of_no_module_are_refused_and_change_nothing():
    weight = nn.Parameter(torch.ones(3))
    optimizer = InvariantAdamW([weight], reference_batch=2, micro_batch=2)
    for _ in range(2):
        (weight * torch.ones(2, 3)).square().mean().backward()
    with pytest.raises(InputError, match=r"no module owns the parameters.*chunk\(samples\)"):
        optimizer.step()
    assert not optimizer.state
    assert weight.tolist() == [1, 1, 1]


def test_parameters_of_a_net_made_elsewhere_are_seen_once_added():
    net, head = mlp(), nn.Linear(1, 1).double()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=4)
    for step in range(4):
        if step == 2:
            optimizer.add_param_group({"params": head.parameters()})
        optimizer.zero_grad()
        head.zero_grad()
        for rows in (4, 4, 1):
            x = torch.ones(rows, 3, dtype=torch.float64)
            mean(head(net(x)), x).backward()
        assert optimizer.chunks.samples == 9
        optimizer.step()


def test_a_model_that_is_wrapped_later_is_still_seen():
    net = mlp()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=4)
    for model in (net, nn.Sequential(net), nn.DataParallel(net), nn.Sequential(net, nn.Identity())):
        optimizer.zero_grad()
        for rows in (4, 3):
            x = torch.ones(rows, 3, dtype=torch.float64)
            mean(model(x), x).backward()
        assert optimizer.chunks.samples == 7
        optimizer.step()


def test_nothing_is_left_on_a_model_or_its_copy():
    net = mlp()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=4)
    assert net._forward_hooks
    twin = copy.deepcopy(net)
    x = torch.ones(2, 3, dtype=torch.float64)
    mean(twin(x), x).backward()
    assert optimizer.chunks.count == 0
    mean(net(x), x).backward()
    optimizer.step()
    assert [name for name, m in net.named_modules() if m._forward_hooks] == [""]
    del optimizer
    gc.collect()
    assert not any(m._forward_hooks for m in net.modules())


def test_beside_a_noise_scale():
    net = mlp()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=4)
    noise = NoiseScale(net, optimizer, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        for rows in (4, 4, 2):
            x = torch.randn(rows, 3, dtype=torch.float64)
            mean(net(x), x).backward()
        assert optimizer.chunks.samples == 10
        noise.update(samples=10)
        optimizer.step()


def test_one_rank_that_cannot_tell_stops_all(tmp_path):
    def action(rank):
        torch.manual_seed(0)
        net = mlp()
        ddp = DistributedDataParallel(net)
        optimizer = InvariantAdamW(net.parameters(), reference_batch=8, micro_batch=4)
        call = MODELS["plain"][1]
        for step in range(4):
            optimizer.zero_grad()
            x = torch.ones(4 if rank else 3, 3, dtype=torch.float64)
            (twice_the_rows if rank and step == 2 else call)(ddp, x).backward()
            if step == 2 and rank:
                assert optimizer.chunks.samples == 8  # the rows are known by now
            optimizer.step()
        fresh = InvariantAdamW(net.parameters(), reference_batch=8, micro_batch=4)
        (twice_the_rows if rank else call)(ddp, torch.ones(4, 3, dtype=torch.float64)).backward()
        with pytest.raises(InputError, match="given 8 rows" if rank else "another rank could not tell"):
            fresh.step()
        np.save(tmp_path / f"{rank}.npy", torch.cat([p.detach().flatten() for p in net.parameters()]).numpy())

    world(2, tmp_path, action)
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))
