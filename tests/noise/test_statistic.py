"""The U-statistic: unbiased where G and Sigma are known, equal to sums over pairs, corrected for finite data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import noise as slow

from isobatch.errors import InputError
from isobatch.noise import Moments, finite_data, moments, noise_scale, part_moments

TOKENS = [40, 7, 113, 3, 64, 29]
TRIALS = 10_000
# counts, true noise scale: the token counts of ragged text, one sample each, halves, one large chunk
CASES = [(TOKENS, 300.0), ([1] * 8, 5.0), ([32, 32], 1000.0), ([1, 500], 30.0)]


def trials(counts, scale, dims=12, seed=0):
    """Squared norms of chunks (trials, m) and of the mean, for |G| = 1 and Gaussian samples of trace `scale`."""
    rng = np.random.default_rng(seed)
    n = np.array(counts, float)
    spectrum = np.arange(1, dims + 1) / np.arange(1, dims + 1).sum() * scale
    G = np.ones(dims) / math.sqrt(dims)
    g = G + rng.standard_normal((TRIALS, len(n), dims)) * np.sqrt(spectrum / n[:, None])
    mean = (n[:, None] * g).sum(1) / n.sum()
    return (g**2).sum(2), (mean**2).sum(1)


@pytest.mark.parametrize(("counts", "scale"), CASES)
def test_both_estimates_are_unbiased(counts, scale):
    squares, mean = trials(counts, scale)
    found = np.array([moments(s, counts, m) for s, m in zip(squares.tolist(), mean.tolist(), strict=True)])
    error = found.std(0, ddof=1) / math.sqrt(TRIALS)
    assert abs(found[:, 0].mean() - 1) < 3 * error[0]
    assert abs(found[:, 1].mean() - scale) < 3 * error[1]
    ratio = found[:, 1].mean() / found[:, 0].mean()
    residual = (found[:, 1] - scale * found[:, 0]).std(ddof=1) / math.sqrt(TRIALS) / found[:, 0].mean()
    assert abs(ratio - scale) < 3 * residual


def test_the_equal_size_formula_is_far_off_for_ragged_token_counts():
    squares, mean = trials(TOKENS, 300.0)
    big, small = sum(TOKENS), sum(TOKENS) / len(TOKENS)
    G2, S = slow.two_sizes(squares.mean(1), mean, small, big)
    assert not 150 < S.mean() / G2.mean() < 600


@pytest.mark.parametrize(("counts", "part"), [([8] * 8, [0]), (TOKENS, [1, 2]), ([1] * 32, [0, 8, 16, 24])])
def test_a_part_of_the_chunks_is_unbiased_too(counts, part):
    squares, mean = trials(counts, 50.0)
    few = [counts[i] for i in part]
    found = np.array([part_moments(s[part], few, m, sum(counts)) for s, m in zip(squares, mean.tolist(), strict=True)])
    error = found.std(0, ddof=1) / math.sqrt(TRIALS)
    assert np.all(np.abs(found.mean(0) - [1, 50.0]) < 3 * error)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=7), st.integers(0, 10**6))
def test_agrees_with_sums_over_pairs(counts, seed):
    g = np.random.default_rng(seed).standard_normal((len(counts), 5))
    mean = slow.mean_gradient(g, counts)
    found = moments((g**2).sum(1).tolist(), counts, float(mean @ mean))
    assert found.gradient_squared == pytest.approx(slow.G_squared(g, counts), rel=1e-9, abs=1e-9)
    assert found.trace == pytest.approx(slow.trace_Sigma(g, counts), rel=1e-9)
    if len(set(counts)) == 1:
        b, n = counts[0], sum(counts)
        G2, S = slow.two_sizes((g**2).sum(1).mean(), float(mean @ mean), b, n)
        assert found == pytest.approx((G2, S), rel=1e-9, abs=1e-9)
    everything = part_moments((g**2).sum(1).tolist(), counts, float(mean @ mean), sum(counts))
    assert everything.trace == pytest.approx(found.trace, rel=1e-9)


def test_finite_data_gives_the_gradient_of_the_data_set():
    rng = np.random.default_rng(0)
    D, n = 24, 12
    g = 0.2 + rng.standard_normal((D, 4))
    G = g.mean(0)
    S = ((g - G) ** 2).sum() / (D - 1)
    found = []
    for _ in range(TRIALS):
        batch = g[rng.permutation(D)[:n]]
        mean = batch.mean(0)
        found.append(finite_data(moments((batch**2).sum(1).tolist(), [1] * n, float(mean @ mean)), D))
    found = np.array(found)
    error = found.std(0, ddof=1) / math.sqrt(TRIALS)
    assert np.all(np.abs(found.mean(0) - [G @ G, S]) < 3 * error)
    assert abs(found[:, 0].mean() - S / D - G @ G) > 3 * error[0]


def test_a_negative_square_gives_no_number():
    assert noise_scale(Moments(-0.5, 1.0)) is None
    assert noise_scale(Moments(0.0, 1.0)) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments([1.0], [4], 1.0), "at least two chunks"),
        (lambda: moments([1.0, 2.0], [4], 1.0), "each with both"),
        (lambda: moments([1.0, 2.0], [4, 0], 1.0), "count=0"),
        (lambda: moments([1.0, 2.0], [4, math.nan], 1.0), "finite"),
        (lambda: part_moments([1.0], [4], 1.0, 4), "one chunk"),
        (lambda: part_moments([1.0], [8], 1.0, 4), "whole step"),
        (lambda: part_moments([], [], 1.0, 4), "at least one"),
        (lambda: finite_data(Moments(1.0, 1.0), 1), "data_size=1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
