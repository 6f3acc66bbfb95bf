"""What changes under a running measurement: frozen layers, adapters, copies, compiled code, kinds of tensors."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from tests.reference import noise as slow
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel

import isobatch as ib
from isobatch.errors import InputError
from isobatch.noise import NoiseScale, measure

ROWS = 16


def build(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, **options), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data(step):
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def loss(net, x):
    return (net(x).squeeze(1) - x.sum(1)).square().mean()


def train(net, noise, steps, optimizer=None, act=lambda step: None, micro=None):
    """`act(step)` happens between two steps."""
    for step in steps:
        act(step)
        net.zero_grad()
        for part in data(step).split(micro or ROWS):
            (loss(net, part) * (len(part) / ROWS)).backward()
        noise.update(samples=ROWS)
        if optimizer is not None:
            optimizer.step()
    return noise.estimate()


class Adapter(nn.Module):
    """A frozen layer and a small trained one beside it."""

    def __init__(self, layer):
        super().__init__()
        self.base = layer.requires_grad_(False)
        self.down, self.up = nn.Linear(layer.in_features, 2).double(), nn.Linear(2, layer.out_features).double()

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def freeze(net, names, value=False):
    for name in names:
        net[name].requires_grad_(value)


CHANGES = {
    "freeze the first": lambda net, o: freeze(net, [0]),
    "freeze all but the head": lambda net, o: freeze(net, [0, 2]),
    "freeze the head": lambda net, o: freeze(net, [4]),
    "freeze one bias": lambda net, o: net[2].bias.requires_grad_(False),
    "unfreeze the first": lambda net, o: freeze(net, [0], value=True),
    "unfreeze two at once": lambda net, o: freeze(net, [0, 2], value=True),
    "adapters in": lambda net, o: net.__setitem__(2, Adapter(net[2])),
    "a new group": lambda net, o: o.add_param_group({"params": net.append(nn.Linear(1, 1).double())[-1].parameters()}),
    "one frozen, one thawed": lambda net, o: (freeze(net, [4]), freeze(net, [0], value=True)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("options", [{}, {"groups": "layer"}], ids=str)
def test_a_change_of_what_trains_starts_the_window_again(name, micro, options):
    net = build()
    if "thaw" in name or "unfreeze" in name:
        freeze(net, [0, 2])
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    noise = NoiseScale(net, optimizer, every=1, rows=ROWS, half_life=1e9, **options)
    change = CHANGES[name]
    found = train(net, noise, range(8), optimizer, lambda step: change(net, optimizer) if step == 4 else None, micro)
    assert any("other parameters began to be trained" in text for text in found.caveats)
    assert found.excluded == 0
    assert found.measurements == 3
    fresh = NoiseScale(net, every=1, rows=ROWS, half_life=1e9)
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    one = train(net, fresh, range(20, 21), micro=micro)
    each = []
    for part in data(20).split(micro or 1):
        grads = torch.autograd.grad(loss(net, part), [p for p in net.parameters() if p.requires_grad])
        each.append(torch.cat([g.flatten() for g in grads]).numpy())
    assert one.trace == pytest.approx(slow.trace_Sigma(each, [micro or 1] * len(each)), rel=1e-9)
    assert all(torch.equal(p, weights[n]) for n, p in net.named_parameters())


def test_a_momentary_flip_loses_nothing():
    net = build()
    noise = NoiseScale(net, every=1)

    def reference_pass(step):
        net.requires_grad_(False)
        net(data(step))
        net.requires_grad_(True)

    found = train(net, noise, range(20), act=reference_pass)
    assert found.measurements == 20
    assert found.caveats == ()


def test_everything_frozen_and_thawed_again():
    net = build()
    noise = NoiseScale(net, every=1)
    train(net, noise, range(3))
    net.requires_grad_(False)
    for _ in range(3):
        noise.update(samples=ROWS)
    assert noise.estimate().caveats
    net.requires_grad_(True)
    assert train(net, noise, range(3, 9)).excluded == 0


def test_a_state_of_other_trained_layers_starts_again():
    net = build()
    noise = NoiseScale(net, every=1)
    train(net, noise, range(6))
    state = noise.state_dict()
    other = build()
    freeze(other, [0])
    again = NoiseScale(other, every=1)
    again.load_state_dict(state)
    assert train(other, again, range(6, 9)).measurements <= 3


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, ib.InvariantAdamW])
def test_a_copy_of_a_measured_model_drags_nothing_along(copier, wrapped, kind):
    net = build()
    model = DataParallel(net) if wrapped else net
    options = {"reference_batch": 8, "micro_batch": ROWS} if kind is ib.InvariantAdamW else {}
    optimizer = kind(net.parameters(), 0.01, **options)
    noise = NoiseScale(model, optimizer, every=1)
    twin = copier(model)
    loss(twin, data(0)).backward()
    noise.update(samples=ROWS)
    assert "no backward pass" in noise.estimate().reason
    if kind is ib.InvariantAdamW:
        assert optimizer.chunks.count == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.compile(lambda x: loss(net, x), backend="eager"),
        lambda net: [block.compile(backend="eager") for block in net] and (lambda x: loss(net, x)),
        lambda net: (net[0].compile(backend="eager"), lambda x: loss(net, x))[1],
        lambda net: (net.__setitem__(2, torch.compile(net[2], backend="eager")), lambda x: loss(net, x))[1],
    ],
    ids=["function", "blocks", "one block", "wrapped block"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_code_keeps_its_graph(make):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    net = build()
    step = make(net)
    noise = NoiseScale(net, every=3)
    for i in range(9):
        net.zero_grad()
        step(data(i)).backward()
        noise.update(samples=ROWS)
    assert not dynamo.utils.counters["graph_break"]
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * 5
    for i in range(12):
        net.zero_grad()
        for part in data(i).split(4):
            (step(part) / 4).backward()
        noise.update(samples=ROWS)
    found = noise.estimate()
    assert found.measurements >= 3
    assert found.excluded == 0


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(2)


def meta():
    with torch.device("meta"):
        return nn.Linear(2, 1)


def float8():
    net = nn.Linear(2, 2, bias=False)
    net.weight = nn.Parameter(net.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    net.weight.requires_grad_(True)
    return net


def made_in_inference():
    with torch.inference_mode():
        return nn.Linear(2, 1)


def flat():
    net = nn.Linear(2, 1)
    net.weight._is_flat_param = True
    return net


def sparse():
    net = nn.Linear(2, 2, bias=False)
    net.weight = nn.Parameter(torch.eye(2).to_sparse())
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Lazy, "lazy module"),
        (lambda: nn.LazyConv1d(2, 3), "lazy module"),
        (meta, "meta device"),
        (float8, "float8"),
        (made_in_inference, "inference mode"),
        (flat, "FSDP1"),
        (sparse, "layout"),
        (lambda: nn.Linear(2, 1, dtype=torch.complex64), "view_as_real"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, dtype=torch.complex128)), "'1.weight' is complex"),
    ],
)
@pytest.mark.parametrize(
    "bind",
    [
        lambda net: NoiseScale(net),
        lambda net: measure(lambda m, x: m(x).mean(), net, [torch.ones(2, 2)] * 4),
        lambda net: ib.InvariantAdamW(net.parameters(), reference_batch=4),
    ],
    ids=["noise", "measure", "invariant"],
)
def test_parameters_that_cannot_be_watched_are_refused_by_name(make, words, bind):
    net = make()
    match = words.replace("'1.weight' is complex", "complex")
    with pytest.raises(InputError, match=match):
        bind(net)


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x,
        lambda x: (x, x),
        lambda x: Pair(x, x),
        lambda x: {"x": x, "n": 3},
        lambda x: [x, {"y": x}],
        lambda x: {"p": Pair(x, 1.0)},
        lambda x: (Pair(x, x), [x]),
        lambda x: Pair({"x": x}, None),
    ],
)
def test_halves_cut_any_batch(batch):
    def first(value):
        if isinstance(value, dict):
            return first(next(iter(value.values())))
        return value if isinstance(value, torch.Tensor) else first(value[0])

    net = build()
    noise = NoiseScale(net, every=1)
    for step in range(4):
        net.zero_grad()
        noise.halves(lambda x, y: F.mse_loss(net(first(x)).squeeze(1), y), batch(data(step)), data(step).sum(1))
        noise.update(samples=ROWS)
    assert noise.estimate().measurements == 4


@pytest.mark.parametrize("number", ["int64", "int32", "uint8", "float32", "float64", "int16", "float16", "uint64"])
def test_numpy_numbers_count_samples(number):
    import json

    import numpy as np

    net = build()
    noise = NoiseScale(net, every=1)
    loss(net, data(0)).backward()
    noise.update(samples=getattr(np, number)(ROWS))
    with noise.chunk(getattr(np, number)(ROWS)):
        pass
    assert noise.seen == ROWS
    json.dumps(noise.state_dict()["values"], allow_nan=False)


def test_a_buffer_that_a_forward_pass_replaces_is_given_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1).double()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.layer(x)

    net = Counting()
    before = net.calls
    measure(loss, net, data(0).split(4))
    assert net.calls is before
    assert float(before) == 0


def test_gradients_changed_on_the_way_are_named():
    net = build()
    noise = NoiseScale(net, every=1)
    for step in range(3):
        net.zero_grad()
        loss(net, data(step)).backward()
        nn.utils.clip_grad_value_(net.parameters(), 1e-3)
        noise.update(samples=ROWS)
    found = noise.estimate()
    assert found.verdict == "undefined"
    assert "more than one factor" in found.reason


def test_a_small_share_of_the_weights_is_not_the_model():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 40, dtype=torch.float64) * 0.1)
            self.head = nn.Linear(40, 1).double()

        def forward(self, x):
            return self.head(x @ self.w)

    found = train(net := Free(), NoiseScale(net, every=1), range(60))
    assert found.verdict == "not identified"
    assert any("of 20.4%" in text for text in found.caveats)


def test_a_stretch_measures_its_steps_alone_and_begins_its_window_there():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    noise = NoiseScale(net, optimizer, between=(40, 200), capture="norms", rows=8)
    state, armed = None, []
    draw = torch.Generator().manual_seed(0)
    for step in range(30):
        armed.append(noise.armed)
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=draw)
        (net(x).squeeze(1) - x.sum(1)).square().mean().backward()
        noise.update(samples=8)
        optimizer.step()
        if step == 12:
            state = noise.state_dict()
            noise = NoiseScale(net, optimizer, between=(40, 200), capture="norms", rows=8)
            noise.load_state_dict(state)
    assert armed == [5 <= step < 25 for step in range(30)]
    assert noise.history.start == 40
    assert [cell.span for cell in noise.history.cells] == [8.0] * 20
    found = noise.estimate()
    assert found.measurements == 20
    assert "measured from 40 to 200 samples alone" in found.caveats


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"between": (40, 200), "every": 2}, "drop one of them"),
        ({"between": (200, 40)}, "must rise"),
        ({"between": (40, 40)}, "must rise"),
        ({"between": (-1, 40)}, "between"),
        ({"between": (0, float("nan"))}, "between"),
    ],
)
def test_a_stretch_that_is_none_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        NoiseScale(nn.Linear(2, 1), **options)
