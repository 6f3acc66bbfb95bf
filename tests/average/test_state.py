"""Taking over a saved state: what must match, who wins, and what a checkpoint without averages means."""

import json
from decimal import Decimal

import pytest
import torch
from safetensors.torch import load, save
from tests.average.kinds import model, step
from tests.reference import averages as truth
from torch import nn

from isobatch.average import (
    LAWA,
    SWA,
    CopyUntil,
    Debias,
    LinearRamp,
    ModelEMA,
    MultiEMA,
    PowerEMA,
    Ramp,
    Storage,
    SwitchEMA,
    tensorflow_warmup,
    timm_warmup,
)
from isobatch.errors import InputError


def trained(**settings):
    module = model()
    ema = ModelEMA(module, **{"half_life": 100, **settings})
    for j in range(5):
        step(module, j)
        ema.update(samples=8)
    return module, ema


def test_resume_at_another_batch_size_needs_nothing_from_the_user():
    module, ema = trained(half_life=1000)
    resumed = ModelEMA(module, half_life=1000)
    resumed.load_state_dict(ema.state_dict())
    kept = ema.average()["0.weight"].clone()
    step(module, 9)
    resumed.update(samples=48)
    rho = 0.5 ** (48 / 1000)
    torch.testing.assert_close(resumed.average()["0.weight"], rho * kept + (1 - rho) * module[0].weight.detach())
    assert resumed.seen == 88


def test_decay_at_its_batch_is_the_half_life_that_it_means():
    module, ema = trained(half_life=None, decay=0.99, batch_size=8)
    same = ModelEMA(module, half_life=ema.half_life)
    same.load_state_dict(ema.state_dict())
    twice = ModelEMA(module, decay=0.99**2, batch_size=16)
    twice.load_state_dict(ema.state_dict())


def test_different_settings_are_refused_with_both_values_and_won_by_choice():
    module, ema = trained()
    other = ModelEMA(module, half_life=300, cadence=2)
    kept = {n: t.clone() for n, t in other.average().items()}
    with pytest.raises(InputError, match=r"cadence=1 in the state, 2 here.*settings=\"saved\""):
        other.load_state_dict(ema.state_dict())
    assert all(torch.equal(t, kept[n]) for n, t in other.average().items())
    other.load_state_dict(ema.state_dict(), settings="given")
    assert (other.half_life, other.state_dict()["values"]["settings"]["cadence"]) == (300, 2)
    other.load_state_dict(ema.state_dict(), settings="saved")
    assert (other.half_life, other.state_dict()["values"]["settings"]["cadence"]) == (100, 1)
    with pytest.raises(InputError, match="settings="):
        other.load_state_dict(ema.state_dict(), settings="mine")


def test_settings_that_shape_the_tensors_are_not_taken_from_a_state():
    module, ema = trained()
    narrow = ModelEMA(module, half_life=100, dtype=torch.bfloat16)
    for choice in ("match", "saved"):
        with pytest.raises(InputError, match="build it with dtype='float32'"):
            narrow.load_state_dict(ema.state_dict(), settings=choice)
    narrow.load_state_dict(ema.state_dict(), settings="given")
    assert narrow.average()["0.weight"].dtype == torch.bfloat16


def test_missing_unexpected_and_misshapen_averages_are_refused_by_name():
    module, ema = trained()
    state = ema.state_dict()
    grown = model()
    grown.add_module("extra", nn.Linear(1, 1).double())
    bigger = ModelEMA(grown, half_life=100)
    with pytest.raises(InputError, match=r"lacks.*extra\.bias.*missing=\"weights\""):
        bigger.load_state_dict(state)
    assert bigger.seen == 0
    bigger.load_state_dict(state, missing="weights")
    assert torch.equal(bigger.average()["0.weight"], ema.average()["0.weight"])
    assert torch.equal(bigger.average()["extra.weight"], grown.extra.weight)
    smaller = ModelEMA(module[0], half_life=100)
    with pytest.raises(InputError, match='unexpected="drop"'):
        smaller.load_state_dict(bigger.state_dict(), missing="weights")
    wide = ModelEMA(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double(), half_life=100)
    with pytest.raises(InputError, match=r"\(4,\) in the state, \(5,\) here"):
        wide.load_state_dict(state)


