"""This module with other weights: every way to hold a weight or a module, and what cannot be copied truly."""

import copy
import functools
import threading
import warnings
import weakref

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from isobatch.augment.norms import TwoNorms
from isobatch.errors import InputError
from isobatch.modules import copied, leaves_weights_alone, with_weights
from isobatch.noise import NoiseScale

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
X = torch.linspace(-1, 1, 8).view(2, 4)


def linear():
    return nn.Linear(4, 4)


class Holder(nn.Module):
    """A module whose forward is given: f(self, x)."""

    def __init__(self, prepare, forward):
        super().__init__()
        self.a = linear()
        self.computes = forward
        prepare(self)

    def forward(self, x):
        return self.computes(self, x)


class Box:
    def __init__(self, inner):
        self.inner = inner


class Scaled(nn.Parameter):
    """A parameter of a class of its own."""


class EqualRate:
    """A hook with a fixed setting, as for an equalised learning rate."""

    def __init__(self, name):
        self.name = name

    def __call__(self, module, inputs):
        setattr(module, self.name, 2 * module.raw)


class Ratio(nn.Module):
    def forward(self, weight):
        return weight / weight.norm()


class SelfHooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = linear()
        self.register_forward_hook(self.twice)

    def twice(self, module, inputs, output):
        return output + self.a(output)

    def forward(self, x):
        return self.a(x)


class Slots:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


class OwnState(nn.Module):
    """Leaves a back reference out of its state, as trainers' modules do."""

    def __init__(self):
        super().__init__()
        self.a = linear()
        self.trainer = [self, threading.Lock()]

    def __getstate__(self):
        return {**self.__dict__, "trainer": None}

    def forward(self, x):
        return self.a(x)


def wrapped(how):
    layer = linear()
    layer.forward = how(layer.forward)
    return layer


def closing(forward):
    return functools.wraps(forward)(lambda *args: 2 * forward(*args))


def counting(forward):
    def run(x, depth=2):
        return forward(x) if depth == 0 else run(x, depth - 1) + forward(x)

    return run


class Casting:
    def __init__(self, forward):
        self.forward = forward

    def __call__(self, x):
        return self.forward(x.double().float())


def attribute(prepare, forward):
    return lambda: Holder(prepare, forward)


def put(name, make):
    return lambda m: object.__setattr__(m, name, make(m))


def hooked(register):
    def build():
        layer = linear()
        register(layer)
        return layer

    return build


def equal_rate(layer):
    layer.register_parameter("raw", layer.weight)
    del layer._parameters["weight"]
    layer.register_forward_pre_hook(EqualRate("weight"))


def tied():
    m = nn.Sequential(linear(), linear())
    m[1].weight = m[0].weight
    return m


def shared_module():
    layer = linear()
    return nn.Sequential(layer, nn.ReLU(), layer)


def inner_compiled():
    return nn.Sequential(torch.compile(linear(), backend="eager"), linear())


def compiled_in_place():
    layer = linear()
    layer.compile(backend="eager")
    return layer


