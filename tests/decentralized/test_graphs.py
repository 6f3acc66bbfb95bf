"""Graphs and their matrices: weights, spectra against numpy, and what is refused."""

import importlib

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch import InputError
from isobatch.decentralized import Mixing, Topology, cost, graphs

NAMES = [*graphs.TOPOLOGIES, *(f"lazy {name}" for name in graphs.TOPOLOGIES)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_every_topology_is_doubly_stochastic_and_its_facts_are_those_of_numpy(name, size):
    found = graphs.build(name, size)
    assert found.size == size
    grams = []
    for mixing in found.rounds:
        w = np.array(mixing.dense())
        np.testing.assert_allclose([w.sum(0), w.sum(1)], 1, atol=1e-12)
        assert (w >= 0).all()
        assert mixing.symmetric == np.allclose(w, w.T, atol=1e-12)
        assert all(mixing.targets(i) == tuple(j for j in range(size) if j != i and w[j, i]) for i in range(size))
        assert all(mixing.sources(i) == tuple(j for j in range(size) if j != i and w[i, j]) for i in range(size))
        if mixing.symmetric:
            values = np.linalg.eigvalsh(w)
            assert mixing.smallest_eigenvalue == pytest.approx(values[0], abs=1e-9)
            np.testing.assert_allclose(sorted(v.real for v in mixing.eigenvalues), values, atol=1e-9)
            assert mixing.positive_definite == (values[0] > 1e-9)
        grams.append(w.T @ w)
    off = np.mean(grams, 0) - np.ones((size, size)) / size
    kept = np.sqrt(max(0, np.linalg.eigvalsh(off)[-1])) if size > 1 else 0
    assert found.spectral_gap == pytest.approx(1 - kept, abs=1e-6)


def test_the_smallest_eigenvalues_of_the_sheet():
    assert graphs.ring(8).at(0).smallest_eigenvalue == pytest.approx(-1 / 3)
    for size, least in ((4, -1 / 3), (8, -0.354), (16, -0.483)):
        assert graphs.symmetric_exponential(size).at(0).smallest_eigenvalue == pytest.approx(least, abs=5e-4)
    assert graphs.ring(8).lazy().at(0).smallest_eigenvalue == pytest.approx(1 / 3)
    assert not graphs.ring(8).positive_definite
    assert graphs.build("lazy ring", 8).positive_definite
    assert not graphs.exponential(8).symmetric
    assert graphs.exponential(8).at(0).smallest_eigenvalue is None


def test_known_shapes():
    assert graphs.ring(5).at(0).sources(0) == (1, 4)
    assert graphs.torus(4, 4).at(0).weight(0, 1) == pytest.approx(1 / 5)
    assert graphs.mesh(2, 2).degree == 2
    assert graphs.star(5).at(0).weight(1, 1) == pytest.approx(4 / 5)
    assert graphs.complete(4).spectral_gap == pytest.approx(1)
    assert [graphs.one_peer_exponential(n).averages_exactly() for n in (2, 4, 8, 6)] == [True, True, True, False]
    assert graphs.one_peer_exponential(8).period == 3
    assert graphs.one_peer_exponential(8).at(4).sources(0) == (6,)
    assert graphs.random_matching(8, seed=1) == graphs.random_matching(8, seed=1)
    assert graphs.random_matching(8, seed=1) != graphs.random_matching(8, seed=2)
    assert graphs.ring(1024).spectral_gap == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / 1024)), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000))
def test_metropolis_weights_suit_any_connected_graph(size, seed):
    graph = networkx.gnp_random_graph(size, 0.6, seed=seed)
    if not networkx.is_connected(graph):
        with pytest.raises(InputError, match="falls apart"):
            graphs.from_graph(graph)
        return
    found = graphs.from_graph(graph, "random")
    assert found.symmetric
    assert found.spectral_gap > 0
    assert {(i, j) for i in range(size) for j in found.at(0).sources(i)} == {
        e for a, b in graph.edges for e in ((a, b), (b, a))
    }