def test_a_shrunken_model_may_drop_averages_by_choice():
    _, ema = trained()
    shrunken = nn.Sequential(model()[0])
    other = ModelEMA(shrunken, half_life=100)
    other.load_state_dict(ema.state_dict(), unexpected="drop")
    assert torch.equal(other.average()["0.bias"], ema.average()["0.bias"])


def test_a_checkpoint_without_averages_loads_by_choice():
    module = model()
    ema = ModelEMA(module, half_life=100)
    step(module, 0)
    with pytest.raises(InputError, match=r"no average.*missing=\"weights\""):
        ema.load_state_dict(None)
    ema.load_state_dict(None, missing="weights")
    assert all(torch.equal(t, dict(module.named_parameters())[n]) for n, t in ema.average().items())


def test_other_kinds_formats_and_shapes_of_state_are_refused():
    module, ema = trained()
    with pytest.raises(InputError, match="of a ModelEMA, not of a SWA"):
        SWA(module).load_state_dict(ema.state_dict())
    newer = ema.state_dict()
    newer["values"]["format"] = 99
    with pytest.raises(InputError, match="format 99"):
        ema.load_state_dict(newer)
    with pytest.raises(InputError, match="not a state"):
        ema.load_state_dict({"weight": torch.zeros(1)})
    for part, field in (("values", "clock"), ("clock", "pending")):
        damaged = ema.state_dict()
        (damaged["values"] if part == "values" else damaged["values"]["clock"]).pop(field)
        with pytest.raises(InputError, match=f"lacks .*{field}"):
            ema.load_state_dict(damaged)
    two = MultiEMA(module, half_lives=[1, 2])
    with pytest.raises(InputError, match="half_lives"):
        MultiEMA(module, half_lives=[1, 2, 3]).load_state_dict(two.state_dict())
    with pytest.raises(InputError, match="averages in the state"):
        MultiEMA(module, half_lives=[1, 2, 3]).load_state_dict(two.state_dict(), settings="given")


@pytest.mark.parametrize("storage", [Storage(), Storage(flat=True), Storage(rounding="compensated")])
def test_tensors_go_through_safetensors_and_values_through_json(storage):
    module = model()
    make = lambda: MultiEMA(module, half_lives=[10, 90], kind="hold", storage=storage)  # noqa: E731
    averages = make()
    for j in range(4):
        step(module, j)
        averages.update(samples=8)
    state = averages.state_dict()
    blob, text = save(state["tensors"]), json.dumps(state["values"], allow_nan=False)
    again = make()
    again.load_state_dict({"tensors": load(blob), "values": json.loads(text)})
    for key, value in again.state_dict()["tensors"].items():
        assert torch.equal(value, state["tensors"][key])


def test_half_lives_without_limit_go_through_json():
    module = model()
    ema = ModelEMA(module, half_life=float("inf"), cadence=5)
    ema.update(samples=8, half_life=0)
    other = ModelEMA(module, half_life=float("inf"), cadence=5)
    state = ema.state_dict()
    other.load_state_dict({**state, "values": json.loads(json.dumps(state["values"], allow_nan=False))})
    assert other.half_life == float("inf")
    assert other.state_dict()["values"] == state["values"]


def test_the_average_of_another_library_is_taken_over():
    module = model()
    peer = torch.optim.swa_utils.AveragedModel(module)
    ema = ModelEMA(module, half_life=100, kind="hold")
    step(module, 0)
    ema.load_average(peer.state_dict(), seen=4096)
    assert ema.seen == 4096
    assert all(torch.equal(t, dict(peer.module.named_parameters())[n]) for n, t in ema.average().items())
    with pytest.raises(InputError, match="lack"):
        ema.load_average({"0.weight": torch.zeros(4, 3)})
    with pytest.raises(InputError, match="shape"):
        ema.load_average({n: torch.zeros(1) for n in ema.average()})
    for several, which in ((MultiEMA(module, half_lives=[5, 9]), 9), (PowerEMA(module, sigma_rels=[0.1, 0.2]), 0.2)):
        several.load_average(peer.state_dict(), seen=4096, which=which)
        assert torch.equal(several.average(which)["0.bias"], peer.module[0].bias)


