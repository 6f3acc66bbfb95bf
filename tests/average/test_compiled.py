"""Compensated averages by torch.compile: plain PyTorch to rounding, from one graph, and without it where it fails."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from isobatch.average import LAWA, SWA, CopyUntil, ModelEMA, MultiEMA, PowerEMA, Storage
from isobatch.errors import InputError
from isobatch.gradients.compensated import blended

BATCHES = [8, 8, 24, 7, 1, 16, 64, 8, 13, 3]
HORIZONS = [50, 200, 800]
PLAIN = Storage(rounding="compensated")
COMPILED = Storage(rounding="compensated", compiled=True)


def net() -> nn.Module:
    """Tensors of several sizes, one of them strided, small ones among large ones."""
    torch.manual_seed(0)
    layers = nn.Linear(70, 90), nn.Linear(90, 64, bias=False), nn.Conv2d(64, 8, 3), nn.LayerNorm(9)
    model = nn.Sequential(*layers).bfloat16()
    model[2].to(memory_format=torch.channels_last)
    return model


def walk(model: nn.Module, *averages) -> list[dict[str, torch.Tensor]]:
    generator, seen = torch.Generator().manual_seed(1), []
    for batch_size in BATCHES:
        with torch.no_grad():
            for p in model.parameters():
                p.add_((0.1 * torch.randn(p.shape, generator=generator)).to(p.dtype))
        for average in averages:
            average.update(samples=batch_size)
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"rounding": "auto"}, {"rounding": "nearest"}, {"rounding": "stochastic"}, {}], ids=str
)
def test_what_was_measured_to_be_no_faster_is_refused(options, dtype):
    with pytest.raises(InputError, match="compensated"):
        ModelEMA(nn.Linear(1, 1), half_life=8, dtype=dtype, storage=Storage(compiled=True, **options))


@pytest.mark.parametrize("rounding", ["auto", "stochastic"])
def test_random_numbers_are_not_compiled(rounding):
    with pytest.raises(InputError, match="stochastic"):
        MAKERS["several"](nn.Linear(1, 1), Storage(compiled=True, rounding=rounding))


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_compiled_is_yes_or_no(value):
    with pytest.raises(InputError, match="True or False"):
        Storage(rounding="compensated", compiled=value)


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("held", [True, False])
def test_nothing_is_read_back_on_the_host(held):
    # With shares that are a tensor, the whole update could be captured once and replayed.
    average, rest, weights = (torch.ones(2, 8, dtype=torch.bfloat16) for _ in range(3))
    previous = torch.ones(8) if held else None
    with _Calls() as calls:
        blended(list(average), list(rest), previous, weights[0], torch.full((2, 2), 0.1))
    assert not [name for name in calls.seen if "local_scalar" in name or "_to_cpu" in name or "nonzero" in name]
    assert any("lerp" in name for name in calls.seen)
    names = "lerp.Scalar", "alpha"
    assert not [name for name in calls.seen if any(n in name for n in names)]


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("held", [True, False])
def test_the_function_is_the_rule(width, held):
    wide = torch.float64 if width == torch.float32 else torch.float32
    generator = torch.Generator().manual_seed(0)
    average, rest, weights, before = (torch.randn(3, 50, generator=generator).to(width) for _ in range(4))
    rest.mul_(1e-3)
    shares = torch.tensor([[0.0, 0.3, 1.0], [1.0, 0.01, 0.4]], dtype=wide)
    start = average.double() + rest.double()
    towards = before[0].double()
    expected = start + shares[:1].double().T * (towards - start) if held else start
    expected = expected + shares[1:].double().T * (weights[0].double() - expected)
    previous = before[0].clone() if held else None
    blended(list(average), list(rest), previous, weights[0], shares)
    torch.testing.assert_close(average.double() + rest.double(), expected, rtol=0, atol=8 * torch.finfo(width).eps ** 2)
    assert previous is None or torch.equal(previous, weights[0])


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_several_averages_are_the_rule_too(width, given):
    wide = torch.float64 if width == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    average, weights = (torch.randn(3, 50, generator=generator) for _ in range(2))
    average, weights = average.to(width), weights[0].to(given)
    shares = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.01, 0.0]], dtype=wide)
    expected = average.double() + shares[1:].double().T * (weights.double() - average.double())
    blended(list(average), [], None, weights, shares)
    slack = 2 * torch.finfo(width if width != torch.float64 else wide).eps
    torch.testing.assert_close(average.double(), expected, rtol=slack, atol=slack)


@pytest.mark.parametrize("flat", ["auto", True, False])
def test_one_call_a_model_unless_nothing_may_be_moved(flat):
    storage = Storage(compiled=True, flat=flat)
    average = MultiEMA(nn.Sequential(*(nn.Linear(80, 80) for _ in range(4))), half_lives=HORIZONS, storage=storage)
    assert len(average._engine.buffers.intake.updates[0]._compiled[0][1]) == (1 if flat else 4)


def test_where_compiling_fails_plain_pytorch_goes_on_with_one_warning(monkeypatch):
    def broken(*_, **__):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    model = net()
    plain, average = (ModelEMA(model, half_life=100, dtype=torch.bfloat16, storage=s) for s in (PLAIN, COMPILED))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler") as told:
        walk(model, plain, average)
    assert len(told) == 1
    assert told[0].filename == __file__
    mine, theirs = average.average(), plain.average()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    state, other = average.state_dict()["tensors"], plain.state_dict()["tensors"]
    assert all(torch.equal(state[key], other[key]) for key in other)


def test_small_models_never_call_the_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    model = nn.Linear(3, 3).bfloat16()
    walk(model, ModelEMA(model, half_life=100, dtype=torch.bfloat16, storage=COMPILED))


def whole(average) -> dict[str, torch.Tensor]:
    """Averages, in double precision and with what rounding lost, and what else is kept."""
    roles = average._engine.buffers.roles
    rests = roles["compensation"].tensors
    found = {name: stack.double() + rests[name].double() for name, stack in roles["average"].tensors.items()}
    previous = roles["previous"].tensors if "previous" in roles else {}
    return found | {f"previous {name}": stack.double() for name, stack in previous.items()}


SEVERAL = {
    "float32": lambda m, s: MultiEMA(m, half_lives=HORIZONS, storage=s),
    "float64": lambda m, s: MultiEMA(m, half_lives=HORIZONS, dtype=torch.float64, storage=s),
    "hold": lambda m, s: MultiEMA(m, half_lives=HORIZONS, kind="hold", storage=s),
    "recent": lambda m, s: LAWA(m, last=3, every=16, storage=s),
}
MAKERS = {
    "one": lambda m, s: ModelEMA(m, half_life=100, dtype=torch.bfloat16, storage=s),
    "copies at first": lambda m, s: ModelEMA(m, half_life=100, warmup=CopyUntil(20), dtype=torch.bfloat16, storage=s),
    "float32": lambda m, s: ModelEMA(m, half_life=100, storage=s),
    "several": lambda m, s: MultiEMA(m, half_lives=HORIZONS, dtype=torch.bfloat16, storage=s),
    "power": lambda m, s: PowerEMA(m, sigma_rels=[0.1], dtype=torch.bfloat16, storage=s),
    "hold": lambda m, s: ModelEMA(m, half_life=100, kind="hold", dtype=torch.bfloat16, storage=s),
    "tail": lambda m, s: SWA(m, start=16, dtype=torch.bfloat16, storage=s),
    "cadence": lambda m, s: ModelEMA(m, half_life=100, cadence=3, dtype=torch.bfloat16, storage=s),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_averages_are_the_plain_ones_to_rounding(name):
    make = MAKERS[name]
    model = net()
    plain, average = make(model, PLAIN), make(model, COMPILED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(model, plain, average)
    mine, theirs = whole(average), whole(plain)
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        # far below what the average's own dtype can tell: what rounding lost is kept by both
        torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-13 if name == "float32" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_compiled_averages_are_the_plain_ones_to_rounding(name, flat):
    make, model = SEVERAL[name], net()
    plain, average = make(model, Storage(flat=flat)), make(model, Storage(flat=flat, compiled=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(model, plain, average)
    mine, theirs = (a._engine.buffers.roles["average"].tensors for a in (average, plain))
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-14 if name == "float64" else 1e-6)


@pytest.mark.slow
def test_one_graph_serves_all_sizes_decays_and_batches():
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = net()
    averages = [ModelEMA(model, half_life=h, dtype=torch.bfloat16, storage=COMPILED) for h in (3, 100, 1e9)]
    walk(model, *averages)
    for half_life in (1, 10, 1e4, float("inf")):
        averages[0].update(samples=5, half_life=half_life)
    averages[0].load_state_dict(averages[0].state_dict())
    walk(model, *averages)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_teacher_and_versions_follow_compiled_updates():
    model = nn.Linear(80, 80).bfloat16()
    average = ModelEMA(model, half_life=10, dtype=torch.bfloat16, storage=COMPILED)
    teacher = average.teacher()
    walk(model, average)
    x = torch.randn(2, 80).bfloat16()
    with average.applied(model):
        assert torch.equal(model(x), teacher(x))
