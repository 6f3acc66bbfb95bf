"""Whatever a forward pass does to its buffers or weights: evaluation and teaching leave student and average alone."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from isobatch import ModelEMA
from isobatch.average import LAWA, MultiEMA
from isobatch.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning"),
]
X = torch.linspace(-2, 3, 12).view(3, 4)


class Does(nn.Module):
    """A layer beside something that is done to it in every forward."""

    def __init__(self, act, **buffers):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = act
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        with torch.no_grad():
            self.act(self, x)
        return self.fc(x)


class Codebook(nn.Module):
    """Vector quantisation whose codes are an average of their own, in place and by replacement."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 4))
        self.register_buffer("size", torch.ones(5))
        self.initted = nn.Buffer(torch.tensor(False))

    def forward(self, x):
        near = torch.cdist(x, self.codes).argmin(1)
        self.size.mul_(0.9).add_(torch.bincount(near, minlength=5), alpha=0.1)
        self.codes = 0.9 * self.codes + 0.1 * x.detach().mean(0)
        self.initted.fill_(True)
        return self.codes[near]


def drop(m, x):
    if "spare" in m._buffers:
        del m.spare


def grow(m, x):
    m.register_buffer("more", x.sum(0))


def hide(m, x):
    m.register_buffer("c", m.c + 1, persistent=False)


def replace_parameter(m, x):
    m.fc.weight = nn.Parameter(m.fc.weight / 2)


def every_third(m, x):
    m.calls += 1
    if int(m.calls) % 3 == 0:
        m.fc.weight.mul_(0.5)


def normed(m, x):
    m.fc.weight.copy_(m.fc.weight / m.fc.weight.norm())


def data_normed(m, x):
    m.fc.weight.data = m.fc.weight.data / m.fc.weight.data.norm()


def through_numpy(m, x):
    m.fc.weight.detach().numpy()[:] *= 0.5


def hook_clamps():
    layer = nn.Linear(4, 4)

    def clamp(module, inputs):
        module.weight.data.clamp_(-0.1, 0.1)

    layer.register_forward_pre_hook(clamp)
    return layer


MODELS = {
    "replaces a buffer": lambda: Does(lambda m, x: setattr(m, "c", 0.5 * m.c + 1), c=torch.zeros(4)),
    "writes a buffer": lambda: Does(lambda m, x: m.c.add_(x.mean(0)), c=torch.zeros(4)),
    "writes a buffer's data": lambda: Does(lambda m, x: m.c.data.add_(1), c=torch.zeros(4)),
    "gives a buffer other data": lambda: Does(lambda m, x: setattr(m.c, "data", m.c + 1), c=torch.zeros(4)),
    "resizes a buffer": lambda: Does(lambda m, x: m.c.resize_(2).zero_(), c=torch.ones(4)),
    "counts": lambda: Does(lambda m, x: m.c.add_(1), c=torch.tensor(0)),
    "removes a buffer": lambda: Does(drop, spare=torch.ones(2)),
    "adds a buffer": lambda: Does(grow),
    "makes a buffer passing": lambda: Does(hide, c=torch.zeros(4)),
    "replaces a parameter": lambda: Does(replace_parameter),
    "normalises its weights": lambda: Does(normed),
    "normalises its weights' data": lambda: Does(data_normed),
    "writes weights past autograd": lambda: Does(through_numpy),
    "writes weights every third time": lambda: Does(every_third, calls=torch.tensor(0)),
    "a hook clamps": hook_clamps,
    "own average": Codebook,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    "batch norm, cumulative": lambda: nn.Sequential(nn.BatchNorm1d(4, momentum=None)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))),
    "spectral norm by a hook": lambda: nn.Sequential(spectral_norm(nn.Linear(4, 4))),
    "weight norm by a hook": lambda: nn.Sequential(weight_norm(nn.Linear(4, 4))),
    "embedding kept short": lambda: nn.Sequential(Index(), nn.Embedding(6, 4, max_norm=0.5)),
    "observer": lambda: nn.Sequential(nn.Linear(4, 4), MinMaxObserver()),
    "histogram": lambda: nn.Sequential(nn.Linear(4, 4), HistogramObserver()),
    "fake quantisation": lambda: nn.Sequential(nn.Linear(4, 4), FakeQuantize(MovingAverageMinMaxObserver)),
}


class Index(nn.Module):
    def forward(self, x):
        return torch.arange(len(x))


def snapshot(model, ema, which=None):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    places = {n: (id(t), t.data_ptr(), tuple(t.shape)) for n, t in tensors}
    passing = {n: set(m._non_persistent_buffers_set) for n, m in model.named_modules()}
    values = {n: t.detach().clone() for n, t in tensors}
    return places, passing, values, {n: t.clone() for n, t in ema.average(which).items()}