OFFSET = torch.full((4,), 3.0)
LOCK = threading.Lock()
COPIED = {
    "bare": linear,
    "autocast forward": lambda: wrapped(torch.autocast("cpu", dtype=torch.bfloat16)),
    "no_grad forward": lambda: wrapped(torch.no_grad()),
    "closure forward": lambda: nn.Sequential(wrapped(closing)),
    "closure of a closure": lambda: wrapped(lambda f: closing(closing(f))),
    "recursive closure": lambda: wrapped(counting),
    "partial forward": lambda: wrapped(functools.partial),
    "partial of a lambda": lambda: wrapped(lambda f: functools.partial(lambda g, x: g(x), f)),
    "callable object forward": lambda: wrapped(Casting),
    "cached forward": lambda: wrapped(functools.lru_cache),
    "compiled forward": lambda: wrapped(lambda f: torch.compile(f, backend="eager")),
    "compiled inside": inner_compiled,
    "compiled in place": compiled_in_place,
    "data parallel": lambda: nn.Sequential(nn.DataParallel(linear())),
    "lambda attribute": attribute(lambda m: setattr(m, "f", lambda x: m.a(x)), lambda m, x: m.f(x)),
    "default argument": attribute(lambda m: setattr(m, "f", lambda x, a=m.a: a(x)), lambda m, x: m.f(x)),
    "keyword default": attribute(lambda m: setattr(m, "f", lambda x, *, a=m.a: a(x)), lambda m, x: m.f(x)),
    "dict of lambdas": attribute(lambda m: setattr(m, "f", {"a": lambda x: m.a(x)}), lambda m, x: m.f["a"](x)),
    "list of modules": attribute(lambda m: setattr(m, "f", [m.a]), lambda m, x: m.f[0](x)),
    "tuple of parameters": attribute(lambda m: setattr(m, "f", (m.a.weight,)), lambda m, x: x @ m.f[0]),
    "bound method": attribute(lambda m: setattr(m, "f", m.a.forward), lambda m, x: m.f(x)),
    "object": attribute(lambda m: setattr(m, "f", Box(m.a)), lambda m, x: m.f.inner(x)),
    "object with slots": attribute(lambda m: setattr(m, "f", Slots(m.a)), lambda m, x: m.f.inner(x)),
    "weak reference": attribute(lambda m: setattr(m, "f", weakref.ref(m.a)), lambda m, x: m.f()(x)),
    "weak proxy": attribute(put("f", lambda m: weakref.proxy(m.a)), lambda m, x: m.f(x)),
    "back reference": attribute(lambda m: object.__setattr__(m.a, "up", m), lambda m, x: m.a.up.a(x)),
    "view of a weight": attribute(lambda m: setattr(m, "f", m.a.weight.data.view(-1)), lambda m, x: x + m.f.sum()),
    "row of a weight": attribute(lambda m: setattr(m, "f", m.a.weight.data[2]), lambda m, x: x * m.f),
    "lock and generator": attribute(put("f", lambda m: (LOCK, torch.Generator())), lambda m, x: m.a(x)),
    "optimizer": attribute(lambda m: setattr(m, "f", torch.optim.Adam(m.parameters())), lambda m, x: m.a(x)),
    "own class of parameter": attribute(lambda m: setattr(m, "s", Scaled(torch.ones(4))), lambda m, x: x * m.s),
    "own state": OwnState,
    "method as a hook": SelfHooked,
    "hook with a setting": hooked(equal_rate),
    "hook with a tensor": hooked(lambda layer: layer.register_forward_hook(lambda m, i, o: o + OFFSET)),
    "hook with a default": hooked(lambda layer: layer.register_forward_hook(lambda m, i, o, s=2.0: s * o)),
    "weight norm": lambda: nn.Sequential(weight_norm(linear())),
    "spectral norm": lambda: spectral_norm(linear()),
    "pruned": lambda: nn.Sequential(prune.l1_unstructured(linear(), "weight", 0.5)),
    "pruned twice": lambda: prune.random_unstructured(prune.l1_unstructured(linear(), "weight", 0.5), "weight", 0.5),
    "parametrized weight norm": lambda: parametrizations.weight_norm(linear()),
    "parametrized spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "own parametrization": lambda: (m := linear(), parametrize.register_parametrization(m, "weight", Ratio()))[0],
    "tied": tied,
    "module used twice": shared_module,
    "traced by fx": lambda: fx.symbolic_trace(nn.Sequential(linear(), nn.ReLU())),
    "two norms": lambda: nn.Sequential(linear(), TwoNorms(nn.BatchNorm1d(4))),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
}  # fmt: skip


@pytest.mark.parametrize("backward", [False, True], ids=["fresh", "after a backward pass"])
@pytest.mark.parametrize("name", COPIED)
def test_the_copy_computes_alike_and_then_alone(name, backward):
    torch.manual_seed(0)
    model = COPIED[name]()
    if backward and (out := model(X)).requires_grad:
        out.square().sum().backward()
        model.zero_grad()
    model.eval()
    with torch.no_grad():
        expected = model(X)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        made = with_weights(model)
        assert torch.equal(made(X), expected)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.zero_()
        assert torch.equal(made(X), expected)
    kinds = {type(m) for m in model.modules()} - {nn.DataParallel, torch._dynamo.OptimizedModule}
    assert {type(m) for m in made.modules()} >= kinds - {fx.GraphModule, type(model)}


