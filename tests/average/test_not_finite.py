"""Finite at every way in: what would poison an average for ever is refused, what is infinite by design passes."""

import contextlib
import math

import pytest
import torch
from tests.average.kinds import ALL, model, step
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from isobatch import ModelEMA
from isobatch.average import ObservedMean, Storage, SwitchEMA, intake, recalibrate
from isobatch.errors import IsobatchError, NonFiniteError

every_kind = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
bad_values = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def poison(module, bad, name="2.weight"):
    with torch.no_grad():
        dict(module.named_parameters())[name].view(-1)[1] = bad


@every_kind
@bad_values
def test_construction_is_refused_by_name(kind, bad):
    module = model()
    poison(module, bad)
    with pytest.raises(NonFiniteError, match=r"'2\.weight' is not finite") as error:
        kind.make(module)
    assert error.value.parameter == "2.weight"


@every_kind
def test_reset_and_loads_are_refused_by_name_and_change_nothing(kind):
    module = model()
    average = kind.make(module)
    for j in range(3):
        step(module, j)
        average.update(samples=24)
    kept = {key: t.clone() for key, t in average.state_dict()["tensors"].items()}
    clock = average.state_dict()["values"]
    good = {n: t.clone() for n, t in module.state_dict().items()}
    state = average.state_dict()
    key = next(key for key in kept if key.endswith("2.bias") and not key.startswith("previous"))
    spoilt = {k: t.clone() for k, t in kept.items()}
    spoilt[key][0] = math.nan
    with pytest.raises(NonFiniteError, match=r"2\.bias.*in the state"):
        average.load_state_dict({"tensors": spoilt, "values": state["values"]})
    other = {n: t.clone() for n, t in module.named_parameters()}
    other["0.bias"] = torch.full_like(other["0.bias"], math.inf)
    with pytest.raises(NonFiniteError, match=r"0\.bias"):
        average.load_average(other, seen=100, which=kind.which)
    poison(module, math.nan)
    for call in (average.reset, lambda: average.load_state_dict(None, missing="weights")):
        with pytest.raises(NonFiniteError, match=r"2\.weight"):
            call()
    assert any("2.weight" in said for said in average.report(kind.which).warnings)
    after = average.state_dict()
    assert after["values"] == clock
    assert all(torch.equal(t, after["tensors"][k]) for k, t in kept.items())
    module.load_state_dict(good)
    average.update(samples=24)
    assert all(bool(torch.isfinite(t).all()) for t in average.average(kind.which).values())


def test_a_tensor_that_joins_or_replaces_must_be_finite_too():
    module = model()
    ema = ModelEMA(module, half_life=10)
    extra = nn.Linear(1, 1)
    poison(extra, math.nan, "weight") if extra.weight.numel() > 1 else nn.init.constant_(extra.weight, math.nan)
    module.add_module("extra", extra.double())
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"extra\.weight"):
            ema.report()
    nn.init.zeros_(extra.weight)
    with pytest.warns(UserWarning, match=r"extra\.bias"):
        ema.update(samples=5)


def test_the_report_names_a_poisoned_average_where_the_check_is_left_to_the_loop():
    module = model()
    ema = ModelEMA(module, half_life=10, storage=Storage(check_finite=False))
    poison(module, math.nan)
    ema.update(samples=5)
    first, second, *_ = ema.report().warnings
    assert "average of '2.weight' is not finite" in first
    assert "weights of '2.weight' are not finite" in second


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: nn.BatchNorm1d(3), "running_mean"),
        (lambda: nn.BatchNorm1d(3), "running_var"),
        (lambda: nn.InstanceNorm1d(3, track_running_stats=True), "running_var"),
    ],
)
def test_the_report_names_a_buffer_of_the_models_own_that_is_poisoned(layer, name, value):
    module = nn.Sequential(nn.Linear(3, 3), layer())
    ema = ModelEMA(module, half_life=10)
    ema.update(samples=5)
    assert not any("buffer" in said for said in ema.report().warnings)
    getattr(module[1], name)[1] = value
    ema.update(samples=5)
    assert any(f"the buffer '1.{name}' is not finite" in said for said in ema.report().warnings)


