"""What users of other averages look for: a callable, .module, parameters(), store and restore, their saved states."""

import argparse
import copy

import pytest
import torch
from tests.peers import peer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isobatch as ib
from isobatch.errors import InputError
from isobatch.integrations import load_peer


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def move(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g))


def test_an_average_is_called_like_a_model_and_leaves_no_trace():
    model = net()
    ema = ib.ModelEMA(model, half_life=8)
    move(model, 1)
    ema.update(samples=8)
    x, before = torch.randn(5, 3), copy.deepcopy(model.state_dict())
    out = ema(x)
    assert not out.requires_grad
    torch.testing.assert_close(out, ema.average_model()(x))
    assert ema.module is ema.teacher()
    assert ema.n_averaged == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_built_from_parameters_it_is_the_average_of_the_model():
    model = net()
    by_list, by_model = ib.ModelEMA(model.parameters(), half_life=8), ib.ModelEMA(model, half_life=8)
    for seed in range(3):
        move(model, seed)
        by_list.update(samples=8)
        by_model.update(samples=8)
    wanted = list(by_model.average().values())
    assert all(torch.equal(a, b) for a, b in zip(by_list.average().values(), wanted, strict=True))
    raw = [p.detach().clone() for p in model.parameters()]
    for ema in (by_list, by_model):
        with ema.applied(model.parameters()):
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted, strict=True))
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted, strict=True))
        ema.restore(model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), raw, strict=True))
    by_model.store()
    by_model.copy_to(model)
    by_model.restore()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), raw, strict=True))
    other = net(5)
    by_list.copy_to(other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), wanted, strict=True))


@pytest.mark.parametrize("wrong", [[], [torch.zeros(1)], "weights", 3, torch.zeros(2)])
def test_what_is_no_model_and_no_parameters_is_refused(wrong):
    with pytest.raises(InputError, match=r"parameters\(\)"):
        ib.ModelEMA(wrong, half_life=8)


def test_parameters_of_another_model_and_an_empty_store_are_refused():
    ema = ib.ModelEMA(net(), half_life=8)
    with pytest.raises(InputError, match="2 parameters given, and the model has 6"):
        ema.copy_to(nn.Linear(1, 1).parameters())
    with pytest.raises(InputError, match="shape"):
        ema.copy_to([nn.Parameter(torch.zeros(7)) for _ in range(6)])
    with pytest.raises(InputError, match="nothing is stored"):
        ema.restore()


@pytest.mark.parametrize("given", ["model", "parameters"])
def test_raw_weights_that_wait_for_restore_are_not_stored_over(given):
    model = net()
    ema, weights = ib.ModelEMA(model, half_life=8), {"model": lambda: model, "parameters": model.parameters}[given]
    move(model, 1)
    ema.update(samples=8)
    raw = copy.deepcopy(model.state_dict())
    ema.store(weights())
    ema.copy_to(net(3))  # another model
    ema.store(weights())
    ema.copy_to(weights())
    for _ in range(2):
        with pytest.raises(InputError, match=r"restore\(\) first"):
            ema.store(weights())
    ema.restore(weights())
    assert all(torch.equal(raw[name], tensor) for name, tensor in model.state_dict().items())
    ema.store(weights())
    ema.restore(weights())


def test_what_joined_the_model_since_the_store_stays():
    model = nn.Sequential(nn.Linear(2, 2))
    ema = ib.ModelEMA(model, half_life=8)
    raw = model[0].weight.detach().clone()
    ema.store()
    move(model, 1)
    model.append(nn.Linear(2, 2))
    added = model[1].weight.detach().clone()
    with pytest.warns(UserWarning, match="start at their present values"):
        ema.restore()
    assert torch.equal(model[0].weight, raw)
    assert torch.equal(model[1].weight, added)


def taken(state, average, batch_size=None):
    """A fresh average after it has loaded a peer's state holds what the peer holds."""
    ema = ib.ModelEMA(net(9), half_life=8)
    found = load_peer(ema, state, batch_size=batch_size)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(tensor, average[name], rtol=0, atol=0)
    return found, ema