@pytest.mark.parametrize("name", COPIED)
def test_given_weights_are_used_and_the_copy_trains_nothing_of_the_original(name):
    torch.manual_seed(0)
    model = COPIED[name]()
    other = COPIED[name]()
    values = {key: tensor.detach().clone() for key, tensor in other.named_parameters()}
    made = with_weights(model, {key.replace("_orig_mod.", ""): v for key, v in values.items()})
    pointers = {p.data_ptr() for p in made.parameters()}
    assert pointers == {v.data_ptr() for v in values.values()}
    raw = [p.detach().clone() for p in model.parameters()]
    made.train()
    with torch.enable_grad():
        out = made(X)
    if out.requires_grad:
        out.square().sum().backward()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)
    assert all(p.grad is None and torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))


def lambda_hook(layer, into):
    layer.register_forward_hook(lambda m, i, o: into.append(o))


def function_hook(layer, into):
    def hook(module, inputs, output):
        into.append(output)

    layer.register_forward_hook(hook)


def dict_hook(layer, into):
    kept = {}
    layer.register_forward_hook(lambda m, i, o: kept.setdefault("out", o) is None or into.append(o))


def identity_hook(layer, into):
    def hook(module, inputs, output):
        into.append(output)
        return output

    layer.register_forward_hook(hook)


def partial_hook(layer, into):
    def hook(name, module, inputs, output):
        into.append((name, output))

    layer.register_forward_hook(functools.partial(hook, "layer"))


def pre_hook(layer, into):
    layer.register_forward_pre_hook(lambda m, i: into.append(i))


def keyword_hook(layer, into):
    def hook(module, args, kwargs, output):
        into.append(kwargs)

    layer.register_forward_hook(hook, with_kwargs=True, always_call=True)


class Recorder:
    def __init__(self, into):
        self.into, self.calls = into, 0

    def hook(self, module, inputs, output):
        self.calls += 1
        self.into.append(output)

    def __call__(self, module, inputs, output):
        self.hook(module, inputs, output)


def method_hook(layer, into):
    layer.register_forward_hook(Recorder(into).hook)


def object_hook(layer, into):
    layer.register_forward_hook(Recorder(into))


SEEN = []


def global_hook(module, inputs, output):
    SEEN.append(output)


def hook_of_a_global(layer, into):
    layer.register_forward_hook(global_hook)


def backward_hooks(layer, into):
    layer.register_full_backward_hook(lambda m, i, o: into.append(i))
    layer.weight.register_hook(lambda g: into.append(g))
    layer.weight.register_post_accumulate_grad_hook(lambda p: into.append(p))


ONLOOKERS = [lambda_hook, function_hook, identity_hook, partial_hook, pre_hook, keyword_hook, method_hook, object_hook,
             hook_of_a_global, backward_hooks]  # fmt: skip


@pytest.mark.parametrize("register", ONLOOKERS)
def test_hooks_of_somebody_who_looks_on_stay_behind(register):
    SEEN.clear()
    model, into = nn.Sequential(linear(), linear()), []
    register(model[0], into)
    made, x = with_weights(model), X.clone().requires_grad_()
    made(x).sum().backward()
    assert not into
    assert not SEEN
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in made.modules())
    model(x).sum().backward()
    assert into or SEEN