def test_a_lost_neighbour_leaves_a_symmetric_matrix_doubly_stochastic():
    w = graphs.ring(4).at(0).without([2])
    assert w.symmetric
    assert w.rows[1] == {1: pytest.approx(2 / 3), 0: pytest.approx(1 / 3)}
    assert w.rows[2] == {2: 1.0}
    with pytest.raises(InputError, match="sums to"):
        graphs.exponential(8).at(0).without([2])


BAD = [
    (lambda: Mixing(({0: 0.5, 1: 0.5}, {0: 0.6, 1: 0.4})), "column 0"),
    (lambda: Mixing(({0: 0.5, 1: 0.4}, {0: 0.5, 1: 0.5})), "row 0"),
    (lambda: Mixing(({0: 1.5, 1: -0.5}, {0: -0.5, 1: 1.5})), "must be a finite weight"),
    (lambda: Mixing(({0: 0.5, 2: 0.5}, {0: 0.5, 1: 0.5})), "node 2 must be in"),
    (lambda: Mixing(()), "0 nodes"),
    (lambda: Topology("two", (Mixing(({0: 1.0}, {1: 1.0})),)), "falls apart"),
    (lambda: Topology("none", ()), "needs rounds"),
    (lambda: graphs.build("circle", 4), "must be one of ring"),
    (lambda: graphs.ring(0), "nodes=0"),
    (lambda: graphs.from_edges(3, [(0, 5)]), "must join nodes in"),
    (lambda: graphs.from_graph(networkx.DiGraph([(0, 1)])), "directed"),
    (lambda: graphs.symmetric_exponential(4, base=1), "base=1"),
    (lambda: cost.Link(-1, 1), "alpha=-1"),
    (lambda: cost.fit_link([(1, 8, 1.0)]), "two sizes"),
    (lambda: cost.fit_link([(1, 8, 0.0), (1, 9, 1.0)]), "seconds=0"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_cost_of_exchanges():
    link = cost.Link(1e-4, 1e9)
    assert cost.allreduce_seconds(link, 1e6, 4) == pytest.approx(6 * (1e-4 + 0.25e-3))
    assert cost.exchange_seconds(link, 1e6, 2) == pytest.approx(2 * (1e-4 + 1e-3))
    rows = cost.compare(link, 1e6, [graphs.ring(1024), graphs.one_peer_exponential(1024)])
    assert [row["degree"] for row in rows] == [2, 1]
    assert rows[1]["ratio"] == pytest.approx(2 * rows[0]["ratio"])
    noisy = [
        (m, s, m * (2e-4 + s / 5e8) * f) for m, s, f in ((1, 1e3, 1.05), (2, 1e5, 0.97), (1, 1e6, 1.02), (2, 1e7, 1))
    ]
    fitted = cost.fit_link(noisy)
    assert fitted.alpha == pytest.approx(2e-4, rel=0.1)
    assert fitted.bandwidth == pytest.approx(5e8, rel=0.1)
    assert 0.01 < fitted.error < 0.06
    assert cost.fit_link([(1, 1e3, 1e-6), (1, 1e6, 1.1e-3)]).alpha == 0


def test_the_old_place_answers_with_the_new_one():
    import isobatch.topologies as old

    for name, home in [(name, home) for home, names in old._HOMES.items() for name in names]:
        with pytest.warns(DeprecationWarning, match=rf"is now isobatch\.decentralized\.{home}\.{name}$"):
            found = getattr(old, name)
        assert found is getattr(importlib.import_module(f"isobatch.decentralized.{home}"), name)
    with pytest.raises(AttributeError, match="no attribute 'circle'"):
        old.circle  # noqa: B018


def test_a_large_graph_without_symmetry_is_refused_before_it_is_multiplied_out():
    with pytest.raises(InputError, match="5000 nodes"):
        _ = graphs.star(5000).at(0).eigenvalues
