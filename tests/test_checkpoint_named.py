import random

import numpy as np
import pytest
import torch
from tests.test_checkpoint_state import same
from torch import nn

from isobatch.checkpoint import Checkpoints, load_model, load_optimizer, optimizer_state, rng_state, set_rng_state
from isobatch.errors import InputError


def build(reverse=False, split=True, width=4, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2)).to(dtype)
    names = dict(model.named_parameters())
    decay = [names[name] for name in names if "weight" in name and name != "1.weight"]
    rest = [value for name, value in names.items() if not any(value is item for item in decay)]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 0.02}]
    if not split:
        groups = [{"params": decay + rest}]
    return model, torch.optim.AdamW(groups[::-1] if reverse else groups, lr=0.01)


def train(model, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator).to(dtype)).square().mean().backward()
        optimizer.step()


def stored(model, optimizer, path):
    with Checkpoints(path) as store:
        store.save({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, model)}, seen=0)
        return store.load().state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_resumed_training_equals_the_uninterrupted(tmp_path, reverse, kind):  # P1; groups found by name
    def make(reverse):
        model, optimizer = build(reverse)
        groups = [{**group} for group in optimizer.param_groups]
        return model, optimizer if kind == "adamw" else torch.optim.SGD(
            [{"params": group["params"], "lr": group["lr"]} for group in groups], momentum=0.9
        )

    model, optimizer = make(False)
    train(model, optimizer, 3)
    state = stored(model, optimizer, tmp_path)
    other, theirs = make(reverse)
    load_model(other, state["model"])
    load_optimizer(theirs, other, state["optimizer"])
    train(model, optimizer, 4, seed=2)
    train(other, theirs, 4, seed=2)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert optimizer_state(theirs, other)["state"].keys() == optimizer_state(optimizer, model)["state"].keys()


def test_loading_copies(tmp_path):
    model, optimizer = build()
    train(model, optimizer, 1)
    state = stored(model, optimizer, tmp_path)
    before = {name: entry["exp_avg"].clone() for name, entry in state["optimizer"]["state"].items()}
    load_optimizer(optimizer, model, state["optimizer"])
    train(model, optimizer, 1)
    assert same({name: entry["exp_avg"] for name, entry in state["optimizer"]["state"].items()}, before)


def test_moments_keep_their_dtype_beside_bfloat16_weights(tmp_path):  # fault 28
    model, optimizer = build(dtype=torch.bfloat16)
    train(model, optimizer, 1)
    for parameter in model.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][key] = torch.rand(parameter.shape) * 1e-3  # an optimizer that keeps fp32
    state = stored(model, optimizer, tmp_path)["optimizer"]
    other, theirs = build(dtype=torch.bfloat16)
    load_optimizer(theirs, other, state)
    found = optimizer_state(theirs, other)["state"]
    assert same(found, state["state"])
    assert found["0.weight"]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("options", ["stored", "current"])
def test_the_winner_between_two_settings_is_named(tmp_path, options):
    model, optimizer = build()
    optimizer.param_groups[0]["lr"] = 0.5
    state = stored(model, optimizer, tmp_path)["optimizer"]
    other, theirs = build()
    load_optimizer(theirs, other, state, options=options)
    assert theirs.param_groups[0]["lr"] == (0.5 if options == "stored" else 0.01)
    assert theirs.param_groups[0]["betas"] == (0.9, 0.999)


def renamed(state):
    state["0.weights"] = state.pop("0.weight")


@pytest.mark.parametrize(  # fault 29
    ("change", "message"),
    [
        (lambda s: s.update({"0.weight": torch.ones(3, 4)}), r"'0.weight' is torch.float32 \[3, 4\] .* \[4, 3\]"),
        (lambda s: s.update({"0.weight": s["0.weight"].double()}), r"torch.float64 \[4, 3\] .* torch.float32 \[4, 3\]"),
        (lambda s: s.pop("1.bias"), r"model: \['1.bias'\] missing in the checkpoint"),
        (lambda s: s.update(extra=torch.ones(1)), r"model: \['extra'\] only in the checkpoint"),
        (renamed, r"\['0.weight'\] missing in the checkpoint"),
    ],
)  # fmt: skip
def test_other_models_are_refused_by_name(change, message):
    model, _ = build()
    state = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    with pytest.raises(InputError, match=message):
        load_model(model, state)
    assert same(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: build(width=5), r"optimizer '0.bias' is torch.float32 \[4\] .* torch.float32 \[5\]"),
        (lambda: build(dtype=torch.float64), r"'0.bias' is torch.float32 \[4\] .*torch.float64 \[4\]"),
        (lambda: build(split=False), r"groups '0.weight' with \['0.weight', '2.weight'\], this run with"),
        (lambda: (m := nn.Linear(3, 4), torch.optim.AdamW(m.parameters())), r"\['bias', 'weight'\] missing"),
        (lambda: (build()[0], torch.optim.AdamW(nn.Linear(1, 1).parameters())), "that the model does not name"),
    ],
)  # fmt: skip
def test_other_optimizers_are_refused_by_name(other, message):
    model, optimizer = build()
    train(model, optimizer, 1)
    state = optimizer_state(optimizer, model)
    theirs, fresh = other()
    with pytest.raises(InputError, match=message):
        load_optimizer(fresh, theirs, state)
    assert not fresh.state


def test_an_option_that_the_optimizer_has_not_is_refused():
    model, optimizer = build()
    state = optimizer_state(optimizer, model)
    sgd = torch.optim.SGD([{"params": group["params"]} for group in optimizer.param_groups], lr=0.1)
    with pytest.raises(InputError, match=r"option 'amsgrad' is False .* SGD has no such option.*options=\"current\""):
        load_optimizer(sgd, model, state)
    with pytest.raises(InputError, match='"stored" or "current"'):
        load_optimizer(optimizer, model, state, options="mine")


def test_random_state_comes_back(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    random.gauss(0, 1)
    np.random.randn()  # noqa: NPY002

    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),  # noqa: NPY002
            np.random.randn(),  # noqa: NPY002
            random.random(),
            random.gauss(0, 1),
        )

    with Checkpoints(tmp_path) as store:
        store.save({"rng": rng_state()}, seen=0)
        expected = draw()
        assert draw() != expected
        set_rng_state(store.load().state["rng"])
    assert draw() == expected


def test_another_number_of_devices_is_refused_and_nothing_moves():
    state, before = rng_state(), torch.get_rng_state()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 9
    with pytest.raises(InputError, match="9 GPU generators in the checkpoint, 0 GPUs here"):
        set_rng_state(state)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_state_lies_as_its_parameter_does_because_fused_kernels_walk_flat_memory(kind):
    options = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    ends = []
    inputs = torch.randn(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = kind(model.parameters(), **options)
        for step in range(4):
            if resumed and step == 2:
                stored = optimizer_state(optimizer, model)
                state = {n: {k: v.contiguous() for k, v in e.items()} for n, e in stored["state"].items()}
                optimizer = kind(model.parameters(), **options)
                load_optimizer(optimizer, model, {**stored, "state": state})
            optimizer.zero_grad()
            model(inputs[step]).square().mean().backward()
            optimizer.step()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)