class Masked(nn.Module):
    def __init__(self, kind, value=-math.inf):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        mask = torch.full((3, 3), value).triu(1)
        if kind == "parameter":
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask, persistent=kind == "buffer")

    def forward(self, x):
        return (self.fc(x) + self.mask).softmax(-1)


@pytest.mark.parametrize("options", [{}, {"storage": Storage(check_finite=False)}, {"storage": Storage(flat=True)},
                                     {"dtype": torch.bfloat16}, {"kind": "hold"}, {"cadence": 2}])  # fmt: skip
@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["parameter", "buffer", "passing buffer"])
def test_a_mask_of_infinities_stays_itself(kind, value, buffers, options):
    module = Masked(kind, value)
    ema = ModelEMA(module, half_life=10, buffers=buffers, **options)
    for _ in range(4):
        with torch.no_grad():
            module.fc.weight.add_(1)
        ema.update(samples=5)
    averaged = ema.average_model()
    assert torch.equal(averaged.mask, module.mask)
    with ema.applied(module):
        assert not torch.isnan(module.mask).any()
    if kind == "parameter":
        assert torch.equal(ema.average()["mask"].to(module.mask), module.mask)
    assert not torch.equal(ema.average()["fc.weight"].to(module.fc.weight), module.fc.weight)
    assert math.isfinite(ema.report().distance)
    assert not any("not finite" in said for said in ema.report().warnings)
    other = ModelEMA(Masked(kind, value), half_life=10, buffers=buffers, **options)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(t, other.average()[n]) for n, t in ema.average().items())


def test_a_mask_that_changes_is_followed_and_one_that_begins_to_train_is_averaged():
    module = Masked("parameter")
    ema = ModelEMA(module, half_life=10)
    with torch.no_grad():
        module.mask.copy_(torch.full((3, 3), -math.inf).tril(-1))
    ema.update(samples=10)
    assert torch.equal(ema.average()["mask"], module.mask)
    with torch.no_grad():
        module.mask.zero_()
    ema.report()
    with torch.no_grad():
        module.mask.fill_(2.0)
    ema.update(samples=10)
    assert torch.equal(ema.average()["mask"], torch.ones(3, 3))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_a_mask_of_infinities_is_not_switched(share):
    module = Masked("parameter")
    with torch.no_grad():
        module.mask.copy_(torch.full((3, 3), -math.inf).triu(1))
    raw, begin = module.mask.clone(), module.fc.weight.detach().clone()
    switch = SwitchEMA(ModelEMA(module, half_life=10), every=10, share=share)
    with torch.no_grad():
        module.fc.weight.add_(1)
    switch.update(samples=10)
    assert torch.equal(module.mask, raw)
    torch.testing.assert_close(module.fc.weight, begin + 1 - share / 2)


def test_what_becomes_infinite_later_or_trains_is_refused_with_a_way_out():
    module = model()
    ema = ModelEMA(module, half_life=10, buffers="average")
    module[1].running_var.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"1\.running_var.*buffers=\"copy\""):
        ema.update(samples=1)
    trains = Masked("parameter")
    trains.mask.requires_grad_(True)
    with pytest.raises(NonFiniteError, match=r"'mask'.*select"):
        ModelEMA(trains, half_life=10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "observer", [MovingAverageMinMaxObserver, MovingAverageMinMaxObserver.with_args(averaging_constant=0.5)]
)
def test_observers_begin_at_infinity_and_their_average_is_finite_once_they_are(observer):
    module = nn.Sequential(nn.Linear(2, 2), FakeQuantize(observer))
    ema = ModelEMA(module, half_life=10, buffers="average")
    for _ in range(80):
        module(torch.randn(4, 2))
        ema.update(samples=5)
    assert all(bool(torch.isfinite(t).all()) for t in ema.average().values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
def test_a_buffer_that_grows_is_refused_until_reset():
    module = nn.Sequential(nn.Linear(2, 2), PerChannelMinMaxObserver())
    ema = ModelEMA(module, half_life=10, buffers="average")
    module(torch.randn(4, 2))
    with pytest.raises(IsobatchError, match="changed its shape"):
        ema.report()
    ema.reset()
    ema.update(samples=1)


@bad_values
def test_running_means_are_finite(bad):
    with pytest.raises(NonFiniteError, match="start"):
        ObservedMean(torch.tensor([bad]), 4)
    mean = ObservedMean(torch.zeros(1), 4)
    mean.add(torch.tensor([[bad], [1.0]]))
    with pytest.raises(NonFiniteError, match="left as it was"):
        mean.commit(samples=2)
    assert mean.value.item() == 0
    with pytest.raises(NonFiniteError, match="nothing was changed"):
        mean.load_state_dict({"value": torch.tensor([bad])})
    mean.add(torch.ones(4, 1))
    mean.commit(samples=4)
    assert mean.value.item() == 0.5


@bad_values
@pytest.mark.parametrize("training", [False, True])
def test_statistics_are_measured_of_finite_inputs(bad, training):
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3)).train(training)
    recalibrate(module, [torch.randn(8, 2)])
    kept = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(NonFiniteError, match="batch norm '0'"):
        recalibrate(module, [torch.randn(8, 2), torch.tensor([[1.0, bad], [2.0, 3.0]])])
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in kept.items())