def test_the_hooks_of_a_measurement_and_its_optimizer_stay_behind():
    model = nn.Sequential(linear(), linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    noise = NoiseScale(model, optimizer, every=1)
    made = with_weights(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
    assert noise is not None


def scaling_by_outside(layer):
    settings = {"scale": 2.0}
    layer.register_forward_hook(lambda m, i, o: o * settings["scale"])


def writing_before(layer):
    weights = []
    layer.register_forward_pre_hook(lambda m, i: setattr(m, "extra", weights))


GLOBAL = linear()


class ReadsAGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = GLOBAL

    def forward(self, x):
        return GLOBAL(x)


def generator_of(m):
    return (p for p in [m.a])


class Table(dict):
    """A container of its own class, that the copy takes over with the functions in it."""


def half_precision_view():
    model = Holder(lambda m: setattr(m, "f", m.a.weight.data.view(-1)), lambda m, x: m.a(x))
    return with_weights(model, {"a.weight": torch.zeros(4, 4, dtype=torch.float64)})


def meta():
    with torch.device("meta"):
        return linear()


REFUSED = {
    "hook that scales by something outside": (hooked(scaling_by_outside), "scaling_by_outside.*layer ''"),
    "pre-hook that writes": (hooked(writing_before), "hook .*writing_before"),
    "global module": (ReadsAGlobal, "forward reading the global GLOBAL.*'a'"),
    "running generator": (attribute(put("f", generator_of), lambda m, x: x), "generator"),
    "functions in a container of its own class": (
        attribute(lambda m: setattr(m, "f", Table(g=lambda x: m.a(x))), lambda m, x: x),
        "f.*leads back",
    ),
    "scripted": (lambda: torch.jit.script(linear()), r"torch\.jit"),
    "scripted inside": (lambda: nn.Sequential(torch.jit.script(linear())), r"'0' is compiled by torch\.jit"),
    "meta": (meta, "'weight' has no values yet"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "has no values yet"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_truly_is_refused_by_name(name):
    make, words = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with pytest.raises(InputError, match=words):
        with_weights(model)


def test_unknown_names_other_shapes_and_views_of_another_dtype_are_refused():
    with pytest.raises(InputError, match="has no tensors"):
        with_weights(linear(), {"wieght": torch.zeros(4, 4)})
    with pytest.raises(InputError, match=r"'weight' has shape \(4, 4\), not \(4,\)"):
        with_weights(linear(), {"weight": torch.zeros(4)})
    with pytest.raises(InputError, match=r"'f' shares memory"):
        half_precision_view()


def test_tied_weights_are_given_under_either_name():
    for name in ("0.weight", "1.weight"):
        made = with_weights(tied(), {name: torch.zeros(4, 4)})
        assert made[0].weight is made[1].weight
        assert not made[0].weight.any()


def test_modes_flags_buffers_and_pairs_are_the_originals():
    model = nn.Sequential(linear(), nn.BatchNorm1d(4), nn.Dropout())
    model[0].weight.requires_grad_(False)
    model[2].eval()
    model[1].register_buffer("passing", torch.ones(2), persistent=False)
    made, pairs = copied(model)
    assert [m.training for m in made.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in model.parameters()]
    assert made.state_dict().keys() == model.state_dict().keys()
    assert {id(a) for a, _ in pairs} == {id(m) for m in model.modules()}
    made.train()(X)
    assert int(model[1].num_batches_tracked) == 0


def test_a_copy_made_in_inference_mode_may_train():
    model = nn.Sequential(linear(), nn.BatchNorm1d(4))
    with torch.inference_mode():
        made = with_weights(model)
    made(X).sum().backward()
    assert made[0].weight.grad is not None


def test_a_copy_of_a_copy_and_a_deepcopy_of_one_work():
    model = nn.Sequential(wrapped(closing), weight_norm(linear()))
    for made in (with_weights(with_weights(model)), copy.deepcopy(with_weights(nn.Sequential(linear())))):
        assert made(X).shape == (2, 4)


SAFE = {
    "linear": (linear, True),
    "norms": (lambda: nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.LayerNorm(3)), True),
    "embedding": (lambda: nn.Embedding(3, 2), True),
    "embedding kept short": (lambda: nn.Embedding(3, 2, max_norm=1.0), False),
    "bag kept short": (lambda: nn.Sequential(nn.EmbeddingBag(3, 2, max_norm=1.0)), False),
    "user's module": (SelfHooked, False),
    "hook": (hooked(lambda layer: layer.register_forward_pre_hook(lambda m, i: m.weight.data.clamp_(0))), False),
    "own forward": (lambda: wrapped(closing), False),
    "parametrized": (lambda: parametrizations.spectral_norm(linear()), False),
}


@pytest.mark.parametrize("name", SAFE)
def test_which_modules_surely_leave_their_weights_alone(name):
    make, safe = SAFE[name]
    assert leaves_weights_alone(make()) is safe
