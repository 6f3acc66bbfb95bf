"""The fit: planted values recovered, intervals that cover at the stated rate, and honesty where data do not reach."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import critical as slow

from isobatch.critical import fit
from isobatch.errors import InputError

BATCHES = [8, 16, 32, 64, 128, 256, 512]


@given(s_min=st.floats(1, 1e5), critical=st.floats(16, 256))
def test_planted_values_are_recovered(s_min, critical):
    found = fit(BATCHES, [slow.steps(s_min, s_min * critical, b) for b in BATCHES])
    assert found.steps.value == pytest.approx(s_min, rel=1e-3)
    assert found.critical.value == pytest.approx(critical, rel=1e-3)
    assert found.samples.value == pytest.approx(s_min * critical, rel=1e-3)
    assert found.identified
    assert found.residual < 1e-3


@pytest.mark.parametrize("critical", [20.0, 64.0, 200.0])
def test_intervals_cover_at_the_stated_rate(critical):
    """500 sweeps with 10% noise: 95% +- three binomial standard errors."""
    rng, truth, trials = np.random.default_rng(7), {"steps": 100.0, "samples": 100 * critical}, 500
    truth["critical"] = critical
    clean = np.log([100 * (1 + critical / b) for b in BATCHES])
    hits = dict.fromkeys(truth, 0)
    for _ in range(trials):
        found = fit(BATCHES, np.exp(clean + 0.1 * rng.standard_normal(len(clean))))
        for name, value in truth.items():
            interval = getattr(found, name)
            hits[name] += interval.low <= value <= interval.high
    for name, count in hits.items():
        assert abs(count / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials), name


def test_the_least_squares_agree_with_a_brute_search():
    rng = np.random.default_rng(3)
    steps = [100 * (1 + 50 / b) * math.exp(0.2 * rng.standard_normal()) for b in BATCHES]
    found = fit(BATCHES, steps)
    c, s = np.meshgrid(np.geomspace(5, 500, 800), np.geomspace(20, 400, 800))
    errors = sum((np.log(y) - np.log(s * (1 + c / b))) ** 2 for b, y in zip(BATCHES, steps, strict=True))
    at = np.unravel_index(errors.argmin(), errors.shape)
    assert found.critical.value == pytest.approx(c[at], rel=0.01)
    assert found.steps.value == pytest.approx(s[at], rel=0.01)
    # the region of the pair, projected, is what the intervals say; t = 2.5706 at 5 degrees of freedom
    allowed = errors.min() * (1 + 2.5706**2 / 5)
    assert found.critical.low == pytest.approx(c[errors <= allowed].min(), rel=0.02)
    assert found.critical.high == pytest.approx(c[errors <= allowed].max(), rel=0.02)
    assert found.steps.low == pytest.approx(s[errors <= allowed].min(), rel=0.02)
    assert found.samples.high == pytest.approx((c * s)[errors <= allowed].max(), rel=0.02)


@pytest.mark.parametrize(("critical", "open_end"), [(1e5, "high"), (0.05, "low")])
def test_a_sweep_on_one_side_leaves_an_end_open(critical, open_end):
    rng = np.random.default_rng(0)
    steps = [100 * (1 + critical / b) * math.exp(0.05 * rng.standard_normal()) for b in BATCHES]
    found = fit(BATCHES, steps)
    assert not found.identified
    assert getattr(found.critical, open_end) == (math.inf if open_end == "high" else 0)
    closed = found.critical.low if open_end == "high" else found.critical.high
    assert 0 < closed < math.inf


def test_three_batches_fit_but_do_not_identify():
    assert not fit([8, 64, 512], [slow.steps(10, 640, b) for b in (8, 64, 512)]).identified


@pytest.mark.parametrize(("batches", "steps", "message"), [
    ([8, 16], [3, 2], "2 different batches and 2 step counts: a fit takes at least 3"),
    ([8, 8, 8], [3, 2, 1], "1 different batches"),
    ([8, 16, 32], [3, 2], "3 different batches and 2 step counts"),
    ([8, 16, 32], [3, 2, 0], r"steps=0 must be in \(0, inf\]"),
    ([8, 16, 32], [3, 2, math.inf], "steps=inf must be finite"),
    ([8, 16, -1], [3, 2, 1], r"batch=-1 must be in \(0, inf\]"),
])  # fmt: skip
def test_refusals(batches, steps, message):
    with pytest.raises(InputError, match=message):
        fit(batches, steps)
