"""State: bit-exact resume, batch changes, and steps that were refused."""

import copy
import gc
import json
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop, split_backward

KINDS = [InvariantAdamW, InvariantAdam, InvariantRMSprop]
CASES = [
    {"reference_batch": 4},
    {"reference_batch": 4, "noise": "row"},
    {"reference_batch": 4, "noise": "factored", "variance_every": 2},
    {"reference_batch": 4, "noise": "tensor", "variance_every": 3},
    {"reference_batch": 4, "variance_every": 4},
    {"reference_batch": 24},
    {"reference_batch": 10},
]


def start(kind, case):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    extra = {"momentum": 0.5} if kind is InvariantRMSprop else {}
    return model, kind(model.parameters(), 0.01, weight_decay=0.1, **extra, **case)


def batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    size = (16, 8, 4)[step % 3]
    return torch.randn(size, 3, generator=generator)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        split_backward(optimizer, lambda x: (model(x) - x.sum(1, keepdim=True)).square().mean(), batch(step), rows=4)
        optimizer.step()


def everything(model, optimizer):
    tensors = dict(model.state_dict())
    numbers = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return {name: value.clone() for name, value in tensors.items()}, numbers


def same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resume_is_bit_exact_wherever_it_is_cut(kind, case):
    whole = start(kind, case)
    train(*whole, range(10))
    for cut in (1, 2, 5, 8):
        first = start(kind, case)
        train(*first, range(cut))
        weights, state = copy.deepcopy(first[0].state_dict()), copy.deepcopy(first[1].state_dict())
        again = start(kind, case)
        again[0].load_state_dict(weights)
        again[1].load_state_dict(state)
        train(*again, range(cut, 10))
        same(everything(*whole), everything(*again))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_of_the_state_are_plain(kind, case):
    model, optimizer = start(kind, case)
    train(model, optimizer, range(5))
    _, numbers = everything(model, optimizer)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert json.loads(json.dumps([numbers, groups], allow_nan=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_refused_step_changes_nothing(kind, case):
    """A NaN in one micro-batch of many, refused by the guard before the step."""
    clean, bad = start(kind, case), start(kind, case)
    for steps in (range(3), range(3, 6)):
        train(*clean, steps)
        train(*bad, steps)
        before = everything(*bad)
        model, optimizer = bad
        for value in (1.0, float("nan"), 1.0, 1.0):
            with optimizer.chunk(4):
                (model(torch.full((4, 3), value)).mean() / 4).backward()
        assert any(not torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        optimizer.discard()
        same(before, everything(*bad))
    train(*clean, range(6, 9))
    train(*bad, range(6, 9))
    same(everything(*clean), everything(*bad))


def test_an_exception_inside_a_chunk_leaves_a_clean_optimizer():
    clean, bad = start(InvariantAdamW, CASES[0]), start(InvariantAdamW, CASES[0])
    model, optimizer = bad
    model[0].bias.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError), optimizer.chunk(4):
        model(torch.ones(4, 3)).mean().backward()
    model[0].bias._backward_hooks.clear()
    optimizer.zero_grad()
    train(*clean, range(4))
    train(*bad, range(4))
    same(everything(*clean), everything(*bad))


def test_a_change_of_batch_leaves_the_second_moment_where_it_was():
    """With constant weights v stays at G^2 + s^2/B_ref for batches 4, 64 and 1; stock Adam's v jumps."""
    generator = torch.Generator().manual_seed(1)
    parameter = nn.Parameter(torch.zeros(2000, dtype=torch.float64))
    optimizer = InvariantAdamW([parameter], 0.0, reference_batch=4, weight_decay=0.0)
    wanted = 0.25 + 4.0 / 4

    def mean_v(batch, updates, decay):
        optimizer.param_groups[0]["betas"] = (0.0, decay)
        for _ in range(updates):
            optimizer.zero_grad()
            draws = 0.5 + 2 * torch.randn(batch, 2000, generator=generator, dtype=torch.float64)
            split_backward(optimizer, lambda x: (parameter * x).sum(1).mean(), draws, rows=4)
            optimizer.step()
        return float(optimizer.state[parameter]["exp_avg_sq"].mean())

    first = mean_v(4, 200, 0.95)
    large = mean_v(64, 12, 0.95**16)
    small = mean_v(1, 800, 0.95**0.25)
    for value in (first, large, small):
        assert abs(value / wanted - 1) < 0.05


def test_a_state_of_another_reference_batch_is_refused():
    model, optimizer = start(InvariantAdamW, {"reference_batch": 4})
    train(model, optimizer, range(2))
    _, other = start(InvariantAdamW, {"reference_batch": 8})
    with pytest.raises(InputError, match="kept for reference_batch=4, this one has reference_batch=8"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    _, rows = start(InvariantAdamW, {"reference_batch": 4, "noise": "row"})
    with pytest.raises(InputError, match="noise='coordinate'"):
        rows.load_state_dict(optimizer.state_dict())


def test_settings_of_numpy_become_plain_numbers():
    numbers = {
        "lr": np.float64(0.1),
        "eps": np.float32(1e-6),
        "weight_decay": np.float64(0),
        "reference_batch": np.int64(4),
    }
    optimizer = InvariantAdamW([nn.Parameter(torch.ones(2))], **numbers)
    json.dumps(optimizer.state_dict()["param_groups"])
    assert type(optimizer.reference_batch) is int


def of_another(kind):
    def state():
        parameter = nn.Parameter(torch.ones(2))
        optimizer = kind([parameter])
        with optimizer.chunk(4) if hasattr(optimizer, "chunk") else nullcontext():
            parameter.sum().backward()
        optimizer.step()
        return optimizer.state_dict()

    return state


def spoilt(change):
    def state():
        model, optimizer = start(InvariantAdamW, {"reference_batch": 4})
        train(model, optimizer, range(2))
        found = copy.deepcopy(optimizer.state_dict())
        return change(found) or found

    return state


FOREIGN = {
    "AdamW": (of_another(torch.optim.AdamW), "lacks .*another optimizer kept it.*weights alone"),
    "SGD": (of_another(torch.optim.SGD), "lacks .*'betas'"),
    "RMSprop of ours": (of_another(lambda p: InvariantRMSprop(p, reference_batch=4)), "lacks .*'betas'"),
    "nothing": (lambda: {}, "what state_dict"),
    "a list": (lambda: [1], "what state_dict"),
    "a model": (lambda: nn.Linear(2, 2).state_dict(), "what state_dict"),
    "no group": (spoilt(lambda s: s["param_groups"].clear()), "does not fit"),
    "fewer parameters": (spoilt(lambda s: s["param_groups"][0]["params"].pop() and None), "does not fit"),
    "no second moment": (spoilt(lambda s: s["state"][0].pop("exp_avg_sq") is None), "state of a parameter lacks"),
    "no clock": (spoilt(lambda s: s["state"][1].pop("log_decay2") is None), "state of a parameter lacks"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_state_of_another_optimizer_is_refused_and_changes_nothing(name):
    make, message = FOREIGN[name]
    model, optimizer = start(InvariantAdamW, {"reference_batch": 4})
    train(model, optimizer, range(2))
    before = everything(model, optimizer)
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(make())
    same(before, everything(model, optimizer))
    assert groups == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    train(model, optimizer, range(2, 4))


def test_a_state_restored_after_steps_that_discards_what_was_collected():
    model, optimizer = start(InvariantAdamW, CASES[0])
    train(model, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    model(torch.ones(4, 3)).mean().backward()
    optimizer.load_state_dict(state)
    assert optimizer.chunks.count == 0


def test_a_copy_is_refused_rather_than_made_blind():
    _, optimizer = start(InvariantAdamW, CASES[0])
    with pytest.raises(InputError, match="copy its state_dict"):
        copy.deepcopy(optimizer)


def test_a_dropped_optimizer_stops_watching():
    model, optimizer = start(InvariantAdamW, CASES[0])
    model(torch.ones(4, 3)).mean().backward()
    assert optimizer.chunks.count == 1
    chunks = weakref.ref(optimizer.chunks)
    del optimizer
    gc.collect()
    assert chunks() is None
    model(torch.ones(4, 3)).mean().backward()


@pytest.mark.parametrize(
    ("noise", "every", "transient", "kept"),
    [("coordinate", 1, 26, 0), ("factored", 1, 20, 0), ("row", 1, 12, 0), ("coordinate", 2, 0, 26)],
)
def test_one_extra_buffer_and_less_for_the_cheap_forms(noise, every, transient, kept):
    """26 weights in float32; vectors are kept whole, so rows keep 5 + 5 + 1 + 1 numbers and columns 3 + 5 more."""
    model, optimizer = start(InvariantAdamW, {"reference_batch": 4, "noise": noise, "variance_every": every})
    train(model, optimizer, range(1))
    assert optimizer.chunks.nbytes == 4 * transient
    variances = [state["variance"] for state in optimizer.state.values() if "variance" in state]
    assert sum(variance.numel() for variance in variances) == kept