def test_a_mean_of_snapshots_starts_from_a_loaded_average():
    module = model()
    recent = LAWA(module, last=2, every=8)
    peer = {n: torch.full_like(p, 3.0) for n, p in module.named_parameters()}
    recent.load_average(peer)
    assert float(recent.average()["0.bias"][0]) == 3.0


GOES_ON = {
    "ema": (lambda m, **k: ModelEMA(m, half_life=50, **k), None, "ema", {"H": 50}),
    "one of several": (lambda m, **k: MultiEMA(m, half_lives=[20, 50], **k), 50, "ema", {"H": 50}),
    "tail": (lambda m, **k: SWA(m, **k), None, "tail", {"start": 0}),
    "late tail": (lambda m, **k: SWA(m, start=60, **k), None, "tail", {"start": 60}),
    "power": (lambda m, **k: PowerEMA(m, sigma_rels=[0.05, 0.1], **k), 0.1, "power", {"g": truth.gamma_of(0.1)}),
    "recent": (lambda m, **k: LAWA(m, last=3, every=20, **k), None, "recent", {"last": 3, "every": 20}),
}
HELD = {
    "float64": ({"dtype": torch.float64}, 1e-12),
    "float32": ({}, 3e-6),
    "compensated": ({"dtype": torch.bfloat16, "storage": Storage(rounding="compensated")}, 2e-2),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", GOES_ON)
def test_a_loaded_average_weighs_what_stands_behind_it(name, held):
    make, which, kind, by = GOES_ON[name]
    if name == "recent" and held == "compensated":
        pytest.skip("snapshots are copies")
    module = model()
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.fill_(1001.7)  # what rounding loses here must not reach the average that is loaded
    average = make(module, **HELD[held][0])
    average.update(samples=8)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    average.update(samples=3)
    first = {n: torch.randn(p.shape, dtype=p.dtype) for n, p in module.named_parameters()}
    average.load_average(first, seen=100, which=which)
    theta, batches = [], [8, 24, 7, 1, 16, 9]
    for j, batch in enumerate(batches):
        step(module, j)
        theta.append({n: p.detach().numpy().copy() for n, p in module.named_parameters()})
        average.update(samples=batch)
    for n, found in average.average(which).items():
        wanted = truth.from_loaded(first[n].numpy(), 100, [t[n] for t in theta], batches, kind, **by)
        torch.testing.assert_close(found.double(), torch.from_numpy(wanted), atol=HELD[held][1], rtol=0)


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda m: SWA(m), 0),
        (lambda m: SWA(m, start=60), 0),
        (lambda m: SWA(m, start=60, every=20), 60),
        (lambda m: PowerEMA(m, sigma_rels=[0.1]), 0),
        (lambda m: ModelEMA(m, half_life=50, warmup=Ramp(0.09)), 0),
        (lambda m: ModelEMA(m, half_life=50, warmup=CopyUntil(9)), 8),
        (lambda m: ModelEMA(m, decay=0.99, batch_size=8, warmup=timm_warmup(batch_size=8)), 0),
        (lambda m: SwitchEMA(ModelEMA(m, half_life=50, warmup=Debias()), every=64), 0),
        (lambda m: MultiEMA(m, half_lives=[50], warmup=LinearRamp(60)), 0),
    ],
)
def test_an_average_that_the_next_update_would_replace_is_not_loaded(make, seen):
    module = model()
    average = make(module)
    step(module, 0)
    average.update(samples=8)
    kept = {n: t.clone() for n, t in average.average().items()}
    other = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    with pytest.raises(InputError, match=r"next update would replace the loaded average; give seen="):
        average.load_average(other, seen=seen)
    assert average.seen == 8
    assert all(torch.equal(t, kept[n]) for n, t in average.average().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda m: ModelEMA(m, half_life=50),
        lambda m: ModelEMA(m, half_life=0, warmup=Ramp(0.09)),
        lambda m: ModelEMA(m, half_life=50, warmup=tensorflow_warmup(batch_size=8)),
        lambda m: LAWA(m, last=2, every=8),
    ],
)
def test_an_average_that_keeps_a_weight_needs_no_samples_behind_it(make):
    module = model()
    average = make(module)
    average.load_average({n: torch.full_like(p, 3.0) for n, p in module.named_parameters()})
    assert float(average.average()["0.bias"][0]) == 3.0


