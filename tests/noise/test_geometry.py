"""Each geometry against numpy, running and one-shot; where it is biased, how far."""

import math

import numpy as np
import pytest
import torch
from tests.reference import noise as slow
from torch import nn

from isobatch.errors import InputError
from isobatch.noise import NoiseScale, measure, measure_hessian
from isobatch.noise.geometry import Geometry


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 1)).double()


def data(step, rows=16):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def loss(net, x):
    return (net(x).squeeze(1) - x.sum(1)).square().mean()


def each(net, x, sizes, weight=1.0):
    found = []
    for part in x.split(sizes):
        grads = torch.autograd.grad(loss(net, part), list(net.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]).numpy() * weight)
    return found


def adam_weight(net, optimizer):
    """1/(sqrt(v_hat) + eps), by torch's own formula."""
    group = optimizer.param_groups[0]
    parts = []
    for p in net.parameters():
        state = optimizer.state[p]
        v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        parts.append((1 / (v.sqrt() + group["eps"])).flatten())
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("capture", ["chunks", "rows"])
def test_adam_divides_by_the_second_moment_before_the_step(capture):
    net, twin = build(), build()
    optimizer = torch.optim.Adam(net.parameters(), 0.01, betas=(0.9, 0.97), eps=1e-3)
    noise = NoiseScale(net, optimizer, geometry="adam", every=1, capture=capture, rows=16, half_life=1e-3)
    for step in range(4):
        x, sizes = data(step), [4] * 4 if capture == "chunks" else [1] * 16
        twin.load_state_dict(net.state_dict())
        truth = each(twin, x, sizes, adam_weight(net, optimizer)) if step > 1 else None
        optimizer.zero_grad()
        for part in x.split(4 if capture == "chunks" else 16):
            (loss(net, part) * (len(part) / 16)).backward()
        noise.update(samples=16)
        found = noise.estimate()
        if truth is None:
            assert found.verdict == "undefined"
        else:
            np.testing.assert_allclose(found.trace, slow.trace_Sigma(truth, sizes), rtol=1e-9)
            np.testing.assert_allclose(found.gradient_squared, slow.G_squared(truth, sizes), rtol=1e-9)
        if step == 3:
            shot = measure(loss, net, x.split(sizes), geometry="adam", optimizer=optimizer, counts=sizes, check=False)
            assert shot.trace == pytest.approx(found.trace, rel=1e-9)
            assert shot.gradient_squared == pytest.approx(found.gradient_squared, rel=1e-9)
        optimizer.step()


@pytest.mark.parametrize(("capture", "sizes"), [("chunks", [4, 4, 4, 4]), ("chunks", [9, 2, 5]), ("rows", [1] * 16)])
def test_sign_is_the_l1_norm(capture, sizes):
    net, x = build(), data(0)
    noise = NoiseScale(net, geometry="sign", every=1, capture=capture, rows=16, groups="layer")
    if capture == "rows":
        loss(net, x).backward()
    else:
        for part in x.split(sizes):
            with noise.chunk(len(part)):
                (loss(net, part) * (len(part) / 16)).backward()
    noise.update(samples=16)
    found = noise.estimate()
    G2, S = slow.l1(each(net, x, sizes), sizes)
    np.testing.assert_allclose([found.gradient_squared, found.trace], [G2, S], rtol=1e-9)
    shot = measure(loss, net, x.split(sizes), geometry="sign", counts=sizes, check=False, groups="layer")
    np.testing.assert_allclose([shot.gradient_squared, shot.trace], [G2, S], rtol=1e-9)
    for name, part in found.parts.items():
        assert shot.parts[name].trace == pytest.approx(part.trace, rel=1e-9)
        assert shot.parts[name].gradient_squared == pytest.approx(part.gradient_squared, rel=1e-9)


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-6), (0.05, 0.02), (1.0, 0.5), (30.0, 0.5)])
def test_how_far_the_debiased_sign_geometry_is_from_the_truth(noise, tolerance):
    """Within 5% at three times more noise than signal in a coordinate, where the plain norm is off by 55%."""
    rng = np.random.default_rng(0)
    d, m = 4000, 16
    G = rng.standard_normal(d)
    found = np.array([slow.l1(G + noise * rng.standard_normal((m, d)), [1] * m) for _ in range(40)]).mean(0)
    truth = np.array([np.abs(G).sum() ** 2, (noise * d) ** 2])
    assert found[1] == pytest.approx(truth[1], rel=0.01)
    assert abs(found[0] / truth[0] - 1) <= tolerance


def test_hessian_on_a_quadratic_is_known():
    """L = h'(w - z)^2/2: G = h(w - mean), Sigma = h^2 sigma^2, so every term has a closed form."""
    h = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    sigma = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0, -1.0, 1.0], dtype=torch.float64))

        def forward(self, z):
            return ((self.w - z).square() * h / 2).sum(1).mean()

    net = Bowl()
    z = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * sigma
    found = measure_hessian(lambda m, c: m(c), net, z.split([30, 50] * 500), on=z[:8])
    G = h * net.w.detach()
    GHG, trace = float((G * G * h).sum()), float((h * h**2 * sigma**2).sum())
    assert found.gradient_squared == pytest.approx(GHG, rel=0.05)
    assert found.trace == pytest.approx(trace, rel=0.1)
    assert found.low < trace / GHG < found.high
    assert found.verdict == "identified"
    assert net.w.grad is None


def test_hessian_without_pairs_or_along_a_ridge():
    net = build()
    assert measure_hessian(loss, net, [data(0)], on=data(1)).verdict == "undefined"
    found = measure_hessian(
        lambda m, x: -(m[0].weight * x.mean()).square().sum(), net, data(0, 64).split(4), on=data(1)
    )
    assert found.value is None
    assert found.verdict == "not identified"


def test_adam_needs_second_moments():
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    loss(net, data(0)).backward()
    optimizer.step()
    geometry = Geometry("adam", optimizer)
    with pytest.raises(InputError, match="SGD holds no second moment"):
        geometry.weight(next(net.parameters()))


def test_invariant_and_rmsprop_states_are_read():
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    rms = torch.optim.RMSprop([p], 0.1, eps=0.5)
    rms.state[p] = {"square_avg": torch.tensor([4.0, 0.0], dtype=torch.float64)}
    assert Geometry("adam", rms).weight(p).tolist() == [1 / 2.5, 2.0]
    adam = torch.optim.Adam([p], 0.1, eps=0.5)
    adam.state[p] = {"exp_avg_sq": torch.tensor([2.0, 0.0], dtype=torch.float64), "log_decay2": math.log(0.5)}
    assert Geometry("adam", adam).weight(p).tolist() == [1 / 2.5, 2.0]
