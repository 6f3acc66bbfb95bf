"""How averages are held: rounding, layout, selection, and models that change under them."""

import math
from contextlib import nullcontext

import pytest
import torch
from tests.average.kinds import model, step
from torch import nn

from isobatch.average import ModelEMA, MultiEMA, Storage, intake, trainable
from isobatch.average.kernels import compensated_, stochastic_
from isobatch.errors import InputError

LAYOUTS = {
    "plain": {},
    "flat": {"storage": Storage(flat=True)},
}


def many(dtype=torch.float32):
    """Tensors on both sides of every size limit, tied, strided and empty."""
    torch.manual_seed(0)
    module = nn.Module()
    shapes = [(3,), (5, 7), (4096,), (4097,), (600, 700), (16, 3, 3, 3), (0,), (), (65536,)]
    for k, shape in enumerate(shapes):
        module.register_parameter(f"p{k}", nn.Parameter(torch.randn(shape).to(dtype)))
    module.p5 = nn.Parameter(torch.randn(16, 3, 3, 3).to(dtype).to(memory_format=torch.channels_last))
    module.strided = nn.Parameter(torch.randn(6, 8).to(dtype)[:, ::2])
    module.turned = nn.Parameter(torch.randn(6, 8).to(dtype).t())
    module.f64 = nn.Parameter(torch.randn(9, dtype=torch.float64))
    module.c64 = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    return module


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "hold"])
def test_every_shape_and_stride_is_averaged_alike(layout, weights, count, kind):
    module = many(weights)
    half_lives = [40.0, 8.0, 300.0][:count]
    averages = MultiEMA(module, half_lives=half_lives, kind=kind, **LAYOUTS[layout])
    expected = {h: {n: p.detach().clone() for n, p in module.named_parameters()} for h in half_lives}
    wide = {
        h: {n: p.to(torch.complex128 if p.is_complex() else torch.float64) for n, p in e.items()}
        for h, e in expected.items()
    }
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for j in range(3):
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(0.9 + 0.1 * j)
        averages.update(samples=16)
        for h in half_lives:
            x = 16 / h * math.log(2)
            first = 1 - 2 ** (-16 / h)
            after = 1 - first / x if kind == "hold" else first
            for n, p in module.named_parameters():
                old, new = before[n].to(wide[h][n].dtype), p.detach().to(wide[h][n].dtype)
                wide[h][n] = (1 - first) * wide[h][n] + (first - after) * old + after * new
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for h in half_lives:
        for n, value in averages.average(h).items():
            torch.testing.assert_close(value.to(wide[h][n].dtype), wide[h][n], rtol=2e-6, atol=1e-6)
            assert value.dtype == {torch.bfloat16: torch.float32}.get(
                dict(module.named_parameters())[n].dtype, value.dtype
            )


def test_flat_storage_keeps_the_parameters_and_their_values():
    module = many()
    objects, values = list(module.parameters()), [p.detach().clone() for p in module.parameters()]
    ema = ModelEMA(module, half_life=10, storage=Storage(flat=True))
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, module.parameters(), strict=True))
    assert module.p0.untyped_storage().data_ptr() == module.p2.untyped_storage().data_ptr()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    sum(p.abs().sum() for p in module.parameters() if p.numel()).backward()
    optimizer.step()
    ema.update(samples=10)
    torch.testing.assert_close(ema.average()["p0"], (values[0] + module.p0.detach()) / 2)


def test_a_model_cast_or_moved_in_place_is_followed():
    for storage in (Storage(), Storage(flat=True)):
        module = model(torch.float32)
        ema = ModelEMA(module, half_life=10, storage=storage)
        module.to(torch.bfloat16)
        step(module, 0)
        kept = ema.average()["0.weight"].clone()
        ema.update(samples=10)
        torch.testing.assert_close(ema.average()["0.weight"], (kept + module[0].weight.detach().float()) / 2)