@pytest.mark.parametrize(
    "prefix", ["", "module.", "module.module.", "ema_model.module.", "module._orig_mod.module.", "model."]
)
@pytest.mark.parametrize("inner", ["model", "module", "net"])
def test_any_number_of_wrappers_may_stand_before_the_names(prefix, inner):
    root = nn.Module()
    root.add_module(inner, nn.Linear(2, 2))
    ema = ModelEMA(root, half_life=8)
    given = {f"{prefix}{n}": torch.full_like(p, 3.0) for n, p in root.named_parameters()}
    ema.load_average({**given, "n_averaged": torch.tensor(5)})
    assert all(bool((t == 3).all()) for t in ema.average().values())


@pytest.mark.parametrize(
    ("make", "exponent"),
    [(lambda m, **k: SWA(m, **k), 0.0), (lambda m, **k: PowerEMA(m, sigma_rels=[0.1], **k), truth.gamma_of(0.1))],
)
@pytest.mark.parametrize("seen", [10**9, 10**13])
def test_a_small_step_after_very_many_samples_has_its_weight(make, exponent, seen):
    module = nn.Linear(1, 1, bias=False).double()
    average = make(module, dtype=torch.float64)
    average.load_average({"weight": torch.zeros(1, 1)}, seen=seen)
    nn.init.constant_(module.weight, 1.0)
    average.update(samples=1)
    small, power = Decimal(1) / (seen + 1), Decimal(exponent) + 1
    share = 1 - ((1 - small).ln() * power).exp()  # 28 digits
    assert average.average()["weight"].item() == pytest.approx(float(share), rel=1e-9)


def test_the_report_after_a_load_tells_nothing_of_the_updates_before():
    module, ema = trained(half_life=100)
    other = ModelEMA(module, half_life=5)
    other.update(samples=8)
    state, good = ema.state_dict(), ema.average()
    loads = (lambda: other.load_state_dict(state, settings="saved"), lambda: other.load_average(good, seen=40))
    for take_over in loads:
        take_over()
        report = other.report()
        assert (report.half_life, report.share) == (None, None)
        step(module, 9)
        other.update(samples=8)
        assert other.report().half_life == pytest.approx(100)


@pytest.mark.parametrize("settings", ["given", "match"])
def test_half_lives_in_another_order_do_not_swap_their_averages(settings):
    module = model()
    averages = MultiEMA(module, half_lives=[5, 500])
    step(module, 0)
    averages.update(samples=8)
    turned = MultiEMA(module, half_lives=[500, 5])
    with pytest.raises(InputError, match=r"half_lives=\[5.0, 500.0\] in the state"):
        turned.load_state_dict(averages.state_dict(), settings=settings)
    turned.load_state_dict(averages.state_dict(), settings="saved")
    for half_life in (5, 500):
        for n, t in turned.average(half_life).items():
            assert torch.equal(t, averages.average(half_life)[n])
    others = MultiEMA(module, half_lives=[6, 600])
    others.load_state_dict(averages.state_dict(), settings="given")
    assert torch.equal(others.average(600)["0.bias"], averages.average(500)["0.bias"])


def test_reset_starts_at_the_present_weights_and_keeps_the_clock():
    module, ema = trained()
    step(module, 9)
    ema.reset()
    assert ema.seen == 40
    assert all(torch.equal(t, dict(module.named_parameters())[n]) for n, t in ema.average().items())


def test_names_that_wrappers_changed_still_match():
    module, ema = trained()
    state = ema.state_dict()
    renamed = {k.replace("/", "/_orig_mod."): t for k, t in state["tensors"].items()}
    other = ModelEMA(module, half_life=100)
    other.load_state_dict({"tensors": renamed, "values": state["values"]})
    assert torch.equal(other.average()["0.weight"], ema.average()["0.weight"])
