"""Intervals cover the truth as often as they say: Gaussian, heavy-tailed, autocorrelated; one shot and running."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.noise import Moments, Spread, block_spread, blocked_spread, judge, measure, ratio_interval
from isobatch.noise.history import History
from isobatch.noise.record import Found


def steps(rng, reps, T, heavy, m=4, b=4, B=20.0, d=10):
    """(trace, |G|^2) of T steps with m chunks of b samples; heavy samples have log-normal scales (kurtosis 39)."""
    x = rng.standard_normal((reps, T, m, b, d))
    if heavy:
        x *= np.exp(0.8 * rng.standard_normal((reps, T, m, b, 1)) - 0.64)
    g = 1 / math.sqrt(d) + math.sqrt(B / d) * x.mean(3)
    squares, mean = (g**2).sum(3), (g.mean(2) ** 2).sum(2)
    trace = m * b / (m - 1) * (squares.mean(2) - mean)
    return np.stack([trace, (mean - squares.mean(2) / m) / (1 - 1 / m)], axis=2)


def coverage(series, truth, spread=blocked_spread):
    hits = 0
    for pairs in series:
        low, high = ratio_interval(*pairs.mean(0), spread(pairs, np.ones(len(pairs))))
        hits += low <= truth <= high
    return hits / len(series)


@pytest.mark.parametrize("T", [16, 64])
@pytest.mark.parametrize(("heavy", "least", "most"), [(False, 0.93, 0.97), (True, 0.9, 1.0)])
def test_coverage_of_independent_steps(T, heavy, least, most):
    series = steps(np.random.default_rng(1), 1500, T, heavy)
    assert least <= coverage(series, 20.0) <= most


@pytest.mark.parametrize("heavy", [False, True])
def test_coverage_where_the_gradient_is_lost_in_noise(heavy):
    series = steps(np.random.default_rng(2), 1000, 32, heavy, m=2, B=100.0)
    assert 0.9 <= coverage(series, 100.0) <= 0.99


def test_coverage_of_correlated_steps():
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((800, 128, 2))
    for t in range(1, 128):
        noise[:, t] = 0.5 * noise[:, t - 1] + math.sqrt(0.75) * noise[:, t]
    series = np.array([100.0, 1.0]) + noise * [20.0, 0.4]
    assert coverage(series, 100.0) >= 0.91
    assert coverage(series, 100.0, block_spread) < 0.85


@pytest.mark.parametrize("half_life", [None, 400.0])
def test_coverage_of_the_running_average(half_life):
    """The whole path: cells on the sample clock, merging, weights by age, unequal spans."""
    hits = 0
    series = torch.from_numpy(steps(np.random.default_rng(4), 400, 150, heavy=False))
    one = torch.ones((), dtype=torch.float64)
    for run in series:
        history, seen = History(half_life), 0.0
        for t, pair in enumerate(run):
            span = 16.0 * (1 + t % 3)
            seen += span
            history.add(Found(pair[None], one), seen=seen, span=span, batch=16)
        read = history.read(seen, 1)
        low, high = ratio_interval(*read.means[0], read.spreads[0])
        hits += low <= 20.0 <= high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(("scale", "samples"), [(5.0, 64), (50.0, 64), (50.0, 256)])
def test_coverage_of_one_shot_measurements(scale, samples):
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(10, dtype=torch.float64))

        def forward(self, x):
            return x @ self.w

    net, generator, hits = Vector(), torch.Generator().manual_seed(5), 0
    for _ in range(400):
        x = torch.randn(samples, 10, generator=generator, dtype=torch.float64) * math.sqrt(scale / 10)
        found = measure(lambda m, c: m(c).mean(), net, (x + 1 / math.sqrt(10)).split(samples // 16), check=False)
        hits += found.low <= scale <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_an_unbounded_interval_is_unidentified_and_says_what_it_takes():
    spread = Spread(np.array([[1.0, 0.0], [0.0, 0.25]]), 20.0)
    found = judge(Moments(0.6, 100.0), spread, span=1000, measurements=20)
    assert found.high == math.inf
    assert found.low > 0
    assert found.verdict == "not identified"
    assert found.needed_samples > 1000
    assert "needs about" in found.sentence
    assert "at least" in found.sentence


def test_a_negative_square_is_flagged_and_never_clamped():
    spread = Spread(np.array([[1.0, 0.0], [0.0, 0.01]]), 20.0)
    found = judge(Moments(-0.05, 100.0), spread, span=1000, measurements=20)
    assert found.value is None
    assert found.gradient_squared == -0.05
    assert found.verdict == "not identified"
    assert 100 < found.low < math.inf


def test_needed_samples_are_about_right():
    """An identified verdict comes after about as many samples as an earlier, unidentified one asked for."""
    series = steps(np.random.default_rng(6), 1, 4000, heavy=False, B=100.0)[0]
    first = judge_first(series, 24)
    assert first.verdict == "not identified"
    total = next(T for T in range(24, 4001, 8) if judge_first(series, T).verdict == "identified")
    assert 1 / 3 < (24 + first.needed_samples / 16) / total < 3


def judge_first(series, T):
    part = series[:T]
    spread = blocked_spread(part, np.ones(T))
    return judge(Moments(part[:, 1].mean(), part[:, 0].mean()), spread, span=16 * T, measurements=T)


def test_a_window_that_cannot_hold_what_is_needed_is_named():
    spread = Spread(np.array([[1.0, 0.0], [0.0, 0.25]]), 20.0)
    found = judge(Moments(0.6, 100.0), spread, span=1000, measurements=20, longest=1500)
    assert "raise half_life" in found.sentence


def test_few_measurements_are_never_identified():
    spread = Spread(np.array([[1e-6, 0.0], [0.0, 1e-9]]), 10.0)
    assert judge(Moments(1.0, 100.0), spread, span=100, measurements=3).verdict == "not identified"


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_level(level):
    with pytest.raises(InputError, match="level="):
        ratio_interval(1.0, 1.0, Spread(np.eye(2), 5.0), level)


def test_ends_of_the_interval_are_the_solutions():
    rng = np.random.default_rng(7)
    for _ in range(200):
        root = rng.standard_normal((2, 2))
        spread = Spread(root @ root.T * 0.02, 12.0)
        s, g = rng.uniform(0.5, 100), rng.uniform(0.05, 2)
        low, high = ratio_interval(s, g, spread)
        for end in (low, high):
            if 0 < end < math.inf:
                v = np.array([1.0, -end])
                assert (s - end * g) ** 2 == pytest.approx(2.178813**2 * v @ spread.covariance @ v, rel=1e-4)
