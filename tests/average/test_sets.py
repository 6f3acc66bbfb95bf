"""Which tensors belong is fixed when bound: freezing, unfreezing and adapters lose nothing in silence."""

import math
import warnings

import pytest
import torch
from torch import nn

from isobatch import ModelEMA
from isobatch.average import LAWA, SWA, ModelAverage, MultiEMA, PowerEMA, Storage, trainable
from isobatch.errors import InputError

MAKES = {
    "ModelEMA": lambda m, s: ModelEMA(m, half_life=8, storage=s),
    "hold": lambda m, s: ModelEMA(m, half_life=8, kind="hold", storage=s),
    "MultiEMA": lambda m, s: MultiEMA(m, half_lives=[8], storage=s),
    "PowerEMA": lambda m, s: PowerEMA(m, sigma_rels=[0.1], storage=s),
    "SWA": lambda m, s: SWA(m, storage=s),
    "LAWA": lambda m, s: LAWA(m, last=2, every=8, storage=s),
}
READS = {
    "report": lambda average, m: average.report(),
    "applied": lambda average, m: average.applied(m).__enter__() and None,
    "state_dict": lambda average, m: average.state_dict(),
    "average_model": lambda average, m: average.average_model(),
    "teacher": lambda average, m: average.teacher(),
    "copy_to": lambda average, m: average.copy_to(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))),
    "update": lambda average, m: average.update(samples=8),
    "load": lambda average, m: average.load_state_dict(average.state_dict()),
}


def adapted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    return model


def move(model):
    with torch.no_grad():
        for p in model[1].parameters():
            p.add_(1.0)


def read(average, model, how):
    if how == "applied":
        with average.applied(model):
            pass
    else:
        READS[how](average, model)


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("kind", MAKES)
def test_an_average_is_not_lost_while_its_parameters_are_frozen(kind, how):
    model, twin = adapted(), adapted()
    average = MAKES[kind](model, Storage(select=trainable))
    never_frozen = MAKES[kind](twin, Storage(select=trainable))
    for _ in range(3):
        for one, other in ((model, average), (twin, never_frozen)):
            move(one)
            other.update(samples=8)
    model[1].requires_grad_(False)
    read(average, model, how)
    model[1].requires_grad_(True)
    read(never_frozen, twin, how)
    assert list(average.average()) == ["1.weight", "1.bias"]
    assert all(torch.equal(t, never_frozen.average()[n]) for n, t in average.average().items())
    move(model), move(twin)
    average.update(samples=8), never_frozen.update(samples=8)
    assert all(torch.equal(t, never_frozen.average()[n]) for n, t in average.average().items())


def test_turns_of_two_players_lose_nothing():
    """Each player's weights are frozen while the other moves, as with toggled optimizers."""
    model, twin = adapted().requires_grad_(True), adapted().requires_grad_(True)
    ema = ModelEMA(model, half_life=8, storage=Storage(select=trainable))
    plain = ModelEMA(twin, half_life=8)
    for j in range(6):
        model[j % 2].requires_grad_(False)
        for one in (model, twin):
            with torch.no_grad():
                for p in one[1 - j % 2].parameters():
                    p.add_(1.0)
        ema.update(samples=4), plain.update(samples=4)
        model[j % 2].requires_grad_(True)
    assert all(torch.equal(t, plain.average()[n]) for n, t in ema.average().items())


def test_what_is_unfrozen_layer_by_layer_joins_and_is_told():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    model[:2].requires_grad_(False)
    ema = ModelEMA(model, half_life=8, storage=Storage(select=trainable))
    for k in (1, 0):
        model[k].requires_grad_(True)
        with pytest.warns(UserWarning, match=rf"\['{k}\.bias', '{k}\.weight'\] start"):
            ema.update(samples=1)
        assert torch.equal(ema.average()[f"{k}.weight"], model[k].weight)
    assert len(ema.average()) == 6


