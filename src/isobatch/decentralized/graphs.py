"""The graphs of decentralized training, each with weights that make its matrix doubly stochastic."""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from isobatch.decentralized.mixing import Mixing
from isobatch.decentralized.topology import Topology
from isobatch.errors import InputError
from isobatch.units import whole


class Graph(Protocol):
    """What is read of a graph, such as one of networkx."""

    @property
    def nodes(self) -> Collection[Any]:
        """The nodes; their order numbers them."""
        ...

    @property
    def edges(self) -> Iterable[tuple[Any, ...]]:
        """The edges, each beginning with its two nodes."""
        ...

    def is_directed(self) -> bool:
        """Return whether edges have a direction."""
        ...


def from_edges(size: int, edges: Iterable[tuple[int, int]], name: str = "graph") -> Topology:
    """Return the topology of an undirected graph with Metropolis weights.

    w_ij = 1/(1 + max(d_i, d_j)) on edges, w_ii = 1 - sum of the others: symmetric and doubly stochastic on any graph.

    Args:
        size: number of nodes.
        edges: pairs of nodes; loops and repetitions count once.
        name: what it is called.

    Returns:
        The topology.

    Raises:
        InputError: a node outside [0, size), or a graph in several parts.

    Example:
        >>> from_edges(3, [(0, 1), (1, 2)]).at(0).rows[1]
        {0: 0.3333333333333333, 2: 0.3333333333333333, 1: 0.33333333333333337}
    """
    beside: list[set[int]] = [set() for _ in range(whole("size", size))]
    for i, j in edges:
        if not (0 <= i < size and 0 <= j < size):
            raise InputError(f"edge ({i}, {j}) must join nodes in [0, {size - 1}]")
        if i != j:
            beside[i].add(j)
            beside[j].add(i)
    rows = []
    for i, others in enumerate(beside):
        row = {j: 1.0 / (1 + max(len(others), len(beside[j]))) for j in sorted(others)}
        rows.append({**row, i: 1.0 - sum(row.values())})
    return Topology(name, (Mixing(tuple(rows)),))


def from_graph(graph: Graph, name: str = "graph") -> Topology:
    """Return the topology of a graph object, such as one of networkx, with Metropolis weights.

    Args:
        graph: undirected; its nodes are numbered in their order.
        name: what it is called.

    Returns:
        The topology.

    Raises:
        InputError: a directed graph, or one in several parts.
    """
    if graph.is_directed():
        raise InputError("a directed graph has no Metropolis weights; give graph.to_undirected()")
    number = {node: place for place, node in enumerate(graph.nodes)}
    return from_edges(len(number), [(number[edge[0]], number[edge[1]]) for edge in graph.edges], name)


def ring(size: int) -> Topology:
    """Return a ring: each node averages with the two beside it, weights 1/3 (1/2 for two nodes).

    Args:
        size: number of nodes.

    Returns:
        The topology; its smallest eigenvalue is -1/3 for an even number of nodes, so it is not positive definite.
    """
    return _circulant("ring", size, [0, 1, -1])


def complete(size: int) -> Topology:
    """Return the complete graph: every node has the exact mean, weights 1/n.

    Args:
        size: number of nodes.

    Returns:
        The topology.
    """
    return _circulant("complete", size, range(whole("nodes", size)))


def exponential(size: int) -> Topology:
    """Return the static exponential graph: node i receives from i - 2**k, equal weights; not symmetric.

    Args:
        size: number of nodes.

    Returns:
        The topology.
    """
    return _circulant("exponential", size, [0, *_powers(whole("nodes", size))])


def symmetric_exponential(size: int, base: int = 4) -> Topology:
    """Return the symmetric exponential graph: neighbours at distance base**k either way round, equal weights.

    Args:
        size: number of nodes.
        base: of the distances.

    Returns:
        The topology; symmetric, and not positive definite (smallest eigenvalue -0.354 at 8 nodes).

    Raises:
        InputError: a base below 2.
    """
    steps, distance = [0], 1
    while distance <= whole("nodes", size) // 2:
        steps += [distance, -distance]
        distance *= whole("base", base, 2)
    return _circulant("symmetric-exponential", size, steps)


def one_peer_exponential(size: int) -> Topology:
    """Return the one-peer exponential sequence: round t averages node i with i - 2**t, half and half.

    Args:
        size: number of nodes; for a power of two a period gives the exact mean.

    Returns:
        The topology, one message a node and step.
    """
    rounds = [_shifts(whole("nodes", size), [0, step]) for step in _powers(size)]
    return Topology("one-peer-exponential", tuple(rounds) or complete(size).rounds)


