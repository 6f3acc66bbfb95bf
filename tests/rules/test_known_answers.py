"""Numbers written down beforehand: exact rule and first order, the lag, weight decay, half-lives, refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import rules as slow

from isobatch import rules, units
from isobatch.errors import InputError

KAPPAS = (2, 4, 8, 32, 128)
TABLE = {  # rho: exact rho**kappa, first order 1 - kappa*(1-rho)
    0.9: ((0.81, 0.6561, 0.430467, 0.034337, 1e-6), (0.80, 0.60, 0.20, -2.2, -11.8)),
    0.99: ((0.9801, 0.960596, 0.922745, 0.72498, 0.276252), (0.98, 0.96, 0.92, 0.68, -0.28)),
    0.996: ((0.992016, 0.984096, 0.968444, 0.879628, 0.598681), (0.992, 0.984, 0.968, 0.872, 0.488)),
    0.999: ((0.998001, 0.996006, 0.992028, 0.968491, 0.879797), (0.998, 0.996, 0.992, 0.968, 0.872)),
    0.9999: ((0.9998, 0.9996, 0.9992, 0.996805, 0.987281), (0.9998, 0.9996, 0.9992, 0.9968, 0.9872)),
}


@pytest.mark.parametrize("rho", TABLE)
def test_exact_rule_against_its_first_order(rho):
    for kappa, exact, first in zip(KAPPAS, *TABLE[rho], strict=True):
        assert rules.scale_decay(rho, kappa) == pytest.approx(exact, abs=5.1e-7 if exact > 1e-5 else 5e-7)
        assert rules.power(rho, kappa) == rules.scale_decay(rho, kappa)
        if first < 0:
            with pytest.raises(InputError, match=rf"kappa={kappa} is beyond .* beta={rho:g}.* kappa={1 / (1 - rho):g}"):
                rules.sde(rho, kappa)
        else:
            assert rules.sde(rho, kappa) == pytest.approx(first, abs=1e-12)


@pytest.mark.parametrize(("beta", "end"), [(0.9, 10), (0.95, 20), (0.98, 50), (0.99, 100), (0.999, 1000)])
def test_the_linear_beta_rule_ends_where_it_says(beta, end):
    assert rules.sde(beta, end * 0.999) == pytest.approx(0.001, rel=1e-6)
    with pytest.raises(InputError, match=f"ends at kappa={end}; set rules.betas"):
        rules.sde(beta, end * 1.001)


@pytest.mark.parametrize(("beta", "kappa", "floor", "wanted"), [
    (0.9, 4, 0.5, 0.6561),
    (0.9, 16, 0.5, 0.5),
    (0.3, 2, 0.5, 0.3),
    (0.3, 0.5, 0.5, math.sqrt(0.3)),
    (0.999, 64, 0.95, 0.95),
    (0.96, 0.5, 0.95, math.sqrt(0.96)),
])  # fmt: skip
def test_floors_act_on_the_change_only(beta, kappa, floor, wanted):
    assert rules.power(beta, kappa, floor) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("rho", "kappa", "wanted"), [(0.9999, 8, 3.5e-4), (0.99, 8, 3.3e-2), (0.99, 64, 0.21)])
def test_lag_of_the_average(rho, kappa, wanted):
    assert rules.lag(rho, kappa) == pytest.approx(wanted, rel=0.02)
    assert rules.lag(rho, kappa) == pytest.approx(slow.lag(rho, kappa, "post"), rel=1e-9)


@given(rho=st.floats(0.5, 0.999), kappa=st.integers(2, 40))
def test_lag_is_the_gap_of_the_matrices(rho, kappa):
    assert rules.lag(rho, kappa) == pytest.approx(slow.lag(rho, kappa, "post"), rel=1e-8, abs=1e-12)


def test_lag_vanishes_where_nothing_lags():
    assert rules.lag(0.99, 1) == pytest.approx(0, abs=1e-15)
    assert rules.lag(0.0, 8) == rules.lag(1.0, 8) == 0


@pytest.mark.parametrize(("eta", "lam", "kappa", "gap"), [
    (1e-3, 0.1, 8, 3.5e-4), (1e-3, 0.1, 64, 3.1e-3), (3e-3, 0.3, 64, 0.0286)])  # fmt: skip
def test_weight_decay_is_first_order_in_what_is_lost(eta, lam, kappa, gap):
    lr = rules.square_root(eta, kappa)
    kept = rules.scale_weight_decay(lam, kappa, eta, lr, "decoupled")
    exact = slow.decoupled_decay_exact(lam, eta, lr, kappa)
    assert kept / exact - 1 == pytest.approx(gap, rel=0.02)
    assert kept == pytest.approx(math.sqrt(kappa) * lam)


def test_an_unknown_coupling_is_refused():
    with pytest.raises(InputError, match="decay kind='l2' must be one of decoupled, coupled"):
        rules.scale_weight_decay(0.1, 2, 1, 2, "l2")


def test_no_learning_rate_leaves_no_decoupled_decay():
    with pytest.raises(InputError, match=r"scaled lr=0 must be in \(0, inf\]"):
        rules.scale_weight_decay(0.1, 2, 1.0, 0.0, "decoupled")


@pytest.mark.parametrize("f", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kappa", [2, 4, 16])
def test_drift_error_is_what_the_square_root_misses(f, kappa):
    assert rules.drift_error(kappa, f) == pytest.approx(math.sqrt(kappa) / slow.adam_lr(1.0, f, kappa) - 1, rel=1e-9)


@pytest.mark.parametrize("name", ["sdg", "AdamW", "adamv", "lion2"])
def test_an_unknown_optimizer_is_told_the_nearest(name):
    nearest = {"sdg": "sgd", "AdamW": "adamw", "adamv": "adam", "lion2": "lion"}[name]
    with pytest.raises(InputError, match=rf"optimizer.name='{name}' is not known; did you mean '{nearest}\w*'\?"):
        rules.optimizer_row(name)


@pytest.mark.parametrize(("rho", "batch", "wanted"), [(0.999, 8, 5542.4), (0.9999, 256, 1.77437e6), (0.5, 7, 7)])
def test_half_life(rho, batch, wanted):
    assert units.half_life(rho, batch) == pytest.approx(wanted, rel=1e-5)


@given(rho=st.floats(0.01, 0.999), batch=st.floats(0.5, 1e4), other=st.floats(0.5, 1e4))
def test_half_life_is_where_half_is_left_and_keeps_rho_to_the_kappa(rho, batch, other):
    span = units.half_life(rho, batch)
    assert span == pytest.approx(slow.half_life(rho, batch), rel=1e-9)
    assert units.decay_at(span, batch) == pytest.approx(rho, rel=1e-12)
    assert units.decay_at(span, other) == pytest.approx(rules.scale_decay(rho, other / batch), rel=1e-9, abs=1e-300)
    assert units.one_minus_decay(span, other) == pytest.approx(1 - units.decay_at(span, other), rel=1e-9, abs=1e-15)


def test_edges_of_the_half_life():
    assert units.half_life(1.0, 8) == math.inf
    assert units.half_life(0.0, 8) == 0
    assert units.decay_at(math.inf, 8) == 1
    assert units.decay_at(0.0, 8) == 0
    assert units.one_minus_decay(1e18, 1) == pytest.approx(math.log(2) * 1e-18, rel=1e-12)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: units.half_life(1.01, 8), r"decay=1\.01 must be in \[0, 1\]"),
    (lambda: units.half_life(0.9, 0), r"samples=0 must be in \(0, inf\]"),
    (lambda: units.decay_at(-1, 8), r"half-life=-1 must be in \[0, inf\]"),
    (lambda: units.decay_at(math.nan, 8), r"half-life=nan must be"),
    (lambda: units.batch_ratio(0, 8), r"batch=0 must be in \(0, inf\]"),
    (lambda: units.whole("batch", 2.0), r"batch=2\.0 must be a whole number of at least 1"),
    (lambda: units.whole("batch", True), r"batch=True must be a whole number"),
    (lambda: units.whole("batch", 0), r"batch=0 must be at least 1"),
    (lambda: units.to_samples("3 epochs"), r'"3 epochs" needs data_size'),
    (lambda: units.to_samples("3 steps"), r'"3 steps" needs a batch size'),
    (lambda: units.to_samples("3 tokens"), r'"3 tokens" is in tokens, but the clock counts samples'),
    (lambda: units.to_samples("three epochs"), r"'three epochs' is not a quantity"),
    (lambda: units.to_samples("nan samples"), r"'nan samples' is not a quantity"),
])  # fmt: skip
def test_units_name_the_value_and_the_way_out(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("20_000 samples", 2e4), ("1 sample", 1), ("1.5 epochs", 150), ("3 steps", 24), ("2e3 samples", 2e3)],
)
def test_quantities(text, wanted):
    assert units.to_samples(text, batch=8, data_size=100) == wanted
