"""Momentum and beta1 by `auto`: kept or by the sample clock, by the horizon against the run and the stability limit."""

import math

import pytest
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.rules.average import scale_inv_gamma
from isobatch.rules.momentum import AUTO_HORIZON, AUTO_STABLE

LONG, SHORT = "2_000_000 samples", "20_000 samples"


def made(length, lr=0.01, limit=None, **more):
    optimizer = {"name": "sgd", "lr": lr, "momentum": 0.9, "lr_limit": limit}
    return recipe(optimizer=optimizer, rules={"momentum": "auto"}, ema=None,
                  schedule={"length": length, "warmup": None, "shape": "constant"}, **more)  # fmt: skip


CASES = [
    # length, limit of lr/(1-mu), batch, kept, said
    (LONG, None, 32, True, "0.02% of the run"),
    (SHORT, None, 32, False, "1.60% of the run, more than 1%"),
    (LONG, None, 2, False, "the batch shrinks"),
    (SHORT, None, 2, False, "the batch shrinks"),
    (SHORT, 2.0, 128, True, "near its stability limit"),  # kept 1.6 <= 2; the clock's limit is far lower
    (SHORT, 1.0, 128, False, "more than 1%"),  # both forms are past it: no reason to keep
    (SHORT, 1000.0, 32, False, "more than 1%"),
]


@pytest.mark.parametrize(("length", "limit", "batch", "kept", "said"), CASES)
def test_it_chooses_by_its_two_numbers_and_says_which(length, limit, batch, kept, said):
    base = made(length, limit=limit)
    plan, kappa = base.at(batch), batch / 8
    row = plan.row("optimizer.momentum")
    assert said in row.because
    assert row.becomes == pytest.approx(0.9 if kept else 0.9**kappa)
    factor = 1.0 if kept else (1 - 0.9**kappa) / 0.1
    assert plan.row("optimizer.lr").becomes == pytest.approx(0.01 * kappa * factor)
    assert plan.recipe.rules.momentum == ("keep" if kept else "sample-clock")
    [form] = plan.forms
    assert form.values["optimizer.momentum"] == pytest.approx(0.9**kappa if kept else 0.9)
    back = plan.recipe.at(8).recipe.optimizer
    assert (back.lr, back.momentum) == pytest.approx((0.01, 0.9))


def test_the_limit_by_the_clock_is_heavy_balls():
    for kappa in (2, 4, 16):
        mu = 0.9**kappa
        limit = 10.0 * ((1 + mu) / (1 - mu)) / (1.9 / 0.1)
        bound = AUTO_STABLE * limit * 0.1 / kappa  # the rate at which kappa*lr/(1-mu) reaches its share of the limit
        over, under = (made(SHORT, lr=bound * off, limit=10.0).at(8 * kappa) for off in (1.01, 0.99))
        assert "stability" in over.row("optimizer.momentum").because
        assert "stability" not in under.row("optimizer.momentum").because


def test_the_horizon_is_a_share_of_the_run():
    edge = 32 / (1 - 0.9) / AUTO_HORIZON
    assert made(f"{edge * 1.01:.0f} samples").at(32).recipe.rules.momentum == "keep"
    assert made(f"{edge * 0.99:.0f} samples").at(32).recipe.rules.momentum == "sample-clock"


def test_without_a_length_or_where_averages_are_normalised_it_is_the_sample_clock():
    assert recipe(optimizer={"momentum": 0.9}, rules={"momentum": "auto"}, schedule=None, ema=None).at(32).row(
        "optimizer.momentum").becomes == pytest.approx(0.9**4)  # fmt: skip
    muon = recipe(optimizer={"name": "muon", "momentum": 0.9}, rules={"momentum": "auto"}, schedule={"length": LONG})
    assert muon.at(32).row("optimizer.momentum").becomes == pytest.approx(0.9**4)
    assert muon.at(32).row("optimizer.lr").becomes == pytest.approx(0.04)


@pytest.mark.parametrize(("length", "beta1"), [(LONG, 0.9), (SHORT, 0.9**4)])
def test_beta1_likewise_and_beta2_by_its_half_life(length, beta1):
    base = recipe(optimizer={"name": "adamw", "betas": [0.9, 0.999]}, rules={"betas": "auto"}, ema=None,
                  schedule={"length": length, "warmup": None, "shape": "constant"})  # fmt: skip
    assert base.at(32).recipe.optimizer.betas == pytest.approx((beta1, 0.999**4))


def quadratic(decays, batch, steps, h=0.004):
    """The average of theta' = -h*theta over samples, its weights stated per update of `batch` samples (float64)."""
    zeta, found = 1.0, []
    for update in range(steps):
        theta = math.exp(-h * batch * (update + 1) / 8)
        rho = decays(update)
        zeta = rho * zeta + (1 - rho) * theta
        found.append(zeta)
    return found


@pytest.mark.parametrize("power", [2 / 3, 0.75])
@pytest.mark.parametrize("kappa", [4, 0.25])
def test_a_power_ramp_typed_into_another_trainer_keeps_the_average(power, kappa):
    ramp = lambda g: lambda t: 1 - (1 + t / g) ** -power  # noqa: E731
    reference = quadratic(ramp(4.0), 8, 1600)
    moved = quadratic(ramp(scale_inv_gamma(4.0, power, kappa)), 8 * kappa, round(1600 / kappa))
    kept = quadratic(ramp(4.0), 8 * kappa, round(1600 / kappa))
    at = [(1600 * share // 10) for share in range(3, 11)]
    gaps = {
        name: max(abs(math.log(run[round(place / kappa) - 1] / reference[place - 1])) for place in at)
        for name, run in (("moved", moved), ("kept", kept))
    }
    assert gaps["moved"] < 0.35 * gaps["kept"]


@pytest.mark.parametrize("kappa", [4, 0.25])
def test_an_exponential_ramp_keeps_tau_in_samples(kappa):
    def ramp(tau, rho):
        return lambda t: rho * (1 - math.exp(-(t + 1) / tau))

    reference = quadratic(ramp(100, 0.999), 8, 1600)
    moved = quadratic(ramp(100 / kappa, 0.999**kappa), 8 * kappa, round(1600 / kappa))
    kept = quadratic(ramp(100, 0.999**kappa), 8 * kappa, round(1600 / kappa))
    gap = [abs(math.log(run[round(1600 / kappa) - 1] / reference[-1])) for run in (moved, kept)]
    assert gap[0] < gap[1]


def test_a_ramp_beyond_all_numbers_is_refused():
    with pytest.raises(InputError, match=r"power=0\.001 at kappa=64.*2/3 to 1"):
        scale_inv_gamma(1.0, 0.001, 64)
    assert scale_inv_gamma(1.0, 0.001, 1) == 1.0
