"""The rules on the noisy quadratic, where mean and covariance at matched samples are exact (or simulated for Adam).

A rule that is right to first order leaves an error that grows like kappa - 1 and shrinks with the step; without the
rule it is of order one from the start.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from isobatch import Recipe
from isobatch.plan import base, scaled
from isobatch.tasks.quadratic import curvatures, moments, simulate

BATCH, RHO = 4, 0.99
A = curvatures()
SGD = [("sgd", 0.01, 0.0), ("sgd with momentum", 0.001, 0.9)]
sgd = pytest.mark.parametrize(("name", "lr", "mu"), SGD, ids=[row[0] for row in SGD])


def recipe(lr, *, rho=RHO, name="sgd", **more):
    optimizer = {"name": name, "lr": lr, **more}
    return Recipe.parse({"batch": {"size": BATCH}, "optimizer": optimizer, "ema": {"decay": rho}})


def unscaled(made, batch):
    """Every number per step as it was, at another batch."""
    old = base(made)
    return replace(old, batch=batch, half_life=old.half_life * batch / old.batch)


def error(got, wanted):
    """Worst error over coordinates: of the mean (start is 1) and of the log deviation, for theta and zeta."""
    (mean, cov), (mean0, cov0) = got, wanted
    spread = [np.sqrt(np.diagonal(c, axis1=1, axis2=2))[:, [0, 2]] for c in (cov, cov0)]
    means = np.abs(mean - mean0)[:, [0, 2]].max(0)
    return np.concatenate([means, np.abs(np.log(spread[0] / spread[1])).max(0)])


@sgd
def test_kappa_one_is_exact(name, lr, mu):
    made = recipe(lr, momentum=mu)
    assert error(moments(scaled(made, BATCH), A, 1.0, 1280), moments(base(made), A, 1.0, 1280)).max() == 0


@sgd
@pytest.mark.parametrize(("kappa", "bound"), [(4, 0.01), (16, 0.05)])
def test_the_rule_keeps_mean_and_spread_of_weights_and_average(name, lr, mu, kappa, bound):
    made = recipe(lr, momentum=mu)
    truth = moments(base(made), A, 1.0, 1280)
    rule = error(moments(scaled(made, BATCH * kappa), A, 1.0, 1280), truth)
    without = error(moments(unscaled(made, BATCH * kappa), A, 1.0, 1280), truth)
    assert rule.max() < bound
    assert (without > 30 * rule).all()


@sgd
def test_leaving_the_average_unscaled_is_seen_in_the_average_alone(name, lr, mu):
    made = recipe(lr, momentum=mu)
    truth = moments(base(made), A, 1.0, 1280)
    mixed = replace(scaled(made, 16 * BATCH), half_life=16 * base(made).half_life)
    theta, zeta, theta_spread, zeta_spread = error(moments(mixed, A, 1.0, 1280), truth)
    assert max(theta, theta_spread) < 0.05
    assert min(zeta, zeta_spread) > 0.5


@sgd
def test_the_error_is_of_first_order_in_kappa_and_in_the_step(name, lr, mu):
    def worst(share, kappa):
        made = recipe(lr * share, rho=RHO**share, momentum=mu**share)
        made = made.model_copy(update={"optimizer": made.optimizer.model_copy(update={"lr": eta(share)})})
        samples = round(1280 / share)
        truth = moments(base(made), A, share, samples)
        return error(moments(scaled(made, BATCH * kappa), A, share, samples), truth)[:2].max()

    def eta(share):
        return lr * share * (1 - mu**share) / (1 - mu) if mu else lr * share

    assert worst(1, 16) / worst(1, 4) == pytest.approx(15 / 3, rel=0.1)
    assert worst(1, 16) / worst(0.5, 16) == pytest.approx(2, rel=0.1)


def test_momentum_to_the_kappa_with_a_plain_linear_lr_is_wrong():
    made = recipe(0.001, momentum=0.9)
    truth = moments(base(made), A, 1.0, 1280)
    right = scaled(made, 16 * BATCH)
    naive = error(moments(replace(right, lr=16 * 0.001), A, 1.0, 1280), truth)
    assert naive[0] > 20 * error(moments(right, A, 1.0, 1280), truth)[0]


def adam(s):
    state = {"m": 0.0, "v": 0.0}

    def step(theta, g, k):
        state["m"] = s.betas[0] * state["m"] + (1 - s.betas[0]) * g
        state["v"] = s.betas[1] * state["v"] + (1 - s.betas[1]) * g**2
        m, v = state["m"] / (1 - s.betas[0] ** (k + 1)), state["v"] / (1 - s.betas[1] ** (k + 1))
        return theta - s.lr * m / (np.sqrt(v) + s.eps)

    return step


def rmsprop(s):
    state = {"v": 0.0}

    def step(theta, g, k):
        state["v"] = s.alpha * state["v"] + (1 - s.alpha) * g**2
        return theta - s.lr * g / (np.sqrt(state["v"] / (1 - s.alpha ** (k + 1))) + s.eps)

    return step


MAKE = {"adam": adam, "rmsprop": rmsprop}
MORE = {"adam": {"betas": (0.9, 0.999)}, "rmsprop": {"alpha": 0.999}}


@cache
def spread(name, arm, kappa, seed):
    """Mean and log deviation of theta and zeta; noise of one batch is ten times the gradient."""
    made = recipe(0.003, name=name, **MORE[name])
    plan = scaled(made, BATCH * kappa)
    s = {"rule": plan, "linear": replace(plan, lr=kappa * 0.003), "unscaled": unscaled(made, BATCH * kappa)}[arm]
    theta, zeta = simulate(MAKE[name](s), s, 400.0, 4096, replicas=3000, seed=seed)
    return np.array([theta.mean(), zeta.mean(), np.log(theta.std()), np.log(zeta.std())])


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(("kappa", "bound"), [(4, 0.07), (16, 0.16)])
def test_square_root_rule_under_dominant_noise(name, kappa, bound):
    truth = spread(name, "rule", 1, 0)
    gap = {arm: np.abs(spread(name, arm, kappa, 1) - truth) for arm in ("rule", "linear", "unscaled")}
    assert gap["rule"].max() < bound
    assert (gap["unscaled"] > 5 * gap["rule"]).all()
    assert (gap["linear"] > 5 * gap["rule"]).all()
    assert gap["rule"][:2].max() < 0.02


def test_moments_are_those_of_many_simulated_runs():
    s = base(recipe(0.05))
    mean, cov = moments(s, np.array([1.0]), 2.0, 200)
    theta, zeta = simulate(lambda theta, g, k: theta - s.lr * g, s, 2.0, 200, replicas=20_000, seed=3)
    assert theta.mean() == pytest.approx(mean[0, 0], abs=4 * theta.std() / 141)
    assert zeta.mean() == pytest.approx(mean[0, 2], abs=4 * zeta.std() / 141)
    assert np.cov(theta, zeta) == pytest.approx(cov[0][np.ix_([0, 2], [0, 2])], rel=0.05)