def test_a_replaced_parameter_or_module_is_followed():
    module = model()
    ema = ModelEMA(module, half_life=10)
    kept = ema.average()["0.weight"].clone()
    module[0].weight = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    ema.update(samples=10)
    torch.testing.assert_close(ema.average()["0.weight"], (kept + 1) / 2)
    module[2] = nn.Linear(4, 2).double()
    with torch.no_grad():
        module[2].weight.fill_(5.0)
    kept = ema.average()["2.weight"].clone()
    ema.update(samples=10)
    torch.testing.assert_close(ema.average()["2.weight"], (kept + 5) / 2)


@pytest.mark.parametrize("storage", [Storage(), Storage(flat=True)])
def test_a_replaced_parameter_of_very_many_is_followed_within_a_round(storage):
    module = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(1000)])
    ema = ModelEMA(module, half_life=1e9, storage=storage)
    module[777] = nn.Parameter(torch.ones(2))
    for _ in range(16):
        ema.update(samples=1)
    ema.update(samples=1, half_life=0)
    assert float(ema.average()["777"][0]) == 1.0
    module[333].data = torch.full((2,), 3.0)
    with ema.applied(module):
        pass
    ema.update(samples=1, half_life=0)
    assert float(ema.average()["333"][0]) == 3.0


def test_added_and_removed_parameters_are_told_and_followed():
    module = model()
    ema = ModelEMA(module, half_life=10)
    kept = ema.average()["0.weight"].clone()
    module.add_module("adapter", nn.Linear(2, 2).double())
    module[0].bias = None
    with pytest.warns(UserWarning, match=r"adapter.*0\.bias"):
        ema.update(samples=10)
    assert torch.equal(ema.average()["adapter.weight"], module.adapter.weight)
    assert "0.bias" not in ema.average()
    torch.testing.assert_close(ema.average()["0.weight"], (kept + module[0].weight.detach()) / 2)


def test_the_average_is_lent_to_a_model_that_just_changed():
    module = model()
    ema = ModelEMA(module, half_life=10)
    module.add_module("adapter", nn.Linear(2, 2).double())
    module[0].bias = None
    with pytest.warns(UserWarning, match="adapter"), ema.applied(module):
        assert torch.equal(module.adapter.weight, ema.average()["adapter.weight"])


def test_a_changed_shape_is_refused_until_reset():
    module = model()
    ema = ModelEMA(module, half_life=10)
    module[2] = nn.Linear(4, 7).double()
    for _ in range(2):
        with pytest.raises(InputError, match=r"\(2, 4\) to \(7, 4\)"):
            ema.update(samples=10)
    ema.reset()
    ema.update(samples=10)
    assert ema.average()["2.weight"].shape == (7, 4)


