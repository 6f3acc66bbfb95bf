"""Whatever model, dtype, wrapper, optimizer or scheduler is passed: it works, or is refused in words."""

import inspect
import itertools
import warnings

import numpy as np
import pytest
import torch
from tests.average.test_values import DTYPES, MODELS, WRAPPERS
from tests.recipes import recipe
from torch import nn
from torch.optim import lr_scheduler

from isobatch import NoiseScale, SampleScheduler, rescale
from isobatch.decentralized import VirtualNodes, graphs
from isobatch.errors import IsobatchError
from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop

SHAPES = [(4, 3), (4, 2, 3), (4, 3, 5, 5)]
NOISES = [
    {"every": 1},
    {"every": 1, "capture": "rows", "geometry": "sign"},
    {"every": 1, "capture": "chunks", "groups": "parameter"},
    {"every": 1, "capture": "prefix", "geometry": "adam"},
    {"every": 1, "capture": "norms", "groups": "layer"},
]
FORMS = [
    {"micro_batch": 4},
    {"micro_batch": np.int64(2), "noise": "factored"},
    {"noise": "row", "variance_every": 2},
    {"noise": "tensor", "lr": np.float32(0.01)},
]
KINDS = [InvariantAdamW, InvariantAdam, InvariantRMSprop]


def batches(dtype):
    """Inputs of every form; a model takes one of them or none."""
    for shape in SHAPES:
        yield torch.randn(*shape).to(dtype or torch.float32)
    yield torch.randint(0, 5, (4, 3))
    yield torch.randn(4, 3).to(torch.complex64)


def mean(model, x):
    out = model(x)
    out = out[0] if isinstance(out, tuple) else out
    return out.abs().float().mean()


def usable(make, dtype, wrap):
    """Return the model and an input that torch alone can train on, if any; None where torch itself builds nothing."""
    try:
        made = make()
        made = made.to(dtype) if dtype is not None else made
        made = wrap(made)
    except Exception:  # torch itself does not build, cast or wrap it
        return None
    for x in batches(dtype):
        try:
            mean(made, x).backward()
            mean(made, x).backward()
            torch.optim.SGD(made.parameters(), 0.1).step()
        except Exception:  # not this one
            continue
        for p in made.parameters():
            p.grad = None
        return made, x
    return made, None


def noisy(model, x, options, optimizer):
    noise = NoiseScale(model, optimizer, **options)
    for _ in range(3 if x is not None else 0):
        for _ in range(2):
            (mean(model, x) / 2).backward()
        noise.update(samples=np.int64(2 * len(x)))
        for p in model.parameters():
            p.grad = None
    noise.estimate()
    again = NoiseScale(model, optimizer, **options)
    again.load_state_dict(noise.state_dict())


def invariant(model, x, options, kind):
    optimizer = kind(model.parameters(), reference_batch=4, **options)
    for step in range(3 if x is not None else 0):
        optimizer.zero_grad()
        for _ in range(2):
            if "micro_batch" in options:
                (mean(model, x) / 2).backward()
            else:
                with optimizer.chunk(np.int64(4)):
                    (mean(model, x) / 2).backward()
        if step == 1:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def virtual(model, x, method):
    def loss(net, batch):
        return mean(net, batch[0])

    nodes = VirtualNodes(model, loss, graphs.build("complete", 2), method, lr=0.1)
    if x is not None:
        nodes.step((torch.stack([x, x]),))


def scheduled(optimizer, inner):
    scheduler = SampleScheduler(inner, batch_size=np.int64(8))
    for samples in (8, np.int64(3), 20.0, 400):
        optimizer._opt_called = True
        scheduler.step(samples=samples)
        scheduler.get_last_lr()
    scheduler.step()
    scheduler.load_state_dict(scheduler.state_dict())


def rescaled(optimizer, rules, to):
    rescale(to=to, optimizer=optimizer, recipe=rules)


def trial(act, *given):
    """Return 1 where it works, its words where it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act(*given)
        except IsobatchError as error:
            return str(error)
    return 1


@pytest.mark.parametrize(
    "number", [n if n in (5, 14, 17) else pytest.param(n, marks=pytest.mark.slow) for n in range(len(MODELS))]
)
def test_models_dtypes_and_wrappers(number):
    told, tried = [], 0
    for k, (dtype, wrap) in enumerate(itertools.product(DTYPES, WRAPPERS)):
        for j in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = usable(MODELS[number], dtype, wrap)
                if found is None:
                    continue
                model, x = found
                adam = torch.optim.Adam(model.parameters()) if any(True for _ in model.parameters()) else None
            tried += 1
            told.append(trial(noisy, model, x, NOISES[(k + j) % len(NOISES)], adam))
            kind, form = KINDS[(k + j) % 3], FORMS[(k + 2 * j) % len(FORMS)]
            told.append(trial(invariant, model, x, form, kind))
    assert tried or number
    assert all(words == 1 or len(words) > 20 for words in told)
    if number == 0:
        assert sum(words == 1 for words in told) > 20


def test_the_fuzz_is_wide():
    assert 2 * len(MODELS) * len(DTYPES) * len(WRAPPERS) >= 300


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_models_and_dtypes_of_virtual_nodes(number):
    for dtype, method in itertools.product(DTYPES, ["decentlam", "d2"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = usable(MODELS[number], dtype, lambda m: m)
        if found is None:
            continue
        words = trial(virtual, *found, method)
        assert words == 1 or len(words) > 20


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
    "two groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 0.1 * (1 + i)} for i, q in enumerate(p)]),
    "invariant": lambda p: InvariantAdamW(p, 0.1, reference_batch=4),
    "numpy lr": lambda p: torch.optim.SGD(p, lr=np.float64(0.1), momentum=np.float32(0.9)),
} | {
    name: lambda p, kind=kind: kind(p, lr=0.01)
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "steps": lambda o: lr_scheduler.StepLR(o, 3),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "constant": lr_scheduler.ConstantLR,
    "linear": lr_scheduler.LinearLR,
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "cyclic, no momentum": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 8),
    "plateau": lr_scheduler.ReduceLROnPlateau,
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 3), lr_scheduler.ConstantLR(o)]),
    "sequential": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 3), lr_scheduler.LinearLR(o)], [4]),
    "averaged": lambda o: torch.optim.swa_utils.SWALR(o, 0.01),
    "a function": lambda o: lambda k: 0.1,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_every_class_and_optimizers(name):
    worked = 0
    for make in OPTIMIZERS.values():
        parameters = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                optimizer = make(parameters)
                inner = SCHEDULERS[name](optimizer)
            except Exception:  # torch itself does not build it
                continue
        worked += trial(scheduled, optimizer, inner) == 1
    assert worked or name in ("plateau", "a function")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rescale_of_every_optimizer(name):
    told = {}
    for kind, to in itertools.product(["sgd", "adamw", "adam", "lion"], [1, np.int64(64), 4096, 8.0, "8", None, 0]):
        net = nn.Linear(3, 3)
        try:
            optimizer = OPTIMIZERS[name](list(net.parameters()))
        except Exception:  # torch itself does not build it
            continue
        rules = recipe(optimizer={"name": kind, "lr": 0.1})
        told[kind, to] = trial(rescaled, optimizer, rules, to)
    assert all(told[kind, to] != 1 for kind, to in told if to in ("8", None, 0))
