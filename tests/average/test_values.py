"""Values that a user may pass: honoured, or an InputError at the door; never an error from inside torch or Python."""

import collections
import fractions
import itertools
import json
import math
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.nn.utils import parametrizations, prune, rnn

from isobatch import ModelEMA
from isobatch.average import (
    LAWA,
    SWA,
    MultiEMA,
    ObservedMean,
    PowerEMA,
    Ramp,
    Storage,
    SwitchEMA,
    recalibrate,
    trainable,
)
from isobatch.errors import InputError, IsobatchError


def linear():
    return nn.Linear(3, 3)


NUMBERS = [8, 8.0, np.int64(8), np.int32(8), np.float32(8), np.float64(8), np.uint8(8), fractions.Fraction(8)]
NO_NUMBERS = [0, -1, math.nan, math.inf, True, "8", None, [8], torch.tensor(8), np.array([8]), 8j,
              np.bool_(True)]  # fmt: skip


@pytest.mark.parametrize("samples", NUMBERS, ids=repr)
def test_numbers_of_any_type_become_plain_ones(samples):
    module = linear()
    ema, attached = ModelEMA(module, half_life=100), ModelEMA(module, half_life=100)
    ema.update(samples=samples)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    attached.attach(optimizer, samples=samples)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for average in (ema, attached):
        assert json.loads(json.dumps(average.state_dict()["values"]))["clock"]["seen"] == 8
        assert type(average.seen) in (int, float)
    ema.load_average(dict(module.named_parameters()), seen=samples)
    json.dumps(ema.state_dict()["values"])


@pytest.mark.parametrize("samples", NO_NUMBERS, ids=repr)
def test_what_is_no_number_of_samples_is_refused(samples):
    module = linear()
    ema = ModelEMA(module, half_life=100)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    for call in (lambda: ema.update(samples=samples), lambda: ema.attach(optimizer, samples=samples)):
        with pytest.raises(InputError, match="samples"):
            call()
    mean = ObservedMean(torch.zeros(1), 8)
    with pytest.raises(InputError, match="samples"):
        mean.commit(samples=samples)