@pytest.fixture
def small_shares(monkeypatch):
    """Shares of four elements, so that the promise about large models is tried on small ones."""
    monkeypatch.setattr(intake, "LEAST", 4)


def turns(average):
    return average._engine.buffers.check.turns


def updates(average, count, samples=24):
    for _ in range(count):
        average.update(samples=samples)


def stored(average):
    return {key: t.clone() for key, t in average.state_dict()["tensors"].items()}


def test_every_element_is_looked_at_once_a_round(small_shares):
    average = ModelEMA(model(), half_life=10, storage=Storage(flat=False))
    check = average._engine.buffers.check
    whole = sum(t.numel() for t in average.average().values())
    seen = [sum(item.weights.numel() for item in share) for share in check._turns._turns]
    assert sum(seen) == whole
    assert max(seen) <= 4
    assert turns(average) == len(seen) > 1
    assert turns(ModelEMA(model(), half_life=10, storage=Storage(check_finite="all"))) == 1


@every_kind
def test_a_loss_that_became_nan_is_refused_at_once_and_nothing_has_moved(kind, monkeypatch):
    monkeypatch.setattr(intake, "LEAST", 16)
    module = nn.Sequential(*(nn.Linear(70, 70) for _ in range(3)))
    average = kind.make(module)
    assert turns(average) > 16
    for j in range(5):
        step(module, j)
        average.update(samples=24)
    good, kept, clock = {n: t.clone() for n, t in module.state_dict().items()}, stored(average), average.seen
    optimizer = torch.optim.AdamW(module.parameters())
    (module(torch.randn(3, 70)).sum() * math.nan).backward()
    optimizer.step()
    with pytest.raises(NonFiniteError, match=r"left as it was\. Restore"):
        updates(average, 3)  # a cadence may leave the first of them pending
    after = stored(average)
    assert all(torch.equal(t, after[key]) for key, t in kept.items())
    assert average.seen - clock < 3 * 24
    module.load_state_dict(good)
    average.update(samples=24)


