"""Agreement with torch at kappa = 1, with the slow reference anywhere, and between all the ways to feed a step."""

import math

import numpy as np
import pytest
import torch
from tests.reference.invariant_adam import InvariantAdam as Slow
from torch import nn

from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop, layer_squares, split_backward

FORMS = ["adamw", "adam", "rmsprop"]


def make(form, params, reference, **extra):
    if form == "rmsprop":
        return InvariantRMSprop(
            params, 0.02, alpha=0.9, eps=1e-6, weight_decay=0.1, momentum=0.6, reference_batch=reference, **extra
        )
    kind = InvariantAdamW if form == "adamw" else InvariantAdam
    return kind(params, 0.02, (0.7, 0.9), 1e-6, 0.1, reference_batch=reference, **extra)


def slow(form, theta, reference):
    return Slow(theta, reference, decoupled=form == "adamw", rmsprop=form == "rmsprop")


def settings_of(form):
    return {"lr": 0.02, "beta1": 0.6 if form == "rmsprop" else 0.7, "beta2": 0.9, "eps": 1e-6, "lam": 0.1}


def feed(optimizer, parameter, chunks, sizes):
    """Backward passes whose gradients are the given chunk means, scaled as an accumulation loop does."""
    total = sum(sizes)
    for gradient, size in zip(chunks, sizes, strict=True):
        with optimizer.chunk(size):
            (parameter * torch.as_tensor(gradient) * (size / total)).sum().backward()


def stock(form, params):
    return {
        "adamw": lambda: torch.optim.AdamW(params, 0.02, (0.7, 0.9), 1e-6, 0.1),
        "adam": lambda: torch.optim.Adam(params, 0.02, (0.7, 0.9), 1e-6, 0.1),
        "rmsprop": lambda: torch.optim.RMSprop(params, 0.02, 0.9, 1e-6, 0.1, 0.6),
    }[form]()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch_at_kappa_one(form, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    twin = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    twin.load_state_dict(model.state_dict())
    ours, theirs = make(form, model.parameters(), 16, micro_batch=16), stock(form, twin.parameters())
    for step in range(20):
        x, y = torch.randn(16, 4, dtype=dtype), torch.randn(16, 2, dtype=dtype)
        for net, optimizer in ((model, ours), (twin, theirs)):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 + step) / 20
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    theirs_now = twin.state_dict()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, theirs_now[name], rtol=tolerance, atol=tolerance), name