BAD_ARGUMENTS = {
    "a state dict as model": lambda: ModelEMA(linear().state_dict(), half_life=1),
    "tensors as model": lambda: ModelEMA([p.detach() for p in linear().parameters()], half_life=1),
    "half_life a word": lambda: ModelEMA(linear(), half_life="2 epochs"),
    "half_life a tensor": lambda: ModelEMA(linear(), half_life=torch.tensor(2.0)),
    "half_life NaN": lambda: ModelEMA(linear(), half_life=math.nan),
    "decay above one": lambda: ModelEMA(linear(), decay=1.5, batch_size=2),
    "decay without batch": lambda: ModelEMA(linear(), decay=0.9),
    "batch a word": lambda: ModelEMA(linear(), decay=0.9, batch_size="2"),
    "dtype a word": lambda: ModelEMA(linear(), half_life=1, dtype="float32"),
    "dtype whole": lambda: ModelEMA(linear(), half_life=1, dtype=torch.int64),
    "dtype float8": lambda: ModelEMA(linear(), half_life=1, dtype=torch.float8_e4m3fn),
    "dtype complex": lambda: ModelEMA(linear(), half_life=1, dtype=torch.complex64),
    "cadence zero": lambda: ModelEMA(linear(), half_life=1, cadence=0),
    "cadence a word": lambda: ModelEMA(linear(), half_life=1, cadence="often"),
    "cadence None": lambda: ModelEMA(linear(), half_life=1, cadence=None),
    "warmup a word": lambda: ModelEMA(linear(), half_life=1, warmup="ramp"),
    "warmup a class": lambda: ModelEMA(linear(), half_life=1, warmup=Ramp),
    "storage a dict": lambda: ModelEMA(linear(), half_life=1, storage={"flat": True}),
    "kind": lambda: ModelEMA(linear(), half_life=1, kind="nesterov"),
    "buffers": lambda: ModelEMA(linear(), half_life=1, buffers=True),
    "select a list": lambda: Storage(select=["weight"]),
    "half_lives a number": lambda: MultiEMA(linear(), half_lives=5),
    "half_lives a word": lambda: MultiEMA(linear(), half_lives="5"),
    "half_lives empty": lambda: MultiEMA(linear(), half_lives=[]),
    "half_lives twice": lambda: MultiEMA(linear(), half_lives=[5, 5.0]),
    "sigma_rels None": lambda: PowerEMA(linear(), sigma_rels=None),
    "sigma_rels words": lambda: PowerEMA(linear(), sigma_rels=["0.1"]),
    "start": lambda: SWA(linear(), start="late"),
    "last": lambda: LAWA(linear(), last=2.5, every=8),
    "every": lambda: LAWA(linear(), last=2, every=None),
    "ema of SwitchEMA": lambda: SwitchEMA(linear(), every=8),
    "horizon": lambda: MultiEMA(linear(), half_lives=[5, 9]).average("5"),
    "horizon a list": lambda: MultiEMA(linear(), half_lives=[5, 9]).average([5]),
    "horizon of one": lambda: ModelEMA(linear(), half_life=5).average(5),
    "half_life of a step": lambda: ModelEMA(linear(), half_life=5).update(samples=1, half_life="x"),
    "mode": lambda: ModelEMA(linear(), half_life=5).teacher("learn"),
    "mode a list": lambda: ModelEMA(linear(), half_life=5).teacher(["eval"]),
    "model of applied": lambda: ModelEMA(linear(), half_life=5).applied("model").__enter__(),
    "model of copy_to": lambda: ModelEMA(linear(), half_life=5).copy_to(None),
    "optimizer of attach": lambda: ModelEMA(linear(), half_life=5).attach(None, 8),
    "optimizer of watch": lambda: ModelEMA(linear(), half_life=5).watch(linear()),
    "tensors of load_average": lambda: ModelEMA(linear(), half_life=5).load_average([torch.zeros(3)]),
    "numpy in load_average": lambda: ModelEMA(linear(), half_life=5).load_average(
        {"weight": np.zeros((3, 3)), "bias": np.zeros(3)}
    ),
    "seen of load_average": lambda: ModelEMA(linear(), half_life=5).load_average(linear().state_dict(), seen="9"),
    "start of a mean": lambda: ObservedMean([0.0], 5),
    "whole start of a mean": lambda: ObservedMean(torch.zeros(1, dtype=torch.int64), 5),
    "half_life of a mean": lambda: ObservedMean(torch.zeros(1), "5"),
    "values of a mean": lambda: ObservedMean(torch.zeros(1), 5).add([[1.0]]),
    "no rows of a mean": lambda: ObservedMean(torch.zeros(()), 5).add(torch.tensor(1.0)),
    "complex rows of a mean": lambda: ObservedMean(torch.zeros(1), 5).add(torch.ones(2, 1, dtype=torch.complex64)),
    "complex state of a mean": lambda: ObservedMean(torch.zeros(1), 5).load_state_dict(
        {"value": torch.ones(1, dtype=torch.complex64)}
    ),
    "meta state of a mean": lambda: ObservedMean(torch.zeros(1), 5).load_state_dict(
        {"value": torch.ones(1, device="meta")}
    ),
    "state of a mean": lambda: ObservedMean(torch.zeros(1), 5).load_state_dict({}),
    "batches": lambda: recalibrate(nn.BatchNorm1d(3), 5),
    "batches a dict": lambda: recalibrate(nn.BatchNorm1d(3), {"x": torch.zeros(2, 3)}),
    "an empty batch": lambda: recalibrate(nn.BatchNorm1d(3), [()]),
    "one value": lambda: recalibrate(nn.BatchNorm1d(3), [torch.zeros(1, 3, 1)]),
    "model of recalibrate": lambda: recalibrate(None, []),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments_out_of_place_are_refused_in_words(name):
    with pytest.raises(InputError) as error:
        BAD_ARGUMENTS[name]()
    assert len(str(error.value)) > 20


def damaged(change):
    ema = ModelEMA(linear(), half_life=100, dtype=torch.bfloat16)
    ema.update(samples=8)
    state = ema.state_dict()
    state = {"tensors": dict(state["tensors"]), "values": json.loads(json.dumps(state["values"]))}
    return ema, change(state) or state


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(state):
        for key in path:
            state = state[key]
        state[last] = value

    return change


DAMAGE = {
    "a list": lambda s: [1],
    "tensors a list": put("tensors", []),
    "values a word": put("values", "x"),
    "class a number": put("values", "class", 5),
    "format a word": put("values", "format", "new"),
    "settings a list": put("values", "settings", []),
    "no half-life": lambda s: s["values"]["settings"].pop("half_life") and None,
    "half-life a word": put("values", "settings", "half_life", "long"),
    "half-life negative": put("values", "settings", "half_life", -5),
    "cadence a word": put("values", "settings", "cadence", "often"),
    "warm-up unknown": put("values", "settings", "warmup", {"name": "Slow"}),
    "warm-up without name": put("values", "settings", "warmup", {}),
    "warm-up a word": put("values", "settings", "warmup", "Ramp"),
    "warm-up of other fields": put("values", "settings", "warmup", {"name": "Ramp", "speed": 2}),
    "clock a list": put("values", "clock", []),
    "seen a word": put("values", "clock", "seen", "8"),
    "seen NaN": put("values", "clock", "seen", math.nan),
    "calls negative": put("values", "clock", "calls", -1),
    "spans a number": put("values", "clock", "spans", 0.0),
    "spans words": put("values", "clock", "spans", ["x"]),
    "ages empty": put("values", "clock", "ages", []),
    "ages of two": put("values", "clock", "ages", [0.0, 0.0]),
    "a numpy tensor": put("tensors", "average/weight", np.zeros((3, 3))),
    "a meta tensor": put("tensors", "average/weight", torch.zeros(3, 3, device="meta")),
    "a sparse tensor": put("tensors", "average/weight", torch.zeros(3, 3).to_sparse()),
    "a whole tensor": put("tensors", "average/weight", torch.zeros(3, 3, dtype=torch.int64)),
    "a complex tensor": put("tensors", "average/weight", torch.zeros(3, 3, dtype=torch.complex64)),
    "a float8 tensor": put("tensors", "average/weight", torch.zeros(3, 3).to(torch.float8_e5m2)),
    "another shape": put("tensors", "average/weight", torch.zeros(3)),
    "a short generator": put("tensors", "generator/cpu", torch.zeros(5, dtype=torch.uint8)),
    "a generator of words": put("tensors", "generator/cpu", "seed"),
    "a key without role": put("tensors", "weight", torch.zeros(3, 3)),
}


@pytest.mark.parametrize("settings", ["saved", "match"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_states_are_refused_and_change_nothing(name, settings):
    ema, state = damaged(DAMAGE[name])
    kept = {k: t.clone() for k, t in ema.state_dict()["tensors"].items()}
    values = json.dumps(ema.state_dict()["values"])
    with pytest.raises(InputError):
        ema.load_state_dict(state, settings=settings)
    assert json.dumps(ema.state_dict()["values"]) == values
    assert all(torch.equal(t, kept[k]) for k, t in ema.state_dict()["tensors"].items())
    ema.update(samples=8)


class Head(nn.Module):
    """Tied weights, the head first or last."""

    def __init__(self, tied=True, last=True):
        super().__init__()
        names = ("embed", "head") if last else ("head", "embed")
        for name in names:
            self.add_module(name, nn.Linear(3, 3, bias=False) if name == "head" else nn.Embedding(3, 3))
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_tied_weights_load_under_either_name(name, prefix):
    ema = ModelEMA(Head(), half_life=8)
    ema.load_average({prefix + name: torch.full((3, 3), 2.0)})
    assert float(ema.average()["embed.weight"][0, 0]) == 2.0


@pytest.mark.parametrize("last", [True, False])
def test_tied_weights_of_models_built_in_another_order_are_the_same(last):
    ema = ModelEMA(Head(last=last), half_life=8)
    other = ModelEMA(Head(last=not last), half_life=8)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(next(iter(other.average().values())), next(iter(ema.average().values())))
    untied = Head(tied=False)
    raw = untied.head.weight.clone()
    with ema.applied(untied):
        assert torch.equal(untied.head.weight, untied.embed.weight)
    assert torch.equal(untied.head.weight, raw)
    ema.copy_to(untied)
    assert torch.equal(untied.head.weight, untied.embed.weight)


def test_two_values_of_one_tied_tensor_are_refused():
    ema, two = ModelEMA(Head(), half_life=8), ModelEMA(Head(tied=False), half_life=8)
    with pytest.raises(InputError, match=r"head\.weight"):
        ema.load_state_dict(two.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_running_mean_of_a_narrow_start_does_not_stand_still(dtype, shape):
    mean = ObservedMean(torch.zeros(shape, dtype=dtype), 10_000)
    for _ in range(2_000):
        mean.add(torch.ones(8, *shape, dtype=dtype))
        mean.commit(samples=8)
    torch.testing.assert_close(mean.value, torch.full(shape, 1 - 2**-1.6), atol=1e-4, rtol=0)


class ByName(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(input=x)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.norm = nn.GRU(3, 4, batch_first=True), nn.BatchNorm1d(4)

    def forward(self, packed):
        return self.norm(self.rnn(packed)[0].data)


def plain_norm():
    return nn.Sequential(nn.BatchNorm1d(3))


Pair = collections.namedtuple("Pair", "x y")
Y = torch.arange(24.0).view(8, 3)
BATCHES = {
    "tensors": ([Y[:4], Y[4:]], plain_norm, None),
    "tuples": ([(Y[:4], 0), (Y[4:], 1)], plain_norm, None),
    "lists": ([[Y]], plain_norm, None),
    "namedtuples": ([Pair(Y[:5], 0), Pair(Y[5:], 0)], plain_norm, None),
    "dicts": ([{"x": Y}], plain_norm, lambda m, b: m(b["x"])),
    "objects": ([types.SimpleNamespace(x=Y)], plain_norm, lambda m, b: m(b.x)),
    "a generator": ((part for part in Y.split(3) if len(part) > 1), plain_norm, None),
    "by keyword": ([Y[:4], Y[4:]], lambda: ByName(nn.BatchNorm1d(3)), None),
    "sync by keyword": ([Y[:4], Y[4:]], lambda: ByName(nn.SyncBatchNorm(3)), None),
    "double": ([Y.double()], lambda: plain_norm().double(), None),
    "wrapped": ([Y], lambda: DataParallel(plain_norm()), None),
    "frozen and evaluated": ([Y], lambda: plain_norm().eval().requires_grad_(False), None),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_batches_in_any_form_are_measured(name, inference):
    batches, make, forward = BATCHES[name]
    batches = list(Y.split(4)) if name == "a generator" else batches
    model = make()
    with torch.inference_mode(inference):
        recalibrate(model, iter(batches), forward=forward)
    norm = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    torch.testing.assert_close(norm.running_mean.float(), Y.mean(0))
    torch.testing.assert_close(norm.running_var.float(), Y.var(0))
    model.train()
    if not isinstance(norm, nn.SyncBatchNorm):
        (forward or (lambda m, x: m(x)))(model, batches[0] if forward else Y.to(norm.weight.dtype))


def test_a_packed_sequence_is_one_input():
    model = Packed()
    packed = rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    assert recalibrate(model, [packed, (packed, 1)]) == 2
    assert bool(torch.isfinite(model.norm.running_var).all())


class Two(nn.Module):
    """Features with and without batch norm in front of heads that have it."""

    def __init__(self, inside):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3) if inside else nn.ReLU())
        self.head = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("inside", [True, False])
def test_layers_that_the_forward_does_not_reach_keep_their_statistics(inside):
    model = Two(inside)
    model.head[1].running_mean.fill_(7.0)
    assert recalibrate(model, [Y[:4], Y[4:]], forward=lambda m, x: m.body(x)) == 2
    assert float(model.head[1].running_mean[0]) == 7.0
    assert int(model.head[1].num_batches_tracked) == 0
    if inside:
        torch.testing.assert_close(model.body[1].running_mean, model.body[0](Y).mean(0).detach())


def sparse_gradients():
    return nn.Embedding(5, 3, sparse=True)


def complex_layer():
    return nn.Linear(3, 3, dtype=torch.complex64)


def float8_layer():
    layer = linear()
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def sparse_weight():
    layer = nn.Module()
    layer.w = nn.Parameter(torch.eye(3).to_sparse())
    return layer


def whole_weight():
    layer = linear()
    layer.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    return layer


def meta_layer():
    with torch.device("meta"):
        return linear()


def half_meta():
    return nn.Sequential(linear(), meta_layer())


def inference_layer():
    with torch.inference_mode():
        return linear()


def expanded():
    layer = linear()
    layer.scale = nn.Parameter(torch.ones(1).expand(3), requires_grad=False)
    return layer


def empty_and_scalar():
    layer = linear()
    layer.none = nn.Parameter(torch.zeros(0))
    layer.one = nn.Parameter(torch.tensor(1.0))
    layer.register_parameter("absent", None)
    return layer


class Tagged(torch.Tensor):
    pass


def tagged():
    layer = linear()
    layer.weight = nn.Parameter(torch.zeros(3, 3).as_subclass(Tagged))
    return layer


def shared():
    layer = linear()
    return nn.Sequential(layer, layer)


def pruned():
    return prune.l1_unstructured(linear(), "weight", 0.5)


def views():
    layer, flat = linear(), torch.zeros(12)
    layer.weight, layer.bias = nn.Parameter(flat[:9].view(3, 3)), nn.Parameter(flat[9:])
    return layer


MODELS = [
    linear, complex_layer, sparse_gradients, float8_layer, sparse_weight, whole_weight, meta_layer, half_meta,
    inference_layer, expanded, empty_and_scalar, tagged, shared, Head, pruned, views,
    lambda: nn.LazyLinear(3), lambda: torch.jit.script(linear()), lambda: nn.Sequential(torch.jit.script(linear())),
    lambda: nn.BatchNorm1d(3), lambda: nn.Sequential(linear(), nn.BatchNorm1d(3)), lambda: nn.LSTM(3, 3),
    lambda: parametrizations.spectral_norm(linear()), lambda: nn.Identity(), lambda: nn.Conv2d(3, 3, 3),
    lambda: linear().to(torch.float64), lambda: nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last),
]  # fmt: skip
DTYPES = [None, torch.bfloat16, torch.float16, torch.float64]
WRAPPERS = [
    lambda m: m,
    DataParallel,
    lambda m: torch.compile(m, backend="eager"),
    lambda m: nn.Sequential(torch.compile(m, backend="eager")),
    lambda m: DataParallel(nn.ModuleDict({"a": m})),
]
OPTIONS = [
    {},
    {"buffers": "average"},
    {"storage": Storage(flat=True)},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16, "kind": "hold"},
    {"storage": Storage(rounding="compensated"), "cadence": "auto"},
    {"storage": Storage(select=trainable)},
]


def everything(make, dtype, wrap, options, inference):
    """Build, cast, wrap, average, read, lend, copy, save and load; what is refused is refused in words."""
    model = make()
    if dtype is not None:
        model = model.to(dtype)
    model = wrap(model)
    with torch.inference_mode(inference):
        ema = ModelEMA(model, half_life=10, **options)
        for mode in ("eval", "train"):
            ema.teacher(mode)
    with torch.no_grad():
        for p in model.parameters():
            if p.dtype.is_floating_point and not p.is_meta and p.requires_grad:
                p.add_(0.1)
    for samples in (8, np.int64(4)):
        ema.update(samples=samples)
    ema.report()
    with ema.applied(model):
        pass
    with torch.inference_mode(inference):
        made = ema.average_model()
    ema.copy_to(made)
    ema.copy_to(model)
    state = ema.state_dict()
    json.dumps(state["values"], allow_nan=False)
    again = ModelEMA(model, half_life=10, **options)
    again.load_state_dict(state)
    again.load_average(ema.average())
    again.reset()
    ema.teacher()
    return ema


FUZZ = list(itertools.product(range(len(MODELS)), range(len(DTYPES)), range(len(WRAPPERS))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(MODELS)))
def test_no_model_dtype_or_wrapper_shows_an_error_from_inside(number):
    worked, refused = 0, []
    for k, (which, dtype, wrap) in enumerate(c for c in FUZZ if c[0] == number):
        for j in range(2):
            options = OPTIONS[(k + 3 * j + number) % len(OPTIONS)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    make = MODELS[which]
                    made = make()
                    made = made.to(DTYPES[dtype]) if DTYPES[dtype] is not None else made
                    WRAPPERS[wrap](made)
                except Exception:  # torch itself does not build, cast or wrap it
                    continue
                try:
                    everything(MODELS[which], DTYPES[dtype], WRAPPERS[wrap], options, bool(k % 2))
                    worked += 1
                except IsobatchError as error:
                    refused.append(str(error))
    assert worked + len(refused) > 0
    assert all(len(words) > 20 for words in refused)
    if MODELS[number] in (linear, complex_layer, sparse_gradients, whole_weight, empty_and_scalar, shared, Head, views):
        assert worked
        assert not [words for words in refused if "cannot be averaged" in words or "cannot be copied" in words]


def test_the_fuzz_is_wide():
    assert 2 * len(FUZZ) >= 300