def test_states_of_torch():
    model = net()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for seed in range(3):
        move(model, seed)
        theirs.update_parameters(model)
    found, ema = taken(theirs.state_dict(), dict(theirs.module.named_parameters()), 16)
    assert (found.updates, found.decay, ema.seen) == (3, None, 48)


def test_a_tail_of_torch_goes_on_as_ours():
    """Three weights of 16 samples each, taken over by a tail that begins at 100, and one more of 16."""
    model = net()
    theirs = AveragedModel(model)
    for seed in range(3):
        move(model, seed)
        theirs.update_parameters(model)
    tail = ib.average.SWA(model, start=100)
    load_peer(tail, theirs.state_dict(), batch_size=16)
    move(model, 3)
    theirs.update_parameters(model)
    tail.update(samples=16)
    assert tail.seen == 164
    for name, tensor in theirs.module.named_parameters():
        torch.testing.assert_close(tail.average()[name], tensor)
    for average in (tail, ib.average.PowerEMA(model, sigma_rels=[0.1])):
        for state, size in ((theirs.state_dict(), None), (dict(theirs.module.named_parameters()), 16)):
            with pytest.raises(InputError, match=r"give seen=.*load_peer reckons them with batch_size"):
                load_peer(average, state, batch_size=size)


def test_states_of_ema_pytorch():
    package = peer("ema_pytorch")
    model = net()
    theirs = package.EMA(model, beta=0.9, update_after_step=0, update_every=1)
    for seed in range(3):
        move(model, seed)
        theirs.update()
    found, _ = taken(theirs.state_dict(), dict(theirs.ema_model.named_parameters()))
    assert found.updates == 3


def test_states_of_diffusers():
    training = peer("diffusers.training_utils")
    model = net()
    theirs = training.EMAModel(model.parameters(), decay=0.9)
    for seed in range(3):
        move(model, seed)
        theirs.step(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    found, ema = taken(theirs.state_dict(), dict(zip(names, theirs.shadow_params, strict=True)), 16)
    assert (found.updates, found.decay, ema.seen) == (3, 0.9, 48)
    assert ema.half_life == pytest.approx(ib.units.half_life(0.9, 16))


def test_states_of_torch_ema():
    package = peer("torch_ema")
    model = net()
    theirs = package.ExponentialMovingAverage(model.parameters(), decay=0.9)
    for seed in range(3):
        move(model, seed)
        theirs.update()
    names = [name for name, _ in model.named_parameters()]
    found, ema = taken(theirs.state_dict(), dict(zip(names, theirs.shadow_params, strict=True)), 16)
    assert (found.updates, found.decay) == (3, 0.9)
    assert ema.half_life == pytest.approx(ib.units.half_life(0.9, 16))


def test_states_of_timm():
    model = net()
    theirs = peer("timm.utils.model_ema").ModelEmaV3(model, decay=0.9)
    for seed in range(3):
        move(model, seed)
        theirs.update(model)
    for state in (theirs.state_dict(), {"state_dict_ema": theirs.state_dict()}):
        taken(state, dict(theirs.module.named_parameters()))


def test_a_checkpoint_that_timm_wrote_is_taken_as_it_is(tmp_path):
    """From timm's own CheckpointSaver and file, read without executing anything."""
    saving, emas = peer("timm.utils.checkpoint_saver"), peer("timm.utils.model_ema")
    model = net()
    theirs = emas.ModelEmaV3(model, decay=0.9)
    move(model, 0)
    theirs.update(model)
    arguments = argparse.Namespace(model="net")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = saving.CheckpointSaver(model, optimizer, arguments, theirs, recovery_dir=str(tmp_path))
    saver.save_recovery(0, 1)
    [file] = tmp_path.glob("recovery*")
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(file, weights_only=True)
    taken(state, dict(theirs.module.named_parameters()))


@pytest.mark.parametrize("state", [None, {}, {"shadow_params": [torch.zeros(1)]}, {"shadow_params": 3},
                                   {"epoch": 3}, {"weight": torch.zeros(1)}])  # fmt: skip
def test_states_of_nobody_are_refused_and_change_nothing(state):
    ema = ib.ModelEMA(net(), half_life=8)
    before = {name: tensor.clone() for name, tensor in ema.average().items()}
    with pytest.raises(InputError):
        load_peer(ema, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in ema.average().items())
