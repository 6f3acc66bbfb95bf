"""Fewer, larger updates: exact exponents, the stated bound of cadence="auto", and the cure of freezing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from isobatch.average import ModelEMA, MultiEMA
from isobatch.average.clock import AUTO_SPAN
from isobatch.errors import InputError


def vector(size=256):
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(size, dtype=torch.float64))
    return module


def walk(steps, size, noise, seed=0):
    """Weights that drift along a curve, with autocorrelated noise around it."""
    rng = np.random.default_rng(seed)
    drift, jitter = rng.standard_normal(size), np.zeros(size)
    for j in range(steps):
        jitter = 0.9 * jitter + noise * rng.standard_normal(size)
        yield torch.from_numpy(10 * drift * (1 - math.exp(-j / 2000)) + jitter)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("batches", [(8,), (3, 8, 40, 1, 8)])
def test_auto_stays_within_its_bound(noise, batches):
    module, half_life = vector(64), 20_000
    every, auto = ModelEMA(module, half_life=half_life), ModelEMA(module, half_life=half_life, cadence="auto")
    window, widest, worst, applied = [], 0.0, 0.0, 0
    for j, weights in enumerate(walk(4000, 64, noise)):
        with torch.no_grad():
            module.w.copy_(weights)
        for ema in (every, auto):
            ema.update(samples=batches[j % len(batches)])
        window.append(weights)
        if auto._engine.clock.applied == applied:
            continue
        applied = auto._engine.clock.applied
        gap = float((auto.average()["w"] - every.average()["w"]).norm())
        widest = max(widest, *(float((w - weights).norm()) for w in window))
        window = []
        lag = float((every.average()["w"] - weights).norm())
        if j > 2000:
            worst = max(worst, gap / lag)
        assert gap <= widest
    assert worst < (0.003 if noise == 0 else 0.02)
    assert applied < 4000 / 9


def test_auto_keeps_the_mean_age_within_a_quarter_of_a_percent():
    module, half_life = vector(1), 5_000
    every, auto = ModelEMA(module, half_life=half_life), ModelEMA(module, half_life=half_life, cadence="auto")
    for _ in range(7_000):
        every.update(samples=8)
        auto.update(samples=8)
    a, b = every.report().mean_age, auto.report().mean_age - auto.report().pending
    assert abs(a - b) < 0.0025 * a
    assert AUTO_SPAN * math.log(2) / 2 < 0.0025


def test_cadence_holds_back_and_costs_a_tenth_or_less():
    module = vector()
    ema = ModelEMA(module, decay=0.9999, batch_size=256, cadence="auto")
    for _ in range(1000):
        ema.update(samples=256)
    assert ema._engine.clock.applied <= 1000 / 10


# A float32 average at a small batch: share of the distance covered after three half-lives, 0.875 wanted.
@pytest.mark.parametrize(("kappa", "covered"), [(1 / 16, (0.2, 0.6)), (1 / 64, (0.0, 0.05))])
def test_auto_cures_the_freezing_of_float32_averages(kappa, covered):
    module = nn.Module()
    module.w = nn.Parameter(torch.linspace(1.0, 2.0, 64))
    start = module.w.detach().clone()
    auto = ModelEMA(module, decay=0.9999, batch_size=1, cadence="auto")
    with torch.no_grad():
        module.w.mul_(1.01)
    for _ in range(3000):
        auto.update(samples=auto.half_life / 1000)
    frozen = start.clone()
    for _ in range(int(3 * auto.half_life / kappa)):
        new = torch.lerp(frozen, module.w.detach(), -math.expm1(kappa * math.log(0.9999)))
        if torch.equal(new, frozen):
            break
        frozen = new
    moved = (module.w.detach() - start).norm()
    assert 0.86 < float((auto.average()["w"] - start).norm() / moved) < 0.885
    assert covered[0] <= float((frozen - start).norm() / moved) <= covered[1]


def test_report_tells_of_lost_updates():
    module = nn.Module()
    module.w = nn.Parameter(torch.linspace(1.0, 2.0, 64))
    ema = ModelEMA(module, half_life=1e9)
    with torch.no_grad():
        module.w.mul_(1.001)
    ema.update(samples=1)
    report = ema.report()
    assert report.frozen_share == 1.0
    assert report.lost_below > 1
    assert any("no longer move" in w for w in report.warnings)


def test_auto_follows_the_shortest_horizon():
    averages = MultiEMA(vector(), half_lives=[1000, 100_000], cadence="auto")
    for _ in range(5):
        averages.update(samples=1)
    assert averages._engine.clock.applied == 1


@pytest.mark.parametrize("bad", [0, -1, 2.5, "never", True, None])
def test_bad_cadences_are_refused(bad):
    with pytest.raises(InputError, match="cadence"):
        ModelEMA(vector(), half_life=1, cadence=bad)
