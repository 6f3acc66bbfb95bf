"""The defects of other libraries' averages, each as a test that this one does not have it."""

import copy
import itertools
import math

import pytest
import torch
from tests.average.kinds import model, step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from isobatch.average import ModelEMA, Storage, cosine_momentum, tensorflow_warmup
from isobatch.errors import InputError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Recorder(TorchDispatchMode):
    """Records every operation and how many elements each new storage holds."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel())
        return out


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from itertools.chain.from_iterable(map(_tensors, tree.values()))
    elif isinstance(tree, list | tuple):
        yield from itertools.chain.from_iterable(map(_tensors, tree))


def fill(tensor, value):
    with torch.no_grad():
        tensor.fill_(value)


# timm, ultralytics, MMEngine: a tied tensor is visited under both its names and moves twice.
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_tied_weights_move_once(buffers):
    module = Tied()
    fill(module.embed.weight, 0.0)
    ema = ModelEMA(module, decay=0.9, batch_size=1, buffers=buffers)
    fill(module.embed.weight, 1.0)
    ema.update(samples=1)
    assert list(ema.average()) == ["embed.weight"]
    torch.testing.assert_close(ema.average()["embed.weight"], torch.full((5, 3), 0.1))
    averaged = ema.average_model()
    assert averaged.head.weight is averaged.embed.weight
    with ema.applied(module):
        assert module.head.weight is module.embed.weight
        torch.testing.assert_close(module.head.weight, torch.full((5, 3), 0.1))


# torch (use_buffers), Lightning, ema-pytorch, ultralytics, Composer: num_batches_tracked stays at 0 or 1.
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_integer_buffers_are_the_models(buffers):
    module = model()
    ema = ModelEMA(module, half_life=100, buffers=buffers)
    for j in range(20):
        module(torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(j)))
        ema.update(samples=6)
    assert ema.average_model()[1].num_batches_tracked == 20
    with ema.applied(module):
        assert module[1].num_batches_tracked == 20


def test_float_buffers_are_copied_or_averaged_by_choice():
    module = model()
    copied, averaged = ModelEMA(module, half_life=6), ModelEMA(module, half_life=6, buffers="average")
    start = module[1].running_mean.clone()
    module(torch.randn(6, 3, dtype=torch.float64))
    for ema in (copied, averaged):
        ema.update(samples=6)
    now = module[1].running_mean
    assert torch.equal(copied.average_model()[1].running_mean, now)
    torch.testing.assert_close(averaged.average_model()[1].running_mean, (start + now) / 2)


# ema-pytorch, MMEngine, Lightning, NeMo, pycls: every k-th update multiplies the half-life by k.
@pytest.mark.parametrize("cadence", [1, 2, 10, 50])
def test_half_life_does_not_depend_on_the_cadence(cadence):
    module = nn.Linear(1, 1, bias=False).double()
    fill(module.weight, 0.0)
    ema = ModelEMA(module, half_life=800, cadence=cadence)
    fill(module.weight, 1.0)
    for _ in range(100):
        ema.update(samples=8)
    torch.testing.assert_close(ema.average()["weight"].item(), 0.5)


# MMEngine, Keras: updates at each micro-batch shorten the half-life by the accumulation.
@pytest.mark.parametrize("parts", [1, 4, 8])
def test_half_life_does_not_depend_on_accumulation(parts):
    module = nn.Linear(1, 1, bias=False).double()
    fill(module.weight, 0.0)
    per_step, per_part = ModelEMA(module, half_life=320), ModelEMA(module, half_life=320)
    fill(module.weight, 1.0)
    for _ in range(40):
        per_step.update(samples=8)
        for _ in range(parts):
            per_part.update(samples=8 / parts)
    for ema in (per_step, per_part):
        torch.testing.assert_close(ema.average()["weight"].item(), 0.5)


def test_updates_per_micro_batch_are_noticed():
    module = model()
    ema = ModelEMA(module, half_life=320)

    def per_micro_batch():
        for j in range(40):
            if j % 4 == 3:
                step(module, j)
            ema.update(samples=2)

    with pytest.warns(UserWarning, match="unchanged"):
        per_micro_batch()
    assert "micro-batch" in ema.report().warnings[0]


# torch multi_avg_fn, ultralytics, MMEngine, ema-pytorch raise here; timm and diffusers take several passes.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_average_of_narrow_weights(dtype):
    module = model(dtype)
    ema = ModelEMA(module, decay=0.999, batch_size=1)
    expected = {n: p.detach().float() for n, p in module.named_parameters()}
    for j in range(5):
        step(module, j)
        ema.update(samples=1)
        for name, tensor in module.named_parameters():
            expected[name].lerp_(tensor.detach().float(), -math.expm1(math.log(0.999)))
    for name, value in ema.average().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    with ema.applied(module):
        assert module[0].weight.dtype == dtype
        assert torch.equal(module[0].weight, ema.average()["0.weight"].to(dtype))


# torch-ema: a float32 average of a bfloat16 model comes back from a checkpoint in bfloat16.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_comes_back_bit_for_bit_in_its_own_dtype(dtype):
    module = model(torch.bfloat16)
    ema = ModelEMA(module, half_life=1000, dtype=dtype)
    for j in range(3):
        step(module, j)
        ema.update(samples=8)
    other = ModelEMA(model(torch.bfloat16, seed=5), half_life=1000, dtype=dtype)
    other.load_state_dict(ema.state_dict())
    for name, value in ema.average().items():
        assert other.average()[name].dtype == dtype
        assert torch.equal(other.average()[name], value)


# torch-ema, diffusers: averages are matched by position.
def test_tensors_are_matched_by_name_whatever_their_order():
    def build(names):
        module = nn.Module()
        for name in names:
            module.register_parameter(name, nn.Parameter(torch.full((2,), float(ord(name)))))
        return module

    ema = ModelEMA(build("abc"), half_life=10)
    other = ModelEMA(build("cab"), half_life=10)
    for stack in other.average().values():
        stack.zero_()
    other.load_state_dict(ema.state_dict())
    assert {n: t[0].item() for n, t in other.average().items()} == {"a": 97.0, "b": 98.0, "c": 99.0}


# torch, timm, MMEngine, Lightning: rho and the step counter are not in the state.
def test_half_life_clock_and_warmup_are_in_the_state():
    module = model()
    ema = ModelEMA(module, half_life=123, cadence=4, warmup=tensorflow_warmup(batch_size=8))
    for j in range(6):
        step(module, j)
        ema.update(samples=8)
    other = ModelEMA(module, half_life=9)
    other.load_state_dict(ema.state_dict(), settings="saved")
    assert other.half_life == 123
    assert other.state_dict()["values"] == ema.state_dict()["values"]


# AveragedModel after one NaN: NaN for ever. (The battery of test_kinds.py holds this for every kind.)
def test_the_average_survives_a_nan_even_when_the_check_is_left_to_the_loop():
    module = model()
    ema = ModelEMA(module, half_life=10)
    with torch.no_grad():
        module[0].weight[0, 0] = math.nan
    with pytest.raises(ArithmeticError):
        ema.update(samples=1)
    fill(module[0].weight, 1.0)
    for _ in range(100):
        ema.update(samples=1)
    torch.testing.assert_close(ema.average()["0.weight"], torch.ones(4, 3, dtype=torch.float64), atol=1e-2, rtol=0)


# An _orig_mod. or module. prefix made another average skip every parameter in silence.
def test_prefixes_of_wrappers_do_not_matter_and_strangers_are_refused():
    module = model()
    ema = ModelEMA(nn.DataParallel(module), half_life=10)
    step(module, 0)
    ema.update(samples=10)
    compiled = torch.compile(module, backend="eager")
    raw = module[0].weight.clone()
    for wrapper in (compiled, nn.DataParallel(module), nn.DataParallel(compiled), module):
        with ema.applied(wrapper):
            assert torch.equal(module[0].weight, ema.average()["0.weight"])
        assert torch.equal(module[0].weight, raw)
    assert list(ModelEMA(compiled, half_life=1).average()) == list(ema.average())
    with pytest.raises(InputError, match="missing"), ema.applied(nn.Linear(3, 4)):
        pass


def test_a_compiled_part_of_the_model_keeps_its_names():
    module = model()
    plain = list(ModelEMA(module, half_life=1).average())
    module[0] = torch.compile(module[0], backend="eager")
    assert list(ModelEMA(module, half_life=1).average()) == plain


# ema-pytorch: on a failed deepcopy it calls exit().
def test_a_model_that_cannot_be_copied_is_an_ordinary_error():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    module = Stubborn(2, 2)
    ema = ModelEMA(module, half_life=10)
    with pytest.raises(InputError, match=r"no copies.*applied"):
        ema.average_model()
    with ema.applied(module):
        pass


# torch, ema-pytorch: .item() and bool() on counters make the host wait for the device.
def test_an_update_reads_nothing_back_to_the_host():
    module = model(torch.float32)
    ema = ModelEMA(module, half_life=10, storage=Storage(check_finite=False))
    with Recorder() as seen:
        ema.update(samples=8)
    assert seen.names
    assert not [n for n in seen.names if "_local_scalar_dense" in n or "is_nonzero" in n or "item" in n]


# diffusers foreach: an update holds a temporary as large as the model.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_allocates_less_than_one_tensor(dtype):
    module = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4))).to(dtype)
    ema = ModelEMA(module, half_life=10, storage=Storage(check_finite=False))
    with Recorder() as seen:
        ema.update(samples=8)
    assert seen.largest < 128 * 128


# Composer: a documented combination of arguments reads an attribute that was never set.
@pytest.mark.parametrize("kind", ["plain", "hold"])
@pytest.mark.parametrize("time", [{"half_life": 10.0}, {"half_life": 0}, {"half_life": math.inf}, {"decay": 0.9}])
@pytest.mark.parametrize("cadence", [1, 3, "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_combination_of_arguments_works(kind, time, cadence, dtype):
    module = model(torch.float32)
    batch = {"batch_size": 4} if "decay" in time else {}
    ema = ModelEMA(module, kind=kind, cadence=cadence, dtype=dtype, **time, **batch)
    for j in range(4):
        step(module, j)
        ema.update(samples=8)
    other = ModelEMA(module, kind=kind, cadence=cadence, dtype=dtype, **time, **batch)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(t, other.average()[n]) for n, t in ema.average().items())


# DINOv2 and DINOv3 scale the learning rate with the batch, not the teacher's momentum; BYOL's tau reaches 1.
@pytest.mark.parametrize("kappa", [0.5, 1, 4, 3])
def test_a_momentum_schedule_keeps_its_product_at_any_batch(kappa):
    schedule = cosine_momentum(0.99, 1.0, length=120 * 8, batch_size=8)
    reference = math.prod(1 - 0.01 * (math.cos(math.pi * j / 120) + 1) / 2 for j in range(120))
    module = nn.Linear(1, 1, bias=False).double()
    fill(module.weight, 1.0)
    ema = ModelEMA(module, half_life=1)
    fill(module.weight, 0.0)
    while ema.seen < 150 * 8:
        ema.update(samples=8 * kappa, half_life=schedule.half_life(ema.seen, 8 * kappa))
    torch.testing.assert_close(ema.average()["weight"].item(), reference, rtol=1e-12, atol=0)


# optax.incremental_update with rho ** kappa.
def test_agrees_with_a_scan_of_incremental_updates():
    module = model(torch.float32)
    ema = ModelEMA(module, decay=0.99, batch_size=16)
    expected = copy.deepcopy(dict(module.named_parameters()))
    for j, batch in enumerate([16, 64, 4, 100]):
        step(module, j)
        ema.update(samples=batch)
        rate = 1 - 0.99 ** (batch / 16)
        for name, new in module.named_parameters():
            expected[name] = rate * new.detach() + (1 - rate) * expected[name].detach()
    for name, value in ema.average().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