def same(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    for one, two in ((before[2], after[2]), (before[3], after[3])):
        assert one.keys() == two.keys()
        assert not [name for name in one if not torch.equal(one[name], two[name])]


def trained(name, buffers):
    torch.manual_seed(0)
    model = MODELS[name]()
    ema = ModelEMA(model, half_life=8, buffers=buffers)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    ema.update(samples=8)
    return model, ema


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("name", MODELS)
def test_evaluating_the_average_leaves_everything_as_it_was(name, buffers, training):
    model, ema = trained(name, buffers)
    before = snapshot(model, ema)
    for inference in (False, True):
        with ema.applied(model), torch.inference_mode(inference):
            model.train(training)
            for _ in range(4):
                model(X)
        same(before, snapshot(model, ema))
    ema.update(samples=8)
    model(X).sum().backward() if model(X).requires_grad else None


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("name", MODELS)
def test_calling_the_teacher_leaves_everything_as_it_was(name, buffers, mode):
    model, ema = trained(name, buffers)
    before = snapshot(model, ema)
    with torch.no_grad():
        for _ in range(4):
            first = ema.teacher(mode)(X)
    with torch.inference_mode():
        ema.teacher(mode)(X)
    same(before, snapshot(model, ema))
    with torch.no_grad(), ema.applied(model):
        expected = model.train(mode == "train")(X)
        for _ in range(3 if name == "writes weights every third time" else 0):
            model(X)
    if name != "writes weights every third time":
        assert torch.equal(ema.teacher(mode)(X), expected)
    assert first.shape == expected.shape


@pytest.mark.parametrize("name", ["replaces a buffer", "writes a buffer", "own average", "batch norm", "counts"])
def test_a_teacher_that_is_kept_follows_the_student_and_the_average(name):
    model, ema = trained(name, "copy")
    kept = ema.teacher()
    for _ in range(3):
        with torch.no_grad():
            model.train()(X)
            for p in model.parameters():
                p.add_(0.1)
        ema.update(samples=8)
        buffers = dict(kept.named_buffers())
        assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers())
        assert all(torch.equal(p, ema.average()[n]) for n, p in kept.named_parameters())
    assert ema.teacher() is kept


@pytest.mark.parametrize("make", [lambda m: MultiEMA(m, half_lives=[4, 20]), lambda m: LAWA(m, last=2, every=8)])
def test_a_kept_teacher_of_every_kind_follows(make):
    model = Does(normed)
    average = make(model)
    which = 4 if isinstance(average, MultiEMA) else None
    kept = average.teacher(which=which)
    for k in range(4):
        with torch.no_grad():
            model.fc.weight.fill_(float(k))
        average.update(samples=8)
        assert torch.equal(kept.fc.weight, average.average(which)["fc.weight"])
    average.load_average({n: torch.full_like(p, 3.0) for n, p in model.named_parameters()}, which=which)
    assert float(kept.fc.weight[0, 0]) == 3.0
    average.reset()
    assert torch.equal(kept.fc.weight, model.fc.weight)


def test_settings_of_the_students_own_modules_reach_the_teacher():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.temperature = nn.Linear(4, 4), 1.0

        def forward(self, x):
            return self.fc(x) / self.temperature

    model = Tempered()
    ema = ModelEMA(model, half_life=8)
    one = ema.teacher()(X)
    model.temperature = 2.0
    assert torch.equal(ema.teacher()(X), one / 2)


def test_a_write_into_what_is_not_averaged_is_said():
    from isobatch.average import Storage

    model = Does(normed)
    model.extra = nn.Linear(4, 4)
    ema = ModelEMA(model, half_life=8, storage=Storage(select=lambda name, tensor: name.startswith("extra")))
    with pytest.raises(InputError, match=r"fc\.weight.*written inside"), ema.applied(model):
        model(X)