@pytest.mark.parametrize("flip", [True, False])
def test_without_a_selection_freezing_and_unfreezing_change_nothing(flip):
    model, twin = adapted(), adapted()
    ema, plain = ModelEMA(model, half_life=8), ModelEMA(twin, half_life=8)
    for j in range(5):
        model.requires_grad_(flip == bool(j % 2))
        move(model), move(twin)
        ema.update(samples=4), plain.update(samples=4)
    assert list(ema.average()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(torch.equal(t, plain.average()[n]) for n, t in ema.average().items())


def test_reset_chooses_afresh():
    model = adapted()
    ema = ModelEMA(model, half_life=8, storage=Storage(select=trainable))
    model[0].requires_grad_(True)
    model[1].requires_grad_(False)
    ema.reset()
    assert list(ema.average()) == ["0.weight", "0.bias"]


def test_a_selection_of_nothing_is_refused():
    model = adapted().requires_grad_(False)
    with pytest.raises(InputError, match="select chooses none of the 4 tensors"):
        ModelEMA(model, half_life=8, storage=Storage(select=trainable))


def test_another_model_takes_the_average_whatever_is_frozen_in_it():
    model = adapted()
    ema = ModelEMA(model, half_life=8, storage=Storage(select=trainable))
    move(model)
    ema.update(samples=8)
    other = adapted().requires_grad_(False)
    raw = other[1].weight.clone()
    with ema.applied(other):
        assert torch.equal(other[1].weight, ema.average()["1.weight"])
    assert torch.equal(other[1].weight, raw)
    ema.copy_to(other)
    assert torch.equal(other[1].weight, ema.average()["1.weight"])


def test_an_adapter_that_is_taken_off_for_a_while_is_told_of():
    model = adapted()
    ema = ModelEMA(model, half_life=8)
    adapter = model._modules.pop("1")
    with pytest.warns(UserWarning, match=r"averages of \['1\.bias', '1\.weight'\] were dropped"):
        ema.update(samples=1)
    model._modules["1"] = adapter
    with pytest.warns(UserWarning, match=r"\['1\.bias', '1\.weight'\] start at their present values"):
        ema.report()


def frozen_backbone(model, optimizer, j):
    if j == 10:
        model[:9].requires_grad_(False)
    optimizer.step()


def through_data(model, optimizer, j):
    for p in model.parameters():
        if p.grad is not None:
            p.data.add_(p.grad, alpha=-0.01)
    if j == 5:
        model.load_state_dict(model.state_dict())


def replaced_data(model, optimizer, j):
    for p in model.parameters():
        if p.grad is not None:
            p.data = p.data - 0.01 * p.grad


def in_turns(model, optimizer, j):
    model.requires_grad_(True)
    optimizer.step()
    model[: 5 * (j % 2)].requires_grad_(False)


def last_layer_only(model, optimizer, j):
    model[:9].requires_grad_(False) if j == 3 else None
    through_data(model, optimizer, j)


def unused_branch(model, optimizer, j):
    model[9].requires_grad_(j > 4)
    optimizer.step()


STEPS = [frozen_backbone, through_data, replaced_data, in_turns, last_layer_only, unused_branch]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("step", STEPS)
def test_no_false_alarm_however_the_weights_move(step):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ema = ModelEMA(model, half_life=10_000)
    for j in range(90):
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().mean().backward()
        step(model, optimizer, j)
        ema.update(samples=8)
    assert ema.report().warnings == ()


@pytest.mark.parametrize("step", [frozen_backbone, in_turns, unused_branch])
def test_the_alarm_still_rings_where_it_should(step):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ema = ModelEMA(model, half_life=10_000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for j in range(90):
            optimizer.zero_grad()
            model(torch.randn(4, 2)).square().mean().backward()
            step(model, optimizer, j)
            for _ in range(4):
                ema.update(samples=2)
    assert len(told) == 1
    assert "not after each micro-batch" in str(told[0].message)
    assert ema.report().warnings


class Wrapped(torch.optim.Optimizer):
    """An optimizer in the wrapper of a framework: groups and state are those of the one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    def step(self, closure=None):
        return self.optimizer.step()


def test_a_wrapped_optimizer_is_attached_and_watched():
    model = nn.Linear(1, 1)
    optimizer = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    ema = ModelEMA(model, half_life=8)
    ema.watch(optimizer)
    handle = ema.attach(optimizer, 4)
    for _ in range(3):
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    assert ema.seen == 12
    handle.remove()
    assert isinstance(ema, ModelAverage)
    assert math.isfinite(ema.report().distance)
