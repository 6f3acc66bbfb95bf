"""Optimizers that normalise what they have averaged, on the noisy quadratic: three noise levels, both forms."""

import dataclasses

import numpy as np
import pytest
from tests.recipes import recipe

from isobatch.plan import base, scaled
from isobatch.rules import OPTIMIZERS

BATCH, SAMPLES, LR = 4, 8192, 4e-4
CURVATURES = np.geomspace(0.1, 1.0, 4)
NORMALISED = [name for name, row in OPTIMIZERS.items() if row.normalises_after]
OPTIONS = {"muon": {"momentum": 0.95}, "lion": {"betas": [0.9, 0.98]}, "lamb": {"betas": [0.9, 0.99]}}
KEPT = {"muon": {"momentum": "keep"}, "lion": {"betas": "keep"}}
SIGNS = sorted(KEPT)


def made(name, **rules):
    return recipe(optimizer={"name": name, "lr": LR, **OPTIONS[name]}, batch={"size": BATCH}, ema=None,
                  schedule=None, rules=rules)  # fmt: skip


def muon(s, m, g):
    """A buffer as torch's Muon keeps it, then the direction alone: of a diagonal matrix the signs."""
    m = s.momentum * m + (1 - s.momentum) * g
    return m, np.sign(m)


def lion(s, m, g):
    update = np.sign(s.betas[0] * m + (1 - s.betas[0]) * g)
    return s.betas[1] * m + (1 - s.betas[1]) * g, update


STEP = {"muon": muon, "lion": lion}


def log_loss(name, s, noise, seed):
    """Mean loss of the last quarter of the run, its logarithm."""
    rng, steps = np.random.default_rng(seed), round(SAMPLES / s.batch)
    theta, m, found = np.full((200, 4), 0.5), np.zeros((200, 4)), []
    for k in range(steps):
        g = CURVATURES * theta + noise / np.sqrt(s.batch) * rng.standard_normal(theta.shape)
        m, update = STEP[name](s, m, g)
        theta = theta - s.lr * update
        if k >= 3 * steps // 4:
            found.append((CURVATURES * theta**2).sum(1).mean())
    return np.log(np.mean(found))


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("noise", [0.3, 3.0, 30.0])
def test_averages_over_the_same_samples_keep_the_run_at_every_noise_level(name, noise):
    chosen = made(name)
    truth = log_loss(name, base(chosen), noise, 0)
    assert log_loss(name, scaled(chosen, 4 * BATCH), noise, 1) == pytest.approx(truth, abs=0.12)
    assert log_loss(name, scaled(chosen, 16 * BATCH), noise, 1) == pytest.approx(truth, abs=0.3)


@pytest.mark.parametrize("name", SIGNS)
def test_averages_kept_per_step_need_noise(name):
    chosen = made(name, **KEPT[name])
    gaps = [log_loss(name, scaled(chosen, 4 * BATCH), noise, 1) - log_loss(name, base(chosen), noise, 0)
            for noise in (0.3, 30.0)]  # fmt: skip
    assert abs(gaps[1]) < 0.2
    assert gaps[0] > 0.5
    [warning] = chosen.at(4 * BATCH).warnings
    assert "need noise to dominate" in warning.condition


@pytest.mark.parametrize(("name", "rules", "batch", "wanted"), [
    ("muon", {}, 16, {"lr": 4, "momentum": 0.95**4}),
    ("muon", {}, 1, {"lr": 1 / 4, "momentum": 0.95 ** (1 / 4)}),
    ("muon", {"momentum": "keep"}, 16, {"lr": 2, "momentum": 0.95}),
    ("muon", {"momentum": "keep"}, 1, {"lr": 1 / 2, "momentum": 0.95}),
    ("lion", {}, 16, {"lr": 4, "betas[0]": 0.8, "betas[1]": 0.98**4}),
    ("lion", {}, 1, {"lr": 1 / 4, "betas[0]": 0.95, "betas[1]": 0.98 ** (1 / 4)}),
    ("lion", {}, 4 * 144, {"lr": 144, "betas[0]": 0.0, "betas[1]": 0.98**144}),
    ("lion", {"betas": "keep"}, 16, {"lr": 2, "betas[0]": 0.9, "betas[1]": 0.98}),
])  # fmt: skip
def test_every_number_in_literals(name, rules, batch, wanted):
    plan = made(name, **rules).at(batch)
    for key, value in wanted.items():
        value = value * LR if key == "lr" else value
        assert plan.row(f"optimizer.{key}").becomes == pytest.approx(value, rel=1e-9), key
    assert not any("(1-momentum)" in w.message for w in plan.warnings)
    assert "lr/(1-momentum)" not in plan.row("optimizer.lr").note


