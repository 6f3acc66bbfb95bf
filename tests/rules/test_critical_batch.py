"""Speed rules against slow references: the hyperbola, best rates, AdaScale's gain, goodput."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import critical as slow

from isobatch import rules
from isobatch.errors import InputError

SIZES = st.floats(1, 1e6)


def quadratic(seed=0, d=5):
    rng = np.random.default_rng(seed)
    root, spread = rng.standard_normal((2, d, d))
    return rng.standard_normal(d), root @ root.T, spread @ spread.T


@pytest.mark.parametrize("seed", range(3))
def test_the_best_rate_of_sgd_is_the_quadratic_s(seed):
    G, H, Sigma = quadratic(seed)
    scale = np.trace(H @ Sigma) / (G @ H @ G)
    for old, new in ((1, 8), (8, 1), (16, 4096)):
        known = slow.best_rate(G, H, Sigma, old)
        assert rules.optimal_lr(known, old, new, scale) == pytest.approx(slow.best_rate(G, H, Sigma, new), rel=1e-6)


@given(lr=st.floats(1e-6, 10), old=SIZES, new=SIZES, critical=SIZES, power=st.floats(0, 2))
def test_the_saturating_rate_is_its_height_at_both_batches(lr, old, new, critical, power):
    top = lr * (1 + critical / old) ** power
    wanted = top / (1 + critical / new) ** power
    assert rules.optimal_lr(lr, old, new, critical, power) == pytest.approx(wanted, rel=1e-9)


@given(critical=SIZES, batch=SIZES, smallest=st.floats(1, 1e4))
def test_steps_and_samples_lie_on_the_hyperbola(critical, batch, smallest):
    steps = smallest * rules.steps_factor(batch, critical)
    assert steps == pytest.approx(slow.steps(smallest, smallest * critical, batch), rel=1e-9)
    assert batch * steps == pytest.approx(smallest * critical * rules.samples_factor(batch, critical), rel=1e-9)


def test_the_gain_is_what_many_workers_gradients_say():
    rng = np.random.default_rng(0)
    G, d, base = rng.standard_normal(6), 6, 32
    draws = G + rng.standard_normal((40_000, 4, d)) * 3.0
    wanted = slow.gain(4, draws)
    variance, squared = 9.0 * d, float(G @ G)
    assert rules.adascale_gain(4, variance, squared) == pytest.approx(wanted, rel=0.01)
    assert rules.gain(4 * base, base, variance * base / squared) == pytest.approx(
        rules.adascale_gain(4, variance, squared)
    )


@given(base=SIZES, scale=st.floats(1, 1e4), noise=st.floats(0, 1e9), lr=st.floats(1e-4, 1))
def test_gain_goodput_and_best_rate_agree(base, scale, noise, lr):
    found = rules.gain(base * scale, base, noise)
    assert 1 - 1e-9 <= found <= scale * (1 + 1e-9)
    assert lr * found == pytest.approx(rules.optimal_lr(lr, base, base * scale, noise))
    share = rules.efficiency(base * scale, base, noise)
    assert share == pytest.approx((noise + base) / (noise + base * scale), rel=1e-9)
    assert rules.goodput(50.0, base * scale, base, noise) == pytest.approx(50 * share)


def test_limits_of_the_gain():
    assert rules.adascale_gain(8, 0.0, 1.0) == 1
    assert rules.adascale_gain(8, 1.0, 0.0) == 8
    assert rules.gain(256, 32, float("inf")) == 8
    assert rules.efficiency(32, 32, 7.0) == 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda: rules.adascale_gain(0.5, 1, 1), r"scale=0\.5 must be in \[1, inf\]"),
    (lambda: rules.adascale_gain(2, 0, 0), "without a gradient there is no gain"),
    (lambda: rules.adascale_gain(2, 1, -1), r"gradient_squared=-1 must be in \[0, inf\]"),
    (lambda: rules.gain(2, 1, -1), r"critical batch=-1 must be in \[0, inf\]"),
    (lambda: rules.gain(0, 1, 1), r"batch=0 must be in \(0, inf\]"),
    (lambda: rules.samples_factor(1, 0), r"critical batch=0 must be in \(0, inf\]"),
    (lambda: rules.optimal_lr(-1, 1, 1, 1), r"lr=-1 must be in \[0, inf\]"),
    (lambda: rules.optimal_lr(1, 1, 1, 1, -0.5), r"power=-0\.5 must be in \[0, inf\]"),
    (lambda: rules.goodput(float("nan"), 1, 1, 1), "throughput=nan must be finite"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