def test_an_exception_inside_is_not_hidden_and_changes_nothing():
    model, ema = trained("replaces a buffer", "copy")
    before = snapshot(model, ema)

    def evaluate():
        with ema.applied(model):
            model(X)
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        evaluate()
    same(before, snapshot(model, ema))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unit_vectors_are_not_averaged(dtype):
    class Power(nn.Module):
        """Spectral norm by hand, with vectors that are made unit in the first pass, and rows of prototypes."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4).to(dtype))
            self.register_buffer("u", torch.randn(1, 4).to(dtype))
            self.u_fixed = nn.Parameter(nn.functional.normalize(torch.randn(4), dim=0).to(dtype), requires_grad=False)
            self.register_buffer("rows", nn.functional.normalize(torch.randn(6, 4), dim=1).to(dtype))
            self.register_buffer("columns", nn.functional.normalize(torch.randn(4, 6), dim=0).to(dtype))
            self.register_buffer("mean", torch.zeros(4, dtype=dtype))

        def forward(self, x):
            self.u = nn.functional.normalize(self.u @ self.weight.detach(), dim=1)
            return x.to(dtype) @ self.weight / (self.u @ self.weight).norm()

    torch.manual_seed(1)
    model = Power()
    ema = ModelEMA(model, half_life=8, buffers="average")
    for _ in range(5):
        with torch.no_grad():
            model(X)
            model.weight.add_(torch.randn_like(model.weight))
            model.mean.add_(1)
        ema.update(samples=8)
    assert set(ema.average()) == {"weight", "mean"}
    averaged = ema.average_model()
    assert all(torch.equal(getattr(averaged, n), getattr(model, n)) for n in ("u", "u_fixed", "rows", "columns"))
    assert ema.report().warnings == () or "replaces" in ema.report().warnings[0]


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, spectral_norm])
def test_the_averaged_layer_of_spectral_norm_has_norm_one(wrap):
    torch.manual_seed(0)
    model = wrap(nn.Linear(8, 8, bias=False), n_power_iterations=3)
    ema = ModelEMA(model, half_life=40, buffers="average")
    for j in range(100):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(j)))
            model(torch.randn(4, 8))
        ema.update(samples=1)
    with torch.no_grad(), ema.applied(model):
        size = torch.linalg.matrix_norm(model.eval()(torch.eye(8)).T, 2)
    assert float(size) == pytest.approx(1, abs=0.02)


def test_what_was_a_unit_vector_and_begins_to_train_joins():
    model = nn.Module()
    model.w = nn.Parameter(torch.eye(3), requires_grad=False)
    model.v = nn.Parameter(torch.ones(3))
    ema = ModelEMA(model, half_life=8)
    assert list(ema.average()) == ["v"]
    model.w.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"\['w'\]"):
        ema.report()
    assert torch.equal(ema.average()["w"], torch.eye(3))


USES = {  # what would read the weights, or write them for good, while another average has them lent
    "update": lambda ema, model: ema.update(samples=8),
    "reset": lambda ema, model: ema.reset(),
    "store": lambda ema, model: ema.store(),
    "copy_to": lambda ema, model: ema.copy_to(model),
    "copy_to parameters": lambda ema, model: ema.copy_to(model.parameters()),
    "a state without averages": lambda ema, model: ema.load_state_dict(None, missing="weights"),
}
LENDERS = {"the model": lambda model: model, "a part of it": lambda model: model[0]}


@pytest.mark.parametrize("lender", LENDERS)
@pytest.mark.parametrize("name", USES)
def test_weights_that_another_average_has_lent_are_not_taken_for_the_raw_ones(name, lender):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    ema = ModelEMA(model, half_life=8)
    other = ModelEMA(LENDERS[lender](model), half_life=80)
    with torch.no_grad():
        [p.add_(1) for p in model.parameters()]
    other.update(samples=8)
    before = {key: value.clone() for key, value in ema.average().items()}
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    with other.applied(LENDERS[lender](model)):
        with pytest.raises(InputError, match="another average of these weights is applied"):
            USES[name](ema, model)
        with ema.applied(model):  # lent by both: the inner one is seen
            assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in raw.items())
    assert all(torch.equal(ema.average()[key], value) for key, value in before.items())
    with pytest.raises(KeyError), other.applied(LENDERS[lender](model)):
        raise KeyError
    with other.applied(copy.deepcopy(LENDERS[lender](model))):  # weights that are not this model's
        USES[name](ema, model)


@pytest.mark.parametrize("ends", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_loans_of_one_model_may_end_in_any_order(ends):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    averages = [ModelEMA(model, half_life=8.0**k, buffers=kind) for k, kind in enumerate(("copy", "average", "copy"))]
    with torch.no_grad():
        [p.add_(1) for p in model.parameters()]
    [ema.update(samples=8) for ema in averages]
    raw = {key: (value, value.data_ptr(), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    held = [{key: value.clone() for key, value in ema.average().items()} for ema in averages]
    loans = [ema.applied(model) for ema in averages]
    open_ = [loan.__enter__() or number for number, loan in enumerate(loans)]
    for number in ends:
        model(torch.ones(4, 3))  # writes into the buffers
        loans[number].__exit__(None, None, None)
        open_.remove(number)
        if open_:
            seen = model.state_dict()
            assert all(torch.equal(seen[key], value) for key, value in held[open_[-1]].items() if "running" not in key)
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is raw[key][0]
        assert value.data_ptr() == raw[key][1]
        assert torch.equal(value, raw[key][2])
    for ema, kept in zip(averages, held, strict=True):
        assert all(torch.equal(ema.average()[key], value) for key, value in kept.items())
