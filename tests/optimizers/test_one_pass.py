"""The kernel on kept lists makes torch's own steps, bit for bit, whatever happens to the optimizer between them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from isobatch.optimizers import build
from isobatch.optimizers.one_pass import OnePassStep

STEPS = 6
ADAMS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adam, decay decoupled": partial(torch.optim.Adam, decoupled_weight_decay=True),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Embedding(7, 2))


def frozen(net, optimizer, step):
    net[1].weight.requires_grad_(step not in (2, 3))


def numbers(net, optimizer, step):
    optimizer.param_groups[0] |= {"lr": 0.1 / (step + 1), "betas": (0.5 + step / 20, 0.9), "weight_decay": 0.1 * step}


def other_form(net, optimizer, step):
    optimizer.param_groups[0]["maximize"] = step == 3


def tensor_rate(net, optimizer, step):
    if step == 2:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05)


def loaded(net, optimizer, step):
    if step == 3:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def replaced_state(net, optimizer, step):
    if step == 3:
        for entry in optimizer.state.values():
            entry["exp_avg_sq"] = entry["exp_avg_sq"] * 2


def multiplied_state(net, optimizer, step):
    if step == 3:
        torch._foreach_mul_([entry["exp_avg_sq"] for entry in optimizer.state.values()], 3.0)


def forgotten_state(net, optimizer, step):
    if step == 3:
        optimizer.state.clear()


def one_more_group(net, optimizer, step):
    if step == 2:
        optimizer.add_param_group({"params": [net[3].weight], "lr": 0.3})


def another_parameter(net, optimizer, step):
    if step == 3:
        optimizer.param_groups[0]["params"][0] = net[3].weight


def double(net, optimizer, step):
    if step == 3:
        net.double()
        for entry in optimizer.state.values():
            entry["exp_avg"], entry["exp_avg_sq"] = entry["exp_avg"].double(), entry["exp_avg_sq"].double()


def scaled(net, optimizer, step):
    if step == 3:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    elif step == 4:
        del optimizer.grad_scale, optimizer.found_inf


def scheduled(net, optimizer, step):
    if step == 2:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)


def other_coupling(net, optimizer, step):
    if step == 3:
        optimizer.param_groups[0]["decoupled_weight_decay"] = not optimizer.param_groups[0]["decoupled_weight_decay"]


def nothing(net, optimizer, step):
    pass


EVENTS = [
    nothing, frozen, numbers, other_form, tensor_rate, loaded, replaced_state, multiplied_state, forgotten_state,
    one_more_group, another_parameter, double, scaled, scheduled, other_coupling,
]  # fmt: skip


def trained(event, make, steps_of):
    """Return the weights and the state after every step."""
    net = network()
    optimizer = make([*net[0].parameters(), *net[1].parameters(), *net[2].parameters()])
    step_once = steps_of(optimizer)
    draw, found = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        event(net, optimizer, step)
        for p in net.parameters():
            noise = torch.randn(p.shape, generator=draw).to(p.dtype)
            p.grad = noise if p.requires_grad else None
        step_once()
        state = [entry[key].clone() for entry in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq", "step")]
        found.append([*(p.detach().clone() for p in net.parameters()), *state])
    return found


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("form", [*ADAMS, "sgd", "adam without its kernel"])
def test_steps_are_torchs_own(form, event):
    if "sgd" in form:
        if event is not nothing:
            return
        net = network()
        one = OnePassStep(torch.optim.SGD(net.parameters(), lr=0.1))
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        before = net[0].weight.detach().clone()
        one.step()
        assert not one.kept
        torch.testing.assert_close(net[0].weight.detach(), before - 0.1)
        return

    def make(parameters):
        kind = ADAMS.get(form, torch.optim.Adam)
        return kind(parameters, lr=0.1, weight_decay=0.1, foreach=None if form in ADAMS else True, fused=form in ADAMS)

    if event in (scaled, tensor_rate) and form not in ADAMS:  # torch refuses them there
        return
    theirs = trained(event, make, lambda optimizer: lambda: optimizer.step())
    ours = trained(event, make, lambda optimizer: OnePassStep(optimizer).step)
    for one, other in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_torchs_own_step_is_called_once_and_again_when_somebody_listens(name, monkeypatch):
    net = network()
    optimizer = build(name, net.parameters(), lr=0.1)
    calls, kind = [], type(optimizer)
    own = kind.step
    monkeypatch.setattr(kind, "step", lambda self, closure=None: calls.append(1) or own(self, closure))
    one = OnePassStep(optimizer)

    def steps(count):
        for _ in range(count):
            for p in net.parameters():
                p.grad = torch.ones_like(p)
            one.step()
        return len(calls)

    assert steps(4) == 1
    heard = []
    handle = optimizer.register_step_post_hook(lambda *_: heard.append(1))
    assert (steps(3), len(heard)) == (4, 3)
    handle.remove()
    assert (steps(3), len(heard)) == (5, 3)
    with torch.profiler.profile():
        assert steps(1) == 6


def test_sparse_gradients_are_refused_in_torchs_words():
    net = nn.Embedding(4, 2, sparse=True)
    one = OnePassStep(torch.optim.AdamW(net.parameters(), fused=True))
    net.weight.grad = torch.ones(4, 2)
    one.step()
    net.weight.grad = None
    net(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        one.step()
    assert int(one._optimizer.state[net.weight]["step"]) == 1
