"""Checkpoints by name through wrappers, ties, and weights that are not plain."""

import copy

import numpy as np
import pytest
import torch
from tests.gloo import world
from tests.test_checkpoint_state import same
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isobatch.checkpoint import load_model, load_optimizer, model_state, optimizer_state
from isobatch.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # compile loads torch's old parts


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def compiled(model):
    return torch.compile(model)


def compiled_parts(model):
    return nn.Sequential(model[0], torch.compile(model[1]), torch.compile(model[2]))


def parallel_part(model):
    return nn.Sequential(model[0], model[1], DataParallel(model[2]))


class Holder(nn.Module):
    """A user's model whose own attribute is called module."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, x):
        return self.module(x)


WRAPPERS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "compiled parts": compiled_parts,
    "data parallel": DataParallel,
    "data parallel around compiled": lambda model: DataParallel(compiled(model)),
    "compiled around data parallel": lambda model: compiled(DataParallel(model)),
    "a part in parallel": parallel_part,
    "two of them": lambda model: DataParallel(DataParallel(model)),
    "a compiled part in parallel": lambda model: DataParallel(compiled_parts(model)),
}


def trained(model, kind=torch.optim.AdamW):
    optimizer = kind(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("target", WRAPPERS)
@pytest.mark.parametrize("source", WRAPPERS)
def test_a_run_may_be_wrapped_otherwise_than_the_one_that_saved_it(source, target):
    one, other = WRAPPERS[source](plain()), WRAPPERS[target](plain())
    optimizer, theirs = trained(one), torch.optim.AdamW(other.parameters(), lr=0.2)
    names = list(plain().state_dict())
    assert list(model_state(one)) == names
    kept = optimizer_state(optimizer, one)
    assert kept["groups"][0]["names"] == [name for name, _ in plain().named_parameters()]
    for state in (model_state(one), dict(one.state_dict())):  # ours, and torch's own with its prefixes
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        load_model(other, state)
        assert same(model_state(other), model_state(one))
    load_optimizer(theirs, other, kept)
    assert same(optimizer_state(theirs, other), kept)


@pytest.mark.parametrize("source", WRAPPERS)
def test_a_model_whose_own_attribute_is_called_module(source):
    one = WRAPPERS[source](Holder(plain())) if source not in ("compiled parts", "a part in parallel",
                                                              "a compiled part in parallel") else Holder(
        WRAPPERS[source](plain()))  # fmt: skip
    other = Holder(plain())
    trained(one)
    assert list(model_state(one)) == list(other.state_dict())
    load_model(other, dict(one.state_dict()))
    assert same(model_state(other), model_state(one))


def test_names_that_only_a_wrapper_tells_apart_are_not_mixed():
    """Two layers whose names differ by `module` alone: exact names count, and a missing one is refused."""

    def twins():
        model = nn.Module()
        model.a, model.module = nn.Linear(2, 2), nn.Module()
        model.module.a = nn.Linear(2, 2)
        return model

    one, other = twins(), twins()
    load_model(other, one.state_dict())
    assert same(dict(other.state_dict()), dict(one.state_dict()))
    state = dict(one.state_dict())
    del state["a.bias"]
    with pytest.raises(InputError, match=r"\['a.bias'\] missing"):
        load_model(other, state)


def test_optimizers_of_earlier_checkpoints_with_prefixes_load():
    model = plain()
    kept = optimizer_state(trained(model), model)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        old = {
            "state": {prefix + name: entry for name, entry in kept["state"].items()},
            "groups": [{**group, "names": [prefix + name for name in group["names"]]} for group in kept["groups"]],
            "kinds": {prefix + name: kind for name, kind in kept["kinds"].items()},
        }
        other = plain()
        optimizer = torch.optim.AdamW(other.parameters(), lr=0.3)
        load_optimizer(optimizer, other, old)
        assert same(optimizer_state(optimizer, other), kept)


def test_ddp_saves_and_loads_bare_names(tmp_path):
    def ranked(rank):
        model = DistributedDataParallel(plain())
        optimizer = trained(model)
        assert list(model_state(model)) == list(plain().state_dict())
        other = plain()
        theirs = torch.optim.AdamW(other.parameters(), lr=0.1)
        load_model(other, model.state_dict())
        load_optimizer(theirs, other, optimizer_state(optimizer, model))
        wrapped = DistributedDataParallel(plain())
        load_model(wrapped, other.state_dict())
        assert same(model_state(wrapped), model_state(model))
        torch.distributed.barrier()

    world(2, tmp_path, ranked)


class Tied(nn.Module):
    def __init__(self, first="embed", tied=True):
        super().__init__()
        torch.manual_seed(1)
        layers = {"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)}
        for name in (first, *(set(layers) - {first})):
            setattr(self, name, layers[name])
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("dropped", [None, "embed.weight", "head.weight"])
@pytest.mark.parametrize("first", ["embed", "head"])
@pytest.mark.parametrize("other", ["embed", "head"])
def test_tied_weights_load_under_either_name(dropped, first, other):
    one, two = Tied(first), Tied(other)
    optimizer, theirs = trained(one), torch.optim.AdamW(two.parameters(), lr=0.1)
    state = {name: value for name, value in one.state_dict().items() if name != dropped}
    load_model(two, state)
    assert two.head.weight is two.embed.weight
    assert torch.equal(two.head.weight, one.head.weight)
    load_optimizer(theirs, two, optimizer_state(optimizer, one))
    assert theirs.state[two.head.weight]["exp_avg"].tolist() == optimizer.state[one.head.weight]["exp_avg"].tolist()


def test_weights_that_are_tied_here_and_differ_there_are_refused():
    with pytest.raises(InputError, match=r"'embed\.weight' and 'head\.weight' are one tensor"):
        load_model(Tied(), Tied(tied=False).state_dict())
    both = Tied(tied=False)
    load_model(both, Tied().state_dict())
    assert torch.equal(both.head.weight, both.embed.weight)


def inference():
    with torch.inference_mode():
        return nn.Linear(2, 3)


def on_meta():
    return nn.Linear(2, 3, device="meta")


def half_meta():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, device="meta"))


def changed(**values):
    state = dict(nn.Linear(2, 3).state_dict())
    return {**state, **{name: make(state[name]) for name, make in values.items()}}


REFUSED = {
    "meta": (on_meta, nn.Linear(2, 3).state_dict(), "to_empty"),
    "half of it meta": (half_meta, nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).state_dict(), "'1.weight' is on"),
    "lazy": (lambda: nn.LazyLinear(3), nn.Linear(2, 3).state_dict(), "lazy"),
    "made in inference mode": (inference, nn.Linear(2, 3).state_dict(), "inference mode"),
    "a meta state": (lambda: nn.Linear(2, 3), on_meta().state_dict(), "without values"),
    "a sparse state": (lambda: nn.Linear(2, 3), changed(weight=lambda w: w.to_sparse()), "sparse_coo"),
    "complex": (lambda: nn.Linear(2, 3), changed(weight=lambda w: w + 0j), "torch.complex64"),
    "float8": (lambda: nn.Linear(2, 3), changed(bias=lambda w: w.to(torch.float8_e5m2)), "torch.float8_e5m2"),
    "an array": (lambda: nn.Linear(2, 3), changed(weight=lambda w: w.numpy()), "ndarray"),
    "a number": (lambda: nn.Linear(2, 3), changed(weight=lambda w: 1.0), "float"),
    "nothing": (lambda: nn.Linear(2, 3), {}, "missing"),
    "another model": (lambda: nn.Linear(2, 3), {"module.other": torch.ones(1)}, "missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_is_loaded_or_refused_in_words(name):
    make, state, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        load_model(make(), state)


LOADED = {
    "complex": lambda: nn.Linear(2, 3, dtype=torch.complex64),
    "complex128": lambda: nn.Linear(2, 3, dtype=torch.complex128),
    "bfloat16": lambda: nn.Linear(2, 3, dtype=torch.bfloat16),
    "float8": lambda: float8(),
    "frozen": lambda: nn.Linear(2, 3).requires_grad_(False),
    "with a parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
    "with spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)),
    "channels last": lambda: nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last),
    "scripted": lambda: torch.jit.script(nn.Linear(2, 3)),
    "no parameters": nn.ReLU,
}


def float8():
    model = nn.Linear(2, 3, bias=False)
    model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", LOADED)
def test_models_of_every_kind_load_also_in_inference_mode(name, inside):
    one, other = LOADED[name](), LOADED[name]()
    with torch.inference_mode(inside):
        load_model(other, model_state(one))
    assert all(torch.equal(bytes_of(a), bytes_of(b)) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(parameter.is_inference() for parameter in other.parameters())


def bytes_of(tensor):
    plain = tensor.detach()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous().view(torch.uint8)


def test_an_optimizer_loaded_in_inference_mode_goes_on():
    model, other = plain(), plain()
    kept = optimizer_state(trained(model), model)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    with torch.inference_mode():
        load_optimizer(optimizer, other, kept)
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


OPTIONS = {
    "a tensor rate": (torch.tensor(0.1), (0.9, 0.99)),
    "a tensor of one element": (torch.tensor([0.1]), (0.9, 0.99)),
    "float64": (torch.tensor(0.1, dtype=torch.float64), (0.9, 0.99)),
    "tensor betas": (torch.tensor(0.1), (torch.tensor(0.9), torch.tensor(0.99))),
    "a number": (0.1, (0.9, 0.99)),
    "numpy's": (np.float64(0.1), (0.9, 0.99)),
}


@pytest.mark.parametrize("which", ["stored", "current"])
@pytest.mark.parametrize("source", OPTIONS)
@pytest.mark.parametrize("target", OPTIONS)
def test_options_that_are_tensors_stay_the_same_tensors(source, target, which):
    def make(name, lr, beta):
        model = nn.Linear(2, 1)
        rate, betas = copy.deepcopy(OPTIONS[name])
        rate = rate.fill_(lr) if isinstance(rate, torch.Tensor) else type(rate)(lr)
        betas = tuple(b.fill_(beta) if isinstance(b, torch.Tensor) else beta for b in betas)
        capturable = any(isinstance(b, torch.Tensor) for b in betas)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, foreach=False)
        return model, optimizer, rate, betas, capturable

    one, optimizer, *_ = make(source, 0.25, 0.5)
    other, theirs, rate, betas, _ = make(target, 0.125, 0.75)
    load_optimizer(theirs, other, optimizer_state(optimizer, one), which)
    group = theirs.param_groups[0]
    lr, beta = (0.25, 0.5) if which == "stored" else (0.125, 0.75)
    assert float(group["lr"]) == lr
    assert [float(b) for b in group["betas"]] == [beta, beta]
    assert (group["lr"] is rate) or not isinstance(rate, torch.Tensor)
    assert all(a is b for a, b in zip(group["betas"], betas, strict=True) if isinstance(b, torch.Tensor))
    assert isinstance(group["lr"], torch.Tensor) == isinstance(rate, torch.Tensor)


def test_what_schedulers_and_rescale_note_in_the_groups_travels():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=5)
    optimizer.param_groups[0]["isobatch_batch"] = 32
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    load_optimizer(theirs, other, optimizer_state(optimizer, model))
    assert theirs.param_groups[0]["isobatch_batch"] == 32
    assert theirs.param_groups[0]["initial_lr"] == optimizer.param_groups[0]["initial_lr"]
    with pytest.raises(InputError, match="goes by names"):
        load_optimizer(theirs, other, optimizer.state_dict())