def random_matching(size: int, seed: int = 0, rounds: int = 32) -> Topology:
    """Return a sequence of random bipartite matchings: in each round pairs of nodes average half and half.

    Args:
        size: number of nodes; with an odd number one node rests in each round.
        seed: of the matchings.
        rounds: after which they repeat.

    Returns:
        The topology.

    Example:
        >>> random_matching(8).degree
        1
    """
    source, made = random.Random(seed), []
    n = whole("nodes", size)
    for _ in range(whole("rounds", rounds)):
        order = source.sample(range(n), n)
        rows: list[dict[int, float]] = [{i: 1.0} for i in range(n)]
        for i, j in zip(order[: n // 2], order[n // 2 : 2 * (n // 2)], strict=True):
            rows[i], rows[j] = {i: 0.5, j: 0.5}, {j: 0.5, i: 0.5}
        made.append(Mixing(tuple(rows)))
    return Topology("random-matching", tuple(made))


def star(size: int) -> Topology:
    """Return a star around node 0 with Metropolis weights, 1/n on every edge.

    Args:
        size: number of nodes.

    Returns:
        The topology.
    """
    return from_edges(size, [(0, i) for i in range(1, whole("nodes", size))], "star")


def mesh(rows: int, columns: int) -> Topology:
    """Return a two-dimensional mesh without wrap-around, Metropolis weights.

    Args:
        rows: of the mesh.
        columns: of the mesh.

    Returns:
        The topology.
    """
    return _grid("mesh", rows, columns, wrap=False)


def torus(rows: int, columns: int) -> Topology:
    """Return a two-dimensional torus, Metropolis weights.

    Args:
        rows: of the torus.
        columns: of the torus.

    Returns:
        The topology.
    """
    return _grid("torus", rows, columns, wrap=True)


def build(name: str, size: int) -> Topology:
    """Return a topology by its name; meshes and tori are as square as the number of nodes allows.

    Args:
        name: one of TOPOLOGIES, with "lazy " before it for (I + W)/2.
        size: number of nodes.

    Returns:
        The topology.

    Raises:
        InputError: no such topology.

    Example:
        >>> build("lazy ring", 8).positive_definite
        True
    """
    plain = name.removeprefix("lazy ")
    if plain not in TOPOLOGIES:
        raise InputError(f'topology={name!r} must be one of {", ".join(TOPOLOGIES)}, or "lazy " and one of them')
    found = TOPOLOGIES[plain](whole("nodes", size))
    return found.lazy() if plain != name else found


def _square(size: int) -> tuple[int, int]:
    rows = max(d for d in range(1, int(size**0.5) + 1) if size % d == 0)
    return rows, size // rows


def _grid(name: str, rows: int, columns: int, *, wrap: bool) -> Topology:
    r, c = whole("rows", rows), whole("columns", columns)
    edges = []
    for i in range(r):
        for j in range(c):
            if wrap or i + 1 < r:
                edges.append((i * c + j, (i + 1) % r * c + j))
            if wrap or j + 1 < c:
                edges.append((i * c + j, i * c + (j + 1) % c))
    return from_edges(r * c, edges, name)


def _powers(size: int) -> list[int]:
    return [2**k for k in range((size - 1).bit_length())]


def _shifts(size: int, steps: Sequence[int]) -> Mixing:
    """Each node receives from those `steps` before it, with equal weights."""
    places = list(dict.fromkeys(step % size for step in steps))
    weights = [1.0 / len(places)] * len(places)
    return Mixing(tuple(dict(zip([(i - p) % size for p in places], weights, strict=True)) for i in range(size)))


def _circulant(name: str, size: int, steps: Sequence[int]) -> Topology:
    return Topology(name, (_shifts(whole("nodes", size), steps),))


TOPOLOGIES: dict[str, Callable[[int], Topology]] = {
    "ring": ring,
    "mesh": lambda size: mesh(*_square(size)),
    "torus": lambda size: torus(*_square(size)),
    "star": star,
    "complete": complete,
    "exponential": exponential,
    "symmetric-exponential": symmetric_exponential,
    "one-peer-exponential": one_peer_exponential,
    "random-matching": random_matching,
}
"""Name -> the topology of so many nodes."""