def test_without_an_average_only_the_square_root_is_left():
    plan = recipe(optimizer={"name": "muon", "lr": LR}, batch={"size": BATCH}).at(16)
    assert plan.row("optimizer.lr").becomes == pytest.approx(2 * LR)
    assert plan.row("optimizer.lr").confidence == "derived"


@pytest.mark.parametrize(("rules", "words"), [
    ({"lr": "sqrt"}, "moved with the batch, beside which a linear one"),
    ({"lr": "linear", "momentum": "keep"}, "kept per step, beside which a square root"),
])  # fmt: skip
def test_a_rate_that_does_not_belong_to_the_averages_is_said_to_be_another_run(rules, words):
    row = made("muon", **rules).at(16).row("optimizer.lr")
    assert words in row.because
    assert row.confidence == "unknown"


def test_rmsprop_says_its_floor_and_a_range_that_holds_its_rate():
    chosen = recipe(optimizer={"name": "rmsprop", "lr": 0.016, "momentum": 0.9, "alpha": 0.96, "eps": 1e-3})
    plan = chosen.at(32)
    rate = plan.row("optimizer.lr")
    low, high = (float(part) for part in rate.note.partition("[")[2].partition("]")[0].split(", "))
    factor = (1 - 0.9**4) / (1 - 0.9)
    assert (low, high) == pytest.approx((0.016 * 2 * factor, 0.016 * 4 * factor), rel=1e-3)
    assert low == pytest.approx(rate.becomes, rel=1e-3)
    assert "at its floor, the power rule gives 0.8493" in plan.row("optimizer.alpha").note
    assert "keep 0.9" in plan.row("optimizer.momentum").note


def lamb_curve(s, noise):
    """Log of the mean loss at ten marks: three layers whose steps are as long as their weights, targets away from 0."""
    rng, fixed, layers, size = np.random.default_rng(7), np.random.default_rng(5), 3, 16
    target = fixed.standard_normal((1, layers, size))
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    curvature, steps = np.geomspace(0.1, 1.0, size), round(SAMPLES / s.batch)
    w = np.full((32, layers, size), 0.25) * np.sign(fixed.standard_normal((1, layers, size)))
    m, v, found = np.zeros_like(w), np.zeros_like(w), []
    for k in range(1, steps + 1):
        g = curvature * (w - target) + noise / np.sqrt(s.batch) * rng.standard_normal(w.shape)
        m, v = s.betas[0] * m + (1 - s.betas[0]) * g, s.betas[1] * v + (1 - s.betas[1]) * g * g
        r = m / (1 - s.betas[0] ** k) / (np.sqrt(v / (1 - s.betas[1] ** k)) + s.eps)
        w = w - s.lr * np.linalg.norm(w, axis=-1, keepdims=True) / np.linalg.norm(r, axis=-1, keepdims=True) * r
        if k % (steps // 10) == 0:
            found.append((curvature * (w - target) ** 2).sum((1, 2)).mean())
    return np.log(np.array(found[:10]))


@pytest.mark.parametrize(("noise", "near"), [(3.0, 0.15), (30.0, 0.05)])
def test_lamb_keeps_the_run_by_steps_of_kappa_times_the_length(noise, near):
    chosen = recipe(optimizer={"name": "lamb", "lr": 1e-3, "betas": [0.9, 0.99]}, batch={"size": BATCH}, schedule=None)
    truth, four = lamb_curve(base(chosen), noise), scaled(chosen, 4 * BATCH)
    assert np.abs(lamb_curve(four, noise) - truth).max() < near
    rooted = dataclasses.replace(four, lr=four.lr / 2)  # the square root beside betas that move
    assert np.abs(lamb_curve(rooted, noise) - truth).max() > near