def test_lora_adapters_alone_are_averaged_and_unfrozen_weights_join():
    module = model()
    for p in module[0].parameters():
        p.requires_grad_(False)
    ema = ModelEMA(module, half_life=10, storage=Storage(select=trainable))
    assert list(ema.average()) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    step(module, 0)
    with ema.applied(module):
        averaged = module[0].weight.clone()
    assert torch.equal(averaged, module[0].weight)
    module[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0\.weight"):
        ema.update(samples=10)
    assert torch.equal(ema.average()["0.weight"], module[0].weight)


def test_frozen_parameters_stay_exactly_as_they_are():
    module = model(torch.float32)
    module[0].requires_grad_(False)
    ema = ModelEMA(module, decay=0.999, batch_size=1)
    for _ in range(100):
        ema.update(samples=1)
    assert torch.equal(ema.average()["0.weight"], module[0].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased_and_takes_the_two_neighbours(dtype):
    generator = torch.Generator().manual_seed(0)
    for value in (1.0009765, -1.0009765, 3.14159, -2e-3, 1e-7, -1e-7, 0.0, 65000.0):
        target = torch.empty(40_000, dtype=dtype)
        wide = torch.full((40_000,), value)
        stochastic_(target, wide, generator)
        found = target.double().unique()
        assert len(found) <= 2
        if len(found) == 2:
            assert found[0] < value < found[1]
            spread = float(found[1] - found[0])
            assert abs(float(target.double().mean()) - float(wide[0])) < 5 * spread / 2 / 200
        else:
            torch.testing.assert_close(found[0].float(), wide[0], rtol=0, atol=0)


def test_compensation_keeps_what_rounding_lost():
    target, rest = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    compensated_(target, rest, torch.tensor([1.001, -7.3, 1e-3]))
    torch.testing.assert_close(target.float() + rest.float(), torch.tensor([1.001, -7.3, 1e-3]), rtol=1e-4, atol=0)


# The simulation of the numerics: weights move by 10 % with 1 % noise; error over the distance the exact average moved.
@pytest.mark.parametrize(
    ("rounding", "decay", "worst"),
    [("stochastic", 0.999, 0.12), ("compensated", 0.99, 1e-2), ("compensated", 0.999, 1e-2)],
)
def test_a_bfloat16_average_moves(rounding, decay, worst):
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(64, 64, generator=generator))
    start = module.weight.detach().clone()
    exact = ModelEMA(module, decay=decay, batch_size=1)
    narrow = ModelEMA(module, decay=decay, batch_size=1, dtype=torch.bfloat16, storage=Storage(rounding=rounding))
    begin = exact.average()["weight"].clone()
    steps = int(2 / (1 - decay))
    for j in range(steps):
        with torch.no_grad():
            noise = torch.randn(64, 64, generator=generator)
            module.weight.copy_(start * (1 + 0.1 * min(1, 2 * j / steps)) + 0.01 * start * noise)
        exact.update(samples=1)
        narrow.update(samples=1)
    moved = (exact.average()["weight"] - begin).norm()
    error = (narrow.average()["weight"].float() - exact.average()["weight"]).norm()
    lost = (begin.bfloat16().float() - begin).norm()
    assert float(error) < worst * float(moved) + float(lost)


def test_narrow_rounding_to_nearest_is_refused_where_it_would_freeze():
    module = model(torch.bfloat16)
    ema = ModelEMA(module, decay=0.9999, batch_size=1, dtype=torch.bfloat16, storage=Storage(rounding="nearest"))
    with pytest.raises(InputError, match=r"smallest workable weight is 0\.00195"):
        ema.update(samples=1)
    coarse = ModelEMA(module, decay=0.9, batch_size=1, dtype=torch.bfloat16, storage=Storage(rounding="nearest"))
    coarse.update(samples=1)


LOST = {
    "float32": ({}, 1e-8, True),
    "float64": ({"dtype": torch.float64}, 1e-8, False),
    "compensated": ({"storage": Storage(rounding="compensated")}, 1e-8, False),
    "auto": ({"cadence": "auto"}, 1e-8, False),
    "just kept": ({}, 6e-8, False),
    "frozen": ({}, 0.0, False),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.filterwarnings("error")
def test_updates_that_float32_loses_are_told_of_once_they_add_up(name, monkeypatch):
    monkeypatch.setattr(intake, "AUTO_SPAN", 5.5e-8)  # a two-hundredth takes half a million updates
    options, small, told = LOST[name]
    ema = ModelEMA(nn.Linear(2, 2), half_life=1.0, **options)
    half_life = math.log(0.5) / math.log1p(-small) if small else math.inf
    for _ in range(5):
        ema.update(samples=1, half_life=half_life)
    words = r'6 updates of weight 1e-08 or so were lost.*cadence="auto"'
    with pytest.warns(UserWarning, match=words) if told else nullcontext():
        ema.update(samples=1, half_life=half_life)
    for _ in range(9):
        ema.update(samples=1, half_life=half_life)


def test_float64_weights_of_a_float32_average_lose_nothing():
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 1.0)
    ema = ModelEMA(module, decay=1 - 1e-8, batch_size=1)
    nn.init.constant_(module.weight, 2.0)
    for _ in range(10):
        ema.update(samples=1)
    assert ema.average()["weight"].item() - 1 == pytest.approx(1e-7, rel=1e-4)


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_values_beyond_float16_are_not_averaged_as_infinities(value):
    module = nn.Linear(2, 2)
    small = {n: t.detach().clone() for n, t in module.named_parameters()}
    ema = ModelEMA(module, half_life=8, dtype=torch.float16)
    nn.init.constant_(module.weight, value)
    large = {n: t.detach().clone() for n, t in module.named_parameters()}
    state = ModelEMA(module, half_life=8).state_dict()
    for call in (
        lambda: ModelEMA(module, half_life=8, dtype=torch.float16),
        lambda: ema.load_average(large),
        lambda: ema.load_state_dict(state, settings="given"),
    ):
        with pytest.raises(InputError, match=r"'(average/)?weight' holds 7e\+04, beyond the 65504.*bfloat16"):
            call()
    assert all(torch.equal(t.float(), small[n].half().float()) for n, t in ema.average().items())
    assert ModelEMA(module, half_life=8, dtype=torch.bfloat16).average()["weight"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("others", [(), (5000,)])
def test_several_empty_tensors_are_averaged(dtype, others):
    module = nn.Module()
    for k, shape in enumerate([(0,), (0, 3), *((n,) for n in others)]):
        module.register_parameter(f"p{k}", nn.Parameter(torch.ones(shape, dtype=dtype)))
    for average in (ModelEMA(module, half_life=8), MultiEMA(module, half_lives=[8, 9], kind="hold")):
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(3.0)
        average.update(samples=8)
        found = average.average(None if isinstance(average, ModelEMA) else 8)
        assert [tuple(t.shape) for t in found.values()] == [(0,), (0, 3), *((n,) for n in others)]
        average.load_state_dict(average.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("empty", ["no weights", "whole numbers", "quantised"])
def test_a_model_without_weights_is_refused(empty):
    module = nn.ReLU()
    if empty == "whole numbers":
        module.register_parameter("p", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    elif empty == "quantised":
        module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 3)), {nn.Linear})
    with pytest.raises(InputError, match=r"nothing to average.*give the model that is trained"):
        ModelEMA(module, half_life=8)


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_resume_in_narrow_dtypes_is_bit_exact(rounding):
    def run(cut):
        module = model(torch.float32)
        make = lambda: ModelEMA(module, half_life=99, dtype=torch.bfloat16, storage=Storage(rounding=rounding))  # noqa: E731
        ema = make()
        for j in range(8):
            step(module, j)
            ema.update(samples=5)
            if j == cut:
                state = {k: v.clone() for k, v in ema.state_dict()["tensors"].items()}
                values = ema.state_dict()["values"]
                ema = make()
                ema.load_state_dict({"tensors": state, "values": values})
        return ema.state_dict()["tensors"]

    whole = run(None)
    for cut in (0, 3, 6):
        assert all(torch.equal(t, whole[k]) for k, t in run(cut).items())


def test_compensated_float32_equals_float64():
    module = model(torch.float32)
    narrow = ModelEMA(module, decay=1 - 1e-7, batch_size=1, storage=Storage(rounding="compensated"))
    wide = ModelEMA(module, decay=1 - 1e-7, batch_size=1, dtype=torch.float64)
    for j in range(200):
        step(module, j)
        narrow.update(samples=1)
        wide.update(samples=1)
    tensors = narrow.state_dict()["tensors"]
    for name, value in wide.average().items():
        kept = tensors[f"average/{name}"].double() + tensors[f"compensation/{name}"].double()
        torch.testing.assert_close(kept, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [{"rounding": "up"}, {"seed": -1}, {"seed": 1.5}])
def test_bad_options_are_refused(bad):
    with pytest.raises(InputError):
        Storage(**bad)


def test_bad_dtype_and_buffers_are_refused():
    with pytest.raises(InputError, match="dtype"):
        ModelEMA(model(), half_life=1, dtype=torch.int32)
    with pytest.raises(InputError, match="buffers"):
        ModelEMA(model(), half_life=1, buffers="keep")


def numerous(count=70, size=33, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.ParameterList([nn.Parameter(torch.randn(size, dtype=dtype)) for _ in range(count)])


def together(module):
    return len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 1


def test_many_small_parameters_lie_together_by_default_and_few_or_large_ones_do_not():
    module = numerous()
    objects, values = list(module), [p.detach().clone() for p in module]
    starts = [p.data_ptr() % 64 for p in module]
    ema = ModelEMA(module, half_life=10)
    assert together(module)
    assert all(a is b and torch.equal(a, v) for a, b, v in zip(objects, module, values, strict=True))
    assert [p.data_ptr() % 64 for p in module] == starts
    ema.update(samples=10)
    for rest in (numerous(63), numerous(100, 8192)):
        ModelEMA(rest, half_life=10)
        assert not together(rest)
    asked = numerous()
    ModelEMA(asked, half_life=10, storage=Storage(flat=False))
    assert not together(asked)


@pytest.mark.parametrize("flat", ["auto", True])
def test_a_parameter_that_somebody_else_looks_at_stays_where_it_is(flat):
    module = numerous()
    held = {3: module[3].detach(), 5: module[5].detach().numpy(), 7: module[7].data[:2]}
    module[9].share_memory_()
    loss = module[11].square().sum()
    start = [p.data_ptr() for p in module]
    ema = ModelEMA(module, half_life=10, storage=Storage(flat=flat))
    stayed = {k for k, p in enumerate(module) if p.data_ptr() == start[k]}
    assert stayed == {3, 5, 7, 9}
    loss.backward()
    assert torch.equal(module[11].grad, 2 * module[11].detach())
    with torch.no_grad():
        for p in module:
            p.fill_(2.0)
    assert all(float(view[0]) == 2 for view in held.values())
    kept = {n: t.clone() for n, t in ema.average().items()}
    ema.update(samples=10)
    assert all(torch.allclose(t, (kept[n] + 2) / 2, atol=1e-6) for n, t in ema.average().items())


def test_training_is_bit_for_bit_the_same_with_parameters_that_lie_together():
    def trained(flat):
        torch.manual_seed(0)
        module = nn.Sequential(*(nn.Sequential(nn.Linear(17, 17), nn.LayerNorm(17), nn.Tanh()) for _ in range(40)))
        ema = ModelEMA(module, half_life=30, storage=Storage(flat=flat))
        assert (module[0][0].bias.untyped_storage().nbytes() > 17 * 4) == (flat == "auto")
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for j in range(4):
            optimizer.zero_grad()
            module(torch.randn(8, 17, generator=torch.Generator().manual_seed(j))).square().mean().backward()
            optimizer.step()
            ema.update(samples=8)
        return [*module.state_dict().values(), *ema.average().values()]

    assert all(torch.equal(a, b) for a, b in zip(trained("auto"), trained(False), strict=True))


def test_parameters_that_lie_together_are_followed_when_some_are_replaced_cast_or_loaded(tmp_path):
    module = numerous()
    ema = ModelEMA(module, half_life=10)
    module[4] = nn.Parameter(torch.full((33,), 4.0))
    module[6].data = torch.full((33,), 6.0)
    kept = {n: t.clone() for n, t in ema.average().items()}
    for _ in range(3):
        ema.update(samples=5)
    ema.update(samples=5, half_life=0)
    assert all(torch.equal(ema.average()[n], p) for n, p in module.named_parameters())
    assert kept.keys() == ema.average().keys()
    torch.save(module.state_dict(), tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=True)
    module.load_state_dict({n: t + 1 for n, t in loaded.items()}, assign=True)
    ema.report()
    ema.update(samples=5, half_life=0)
    assert all(torch.equal(ema.average()[n], loaded[n] + 1) for n in loaded)
    module.to(torch.bfloat16)
    ema.update(samples=5, half_life=0)
    assert all(torch.equal(ema.average()[n], p.detach().float()) for n, p in module.named_parameters())


@pytest.mark.parametrize(("options", "rounding"), [
    ({}, "auto"), ({"kind": "hold"}, "auto"), ({"dtype": torch.bfloat16}, "stochastic"),
    ({"dtype": torch.bfloat16}, "compensated")])  # fmt: skip
def test_averages_do_not_depend_on_whether_parameters_lie_together(options, rounding):
    found = []
    for flat in ("auto", False):
        module = numerous()
        ema = ModelEMA(module, half_life=10, storage=Storage(flat=flat, rounding=rounding), **options)
        for j in range(3):
            step(module, j)
            ema.update(samples=4)
        found.append(ema.average())
    slack = 2e-2 if rounding == "stochastic" else 0
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], rtol=slack, atol=slack)