RUNS = {
    "chunks of the reference": (4, [[4, 4, 4, 4]] * 5),
    "small chunks": (4, [[2, 2, 2, 2, 2, 2]] * 5),
    "large chunks": (4, [[16, 16]] * 5),
    "unequal token counts": (4, [[3, 5, 1, 9], [7, 2], [4, 4]] * 2),
    "smaller, divides": (8, [[2]] * 9),
    "smaller, overshoots": (8, [[3], [1, 2]] * 5),
    "batch changes, also inside a window": (4, [[4], [2], [1], [4, 4, 4], [8, 8], [1], [1], [2], [4], [3, 3]]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_agrees_with_the_slow_reference(form, run):
    reference, steps = RUNS[run]
    rng = np.random.default_rng(4)
    theta = rng.normal(size=(3, 2))
    parameter = nn.Parameter(torch.tensor(theta))
    optimizer, truth = make(form, [parameter], reference), slow(form, theta, reference)
    for sizes in steps:
        chunks = rng.normal(0.5, 1, (len(sizes), 3, 2))
        optimizer.zero_grad()
        feed(optimizer, parameter, chunks, sizes)
        optimizer.step()
        truth.step(chunks, sizes, **settings_of(form))
        np.testing.assert_allclose(parameter.detach().numpy(), truth.theta, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(optimizer.state[parameter]["exp_avg_sq"].numpy(), truth.v, rtol=1e-11, atol=1e-14)


def test_betas_may_change_at_every_step():
    rng = np.random.default_rng(5)
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer, truth = make("adamw", [parameter], 2), slow("adamw", np.zeros(3), 2)
    for step in range(8):
        kappa = 1 + step % 3
        beta1, beta2 = 0.7**kappa, 0.9**kappa
        optimizer.param_groups[0].update(lr=0.02 * kappa, betas=(beta1, beta2))
        chunks = rng.normal(size=(kappa, 3))
        optimizer.zero_grad()
        feed(optimizer, parameter, chunks, [2] * kappa)
        optimizer.step()
        truth.step(chunks, [2] * kappa, lr=0.02 * kappa, beta1=beta1, beta2=beta2, eps=1e-6, lam=0.1)
    np.testing.assert_allclose(parameter.detach().numpy(), truth.theta, rtol=1e-12)


class Small(nn.Module):
    """Embedding, norm and linear layers over a length, so that every rule of layer_squares is used."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(5, 5, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.groups = nn.GroupNorm(5, 5)
        self.head = nn.Linear(6, 11)

    def forward(self, x):
        h = self.table(x)
        return self.head(self.norm(h + self.groups(self.conv(h)).tanh()))


def data(rows=32):
    generator = torch.Generator().manual_seed(6)
    x = torch.randint(0, 11, (rows, 5), generator=generator)
    return x, torch.randint(0, 11, (rows, 5), generator=generator)


def one_update(way, form="adamw", noise="coordinate"):
    torch.manual_seed(7)
    model = Small().double()
    optimizer = make(form, model.parameters(), 8, micro_batch=8, noise=noise)

    def loss(x, y):
        return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    for _ in range(3):
        optimizer.zero_grad()
        x, y = data()
        if way == "split":
            split_backward(optimizer, loss, x, y)
        elif way == "layers":
            with layer_squares(model, optimizer, batch=32):
                loss(x, y).backward()
        elif way == "declared":
            for part, target in zip(x.split(8), y.split(8), strict=True):
                with optimizer.chunk(8):
                    (loss(part, target) / 4).backward()
        else:
            for part, target in zip(x.split(8), y.split(8), strict=True):
                (loss(part, target) / 4).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noise", ["coordinate", "factored", "row", "tensor"])
@pytest.mark.parametrize("way", ["split", "layers", "declared"])
def test_one_batch_equals_micro_batches(form, noise, way):
    truth, found = one_update("plain", form, noise), one_update(way, form, noise)
    for name, value in truth.items():
        assert torch.allclose(value, found[name], rtol=1e-12, atol=1e-12), name


class Named(nn.Module):
    """Calls its layers by the names of their arguments."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 11)

    def forward(self, x):
        return self.head(input=self.norm(input=self.table(input=x)))


@pytest.mark.parametrize("inside", ["forward", "both"])
@pytest.mark.parametrize("kind", [Small, Named])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_from_layers_under_autocast_are_those_of_float64(kind, dtype, inside):
    torch.manual_seed(7)
    model = kind()
    twin = kind().double()
    twin.load_state_dict(model.state_dict())
    x, y = data()

    def loss(net, x, y):
        return nn.functional.cross_entropy(net(x).double().flatten(0, 1), y.flatten())

    exact = InvariantAdamW(twin.parameters(), reference_batch=8)
    split_backward(exact, lambda x, y: loss(twin, x, y), x, y)
    optimizer = InvariantAdamW(model.parameters(), reference_batch=8)
    with layer_squares(model, optimizer, batch=32):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = loss(model, x, y)
            if inside == "both":
                found.backward()
        if inside != "both":
            found.backward()
    assert optimizer.chunks.count == 4
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        squares = optimizer.chunks.squares(mine) / optimizer.chunks.unit
        wanted = exact.chunks.squares(theirs) / exact.chunks.unit
        assert squares.dtype == torch.float32
        slack = 1e-4 if dtype == torch.float32 else 0.04
        assert (
            float((squares - wanted).norm()) < slack * float(wanted.norm()) + 1e-8
        )  # of a bias before a norm all is 0
    optimizer.step()


def test_per_example_squares_of_a_linear_layer_take_the_short_way():
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(12, 4, dtype=torch.float64)
    squares = []
    for short in (True, False):
        optimizer = InvariantAdamW(model.parameters(), reference_batch=1)
        if short:
            with layer_squares(model, optimizer, batch=12):
                model(x).square().mean().backward()
        else:
            split_backward(optimizer, lambda part: model(part).square().mean(), x)
        assert optimizer.chunks.count == 12
        squares.append([optimizer.chunks.squares(p) / optimizer.chunks.unit for p in model.parameters()])
        optimizer.zero_grad()
    for one, other in zip(*squares, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_tokens_weigh_the_chunks():
    """Chunks of unequal token counts under one mask equal chunks of the same tokens declared by hand."""
    torch.manual_seed(9)
    rows = torch.randn(6, 5, 3, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2], [4], [0]])
    results = []
    for by_hand in (True, False):
        weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = InvariantAdamW([weight], reference_batch=2)

        def loss(x, m, weight=weight):
            return ((x @ weight - 1).square() * m).sum() / m.sum().clamp_min(1)

        if by_hand:
            for i in range(0, 6, 2):
                tokens = float(mask[i : i + 2].sum())
                with optimizer.chunk(tokens):
                    (loss(rows[i : i + 2], mask[i : i + 2]) * tokens / 15).backward()
        else:
            split_backward(optimizer, loss, rows, mask, rows=2, weigh=lambda x, m: float(m.sum()))
        assert optimizer.chunks.samples == 15
        optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_a_clip_told_by_scaled_scales_the_squares():
    outcomes = []
    for clipped in (True, False):
        parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = make("adamw", [parameter], 2)
        chunks = np.array([[1.0, -2.0, 3.0], [0.5, 2.0, 1.0]])
        feed(optimizer, parameter, chunks if clipped else chunks * 0.25, [2, 2])
        if clipped:
            parameter.grad.mul_(0.25)
            optimizer.chunks.scaled(0.25)
        optimizer.step()
        outcomes.append((parameter.detach(), optimizer.state[parameter]["exp_avg_sq"]))
    for one, other in zip(*outcomes, strict=True):
        assert torch.allclose(one, other, rtol=1e-14)


def test_a_new_gradient_in_an_open_window_divides_its_own_step():
    """v alone is stale there: a coordinate that was silent would move by lr g / eps."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = InvariantAdamW([parameter], 0.01, (0.9, 0.999), 1e-12, 0.0, reference_batch=4)
    for step in range(12):
        feed(optimizer, parameter, [[1.0, 0.0 if step < 5 else 1.0]], [1])
        optimizer.step()
        optimizer.zero_grad()
        bound = 0.01 * 0.1 / math.sqrt(0.001)
        assert (parameter.detach().abs() <= (step + 1) * bound).all()


def test_the_same_run_at_sixteen_times_the_batch_on_a_noisy_quadratic():
    """lr x kappa and betas**kappa keep the mean path; the square root does not, where gradients are large."""
    dimension, runs, samples, lr, betas = 1, 400, 512, 2e-3, (0.9, 0.99)

    def path(kappa, invariant):
        generator = torch.Generator().manual_seed(10)
        noise = torch.randn(samples, runs, dimension, generator=generator, dtype=torch.float64)
        theta = nn.Parameter(torch.full((runs, dimension), 1.0, dtype=torch.float64))
        rate = lr * (kappa if invariant else math.sqrt(kappa))
        optimizer = InvariantAdamW(
            [theta], rate, (betas[0] ** kappa, betas[1] ** kappa), 1e-12, 0.0, reference_batch=1 if invariant else kappa
        )
        for block in noise.split(kappa):
            optimizer.zero_grad()
            parts = block if invariant else block.mean(0, keepdim=True)
            for part in parts:
                with optimizer.chunk(1 if invariant else kappa):
                    (theta.square() / 2 + 0.5 * part * theta).sum().div(len(parts)).backward()
            optimizer.step()
        return float(theta.detach().mean())

    reference = path(1, True)
    assert abs(path(16, True) - reference) < 0.05 * (1 - reference)
    assert abs(path(16, False) - reference) > 0.3 * (1 - reference)