@every_kind
@pytest.mark.parametrize("use", ["update", "average", "state_dict", "applied", "teacher", "average_model", "copy_to"])
def test_a_single_bad_weight_is_named_before_it_is_used_and_undone(kind, use, small_shares):
    module, twin = model(), model()
    average, whole = kind.make(module), kind.make(twin)
    for j in range(4):
        step(module, j), step(twin, j)
        average.update(samples=24), whole.update(samples=24)
    uses = {
        "update": lambda: updates(average, 3 * turns(average)),
        "average": lambda: average.average(kind.which),
        "state_dict": average.state_dict,
        "applied": lambda: average.applied(module, kind.which).__enter__(),
        "teacher": lambda: average.teacher(which=kind.which),
        "average_model": lambda: average.average_model(kind.which),
        "copy_to": lambda: average.copy_to(nn.Sequential(*model()), kind.which),
    }
    poison(module, math.nan)
    missed, named = 0, False
    while not named and missed < 2:
        try:
            average.update(samples=24)
            missed += 1
        except NonFiniteError as error:
            named = error.parameter == "2.weight"
    whole.update(samples=24), whole.update(samples=24)
    if not named:
        with pytest.raises(NonFiniteError, match=r"'2\.weight'") as error:
            uses[use]()
        assert error.value.parameter == "2.weight"
    assert any("2.weight" in said for said in average.report(kind.which).warnings)
    if named:
        for _ in range(2):  # a refusal is no licence for the next update
            with pytest.raises(NonFiniteError, match=r"'2\.weight'"):
                updates(average, 3)
    module.load_state_dict(twin.state_dict())
    spoilt = {key: ~torch.isfinite(t) for key, t in _as_they_are(average).items()}
    if not any(bool(bad.any()) for bad in spoilt.values()):
        return
    with pytest.warns(UserWarning, match=r"elements of the average of '2\.weight' took in"):
        mended = average.average(kind.which)
    assert all(bool(torch.isfinite(t).all()) for t in average.state_dict()["tensors"].values() if t.is_floating_point())
    given = dict(module.named_parameters())["2.weight"].detach()
    assert math.isclose(mended["2.weight"].view(-1)[1], given.view(-1)[1], rel_tol=1e-12)
    for key, bad in spoilt.items():
        assert not bad.any() or (key.endswith("2.weight") and set(bad.view(-1).nonzero().tolist()[0]) == {1})


def _as_they_are(average):
    with average._engine.buffers.check.paused():
        return {key: t for key, t in stored(average).items() if t.is_floating_point()}


def test_a_refused_weight_is_refused_until_it_is_finite(small_shares):
    module = model()
    average = ModelEMA(module, half_life=50)
    updates(average, 1)
    poison(module, math.nan, "0.weight")
    for _ in range(turns(average)):
        with contextlib.suppress(NonFiniteError):
            updates(average, 1)
    for _ in range(3):
        with pytest.raises(NonFiniteError, match=r"'0\.weight'.*start again at the weights once"):
            updates(average, 1)
    module = nn.init.zeros_(module[0].weight)
    with pytest.warns(UserWarning, match="1 elements"):
        updates(average, 1)
    assert all(bool(torch.isfinite(t).all()) for t in average.average().values())


def test_what_was_not_touched_by_a_bad_weight_goes_on_bit_for_bit(small_shares):
    module, twin = model(), model()
    average, whole = ModelEMA(module, half_life=50), ModelEMA(twin, half_life=50)
    step(module, 9), step(twin, 9)
    updates(average, 1, 8), updates(whole, 1, 8)
    poison(module, math.inf)
    with average._engine.buffers.check.paused():
        average.update(samples=8)
    whole.update(samples=8)
    module.load_state_dict(twin.state_dict())
    with pytest.warns(UserWarning, match="start again at the present weights"):
        updates(average, turns(average), 8)
    updates(whole, turns(average), 8)
    for j in range(4):
        step(module, j), step(twin, j)
        average.update(samples=8), whole.update(samples=8)
    pairs = [(t.view(-1), whole.average()[n].view(-1)) for n, t in average.average().items()]
    assert sum(int((a != b).sum()) for a, b in pairs) == 1


def test_a_teacher_that_computes_with_the_average_has_every_update_looked_at(small_shares):
    for make in (
        lambda m: ModelEMA(m, half_life=9),
        lambda m: ModelEMA(m, half_life=9, storage=Storage(check_finite="all")),
    ):
        for name, _ in model().named_parameters():
            module = model()
            average = make(module)
            if average._engine.buffers.storage.check_finite != "all":
                average.teacher()
            average.update(samples=4)
            kept = stored(average)
            poison(module, math.nan, name)
            with pytest.raises(NonFiniteError, match=name):
                average.update(samples=4)
            assert all(torch.equal(t, stored(average)[key]) for key, t in kept.items())


@pytest.mark.parametrize("word", ["some", 2, None])
def test_other_words_for_the_check_are_refused(word):
    with pytest.raises(IsobatchError, match="check_finite"):
        Storage(check_finite=word)
