"""The updates against the papers' recursions, and the invariants of their fixed points in float64."""

from functools import cache

import numpy as np
import pytest
from tests.reference.decentralized import LeastSquares, mixing, trajectory

from isobatch import InputError, decentralized
from isobatch.decentralized import METHODS, advance, find, graphs
from isobatch.decentralized.methods import SlowMo

PLAIN = [name for name in METHODS if name != "pmsgd-lars"]
GRAPHS = ["lazy ring", "torus", "star", "exponential", "one-peer-exponential", "random-matching"]
TASK = LeastSquares(d=6, rows=12)


def mean(z):
    return np.broadcast_to(z.mean(0), z.shape)


def run(method, x, w_of, gamma, steps, gradient=TASK.gradient):
    """X after `steps` steps of a method through its update."""
    state = method.start(x)
    for count in range(steps):
        w = w_of(count)
        x, state = advance(method.step(x, state, gradient(x), gamma, count), lambda z, w=w: w @ z, mean)
    return x


@cache
def settled(name, beta, gamma=0.05, graph="lazy ring"):
    """Where a method stays: enough steps for a movement below rounding."""
    w = mixing(graphs.build(graph, 8))
    return run(find(name, beta), np.zeros((8, 6)), lambda _: w, gamma, 2400)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", PLAIN)
def test_the_update_is_the_papers(name, graph):
    topology = graphs.build(graph, 8)
    beta = 0.0 if name == "dsgd" else 0.8
    start = np.random.default_rng(1).normal(size=(1, 6)) + np.zeros((8, 1))
    got = run(find(name, beta), start, lambda k: mixing(topology, k), 0.05, 30)
    wanted = trajectory(name, start, TASK.gradient, lambda k: mixing(topology, k), 0.05, beta, 30)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("dsgd", "slowmo", "pmsgd")])
def test_without_momentum_all_are_dsgd(name):
    """D2 alone is another method at beta 0: it corrects the bias."""
    w = mixing(graphs.build("lazy ring", 8))
    x = np.random.default_rng(2).normal(size=(8, 6))
    got, plain = (run(find(n, 0.0), x, lambda _: w, 0.05, 20) for n in (name, "dsgd"))
    if name == "d2":
        assert abs(got - plain).max() > 1e-4
    elif name in ("awc", "da"):  # the gradient is not averaged, or averaged twice
        wanted = x
        for _ in range(20):
            g = 0.05 * TASK.gradient(wanted)
            wanted = w @ wanted - g if name == "awc" else w @ (wanted - w @ g)
        np.testing.assert_allclose(got, wanted, atol=1e-12)
    else:
        np.testing.assert_allclose(got, plain, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("slowmo", "awc", "pmsgd")])
def test_on_the_complete_graph_all_that_average_the_gradient_are_pmsgd(name):
    """QG at beta 0 only: it keeps (1-beta) of a step and adds the gradient whole."""
    w = mixing(graphs.complete(8))
    beta = 0.0 if name in ("dsgd", "qg") else 0.8
    start = np.tile(np.random.default_rng(3).normal(size=6), (8, 1))
    got = run(find(name, beta), start, lambda _: w, 0.05, 25)
    np.testing.assert_allclose(got, run(find("pmsgd", beta), start, lambda _: w, 0.05, 25), atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_decentlams_fixed_point_is_dsgds_at_every_beta(beta):
    w = mixing(graphs.build("lazy ring", 8))
    np.testing.assert_allclose(settled("decentlam", beta), settled("dsgd", 0.0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(settled("qg", beta), settled("dsgd", 0.0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(settled("dsgd", 0.0), TASK.fixed_point("dsgd", w, 0.05, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("graph", ["ring", "symmetric-exponential", "star"])
def test_the_invariant_does_not_need_a_positive_definite_matrix(graph):
    np.testing.assert_allclose(
        settled("decentlam", 0.9, graph=graph), settled("dsgd", 0.0, graph=graph), rtol=0, atol=1e-12
    )


def test_dmsgd_is_dsgd_at_the_larger_learning_rate():
    np.testing.assert_allclose(settled("dmsgd", 0.9), settled("dsgd", 0.0, gamma=0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["awc", "da"])
def test_where_the_rivals_stay(name):
    w = mixing(graphs.build("lazy ring", 8))
    np.testing.assert_allclose(settled(name, 0.8), TASK.fixed_point(name, w, 0.05, 0.8), rtol=0, atol=1e-12)


def test_d2_and_all_reduce_have_no_bias():
    assert TASK.bias(settled("d2", 0.9)) < 1e-20
    assert TASK.bias(settled("pmsgd", 0.9)) < 1e-25
    assert TASK.bias(settled("decentlam", 0.9)) > 1e-4


@pytest.mark.parametrize(("name", "wanted"), [
    ("dsgd", [3.0e-3]), ("dmsgd", [3.0e-3, 9.7e-3, 3.6e-2, 7.8e-2, 1.4e-1]),
    ("awc", [3.8e-3, 1.2e-2, 4.3e-2, 9.1e-2, 1.6e-1]), ("da", [2.5e-3, 6.9e-3, 2.0e-2, 3.4e-2, 4.7e-2]),
])  # fmt: skip
def test_the_known_table_of_biases(name, wanted):
    """8-node ring made lazy, d = 30, gamma = 1e-2, within 10%."""
    task, w = LeastSquares(), mixing(graphs.build("lazy ring", 8))
    found = [task.bias(task.fixed_point(name, w, 1e-2, beta)) for beta in (0.0, 0.5, 0.8, 0.9, 0.95)[: len(wanted)]]
    np.testing.assert_allclose(found, wanted, rtol=0.1)


def test_the_bias_of_dmsgd_grows_as_the_theory_says_at_a_small_learning_rate():
    task, w = LeastSquares(), mixing(graphs.ring(8))
    base = task.bias(task.fixed_point("dsgd", w, 1e-3, 0.0))
    for beta in (0.5, 0.8, 0.9):
        ratio = task.bias(task.fixed_point("dmsgd", w, 1e-3, beta)) / base
        assert ratio * (1 - beta) ** 2 == pytest.approx(1, abs=0.2)


def test_lars_ratio():
    x, g = np.array([2.0, 0.0, 2.0]), np.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(decentralized.lars_ratio(x, g, 0.1, 0.5), [0.1, 1.0, 1.0])


BAD = [
    (lambda: find("nesterov", 0.9), "must be one of dsgd"),
    (lambda: find("decentlam", 1.0), "momentum=1"),
    (lambda: find("decentlam", -0.1), "momentum=-0.1"),
    (lambda: find("dsgd", 0.9), "has no momentum"),
    (lambda: SlowMo(0.9, period=0), "period=0"),
    (lambda: find("d2", 0.9).check(graphs.ring(8)), "topology.lazy"),
    (lambda: find("d2", 0.9).check(graphs.exponential(8)), "topology.lazy"),
    (lambda: find("d2", 0.9).check(graphs.random_matching(8)), "topology.lazy"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
