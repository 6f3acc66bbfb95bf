"""A topology: a connected sequence of mixing matrices over the same nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from isobatch.decentralized.mixing import Mixing, contraction
from isobatch.errors import InputError
from isobatch.units import whole


@dataclass(frozen=True)
class Topology:
    """Who averages with whom at every step: rounds used in turn, one of them for a static graph.

    Args:
        name: what it is called.
        rounds: mixing matrices over the same nodes.

    Raises:
        InputError: no rounds, rounds of several sizes, or nodes that the rounds together never connect.

    Example:
        >>> from isobatch.decentralized import ring
        >>> ring(4).at(7).rows[0]
        {0: 0.3333333333333333, 3: 0.3333333333333333, 1: 0.3333333333333333}
    """

    name: str
    rounds: tuple[Mixing, ...]

    def __post_init__(self):
        if not self.rounds or len({mixing.size for mixing in self.rounds}) != 1:
            raise InputError(f"topology {self.name!r} needs rounds of one size; got {[m.size for m in self.rounds]}")
        parts = components(
            self.size, [(i, j) for mixing in self.rounds for i, row in enumerate(mixing.rows) for j in row]
        )
        if len(parts) > 1:
            raise InputError(f"topology {self.name!r} falls apart: nodes {parts[0]} never meet {parts[1]}; add an edge")

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self.rounds[0].size

    @property
    def period(self) -> int:
        """Steps after which the rounds repeat."""
        return len(self.rounds)

    def at(self, step: int) -> Mixing:
        """Return the mixing matrix of a step.

        Args:
            step: count of steps from 0.

        Returns:
            rounds[step mod period].
        """
        return self.rounds[step % len(self.rounds)]

    @cached_property
    def symmetric(self) -> bool:
        """Whether every round is symmetric."""
        return all(mixing.symmetric for mixing in self.rounds)

    @cached_property
    def positive_definite(self) -> bool:
        """Whether every round is symmetric with eigenvalues above 0, as DecentLaM's argument asks."""
        return all(mixing.positive_definite for mixing in self.rounds)

    @cached_property
    def spectral_gap(self) -> float:
        """1 minus the factor of disagreement kept by a step, in the mean square over the rounds."""
        return 1.0 - contraction(self.rounds)

    @property
    def degree(self) -> int:
        """Most values that one node receives in a step."""
        return max(mixing.degree for mixing in self.rounds)

    def lazy(self) -> "Topology":
        """Return the topology of (I + W)/2 in every round, which is positive definite where W is symmetric."""
        return Topology(f"lazy {self.name}", tuple(mixing.lazy() for mixing in self.rounds))

    def averages_exactly(self) -> bool:
        """Return whether a period of rounds gives every node the exact mean, as one-peer exponential does for 2**k."""
        if self.size > 256 and self.period > 1:
            raise InputError(f"the product of rounds is multiplied out for at most 256 nodes, not {self.size}")
        columns = [[float(i == j) for j in range(self.size)] for i in range(self.size)]
        for mixing in self.rounds:
            columns = [
                [sum(w * columns[j][k] for j, w in row.items()) for k in range(self.size)] for row in mixing.rows
            ]
        return all(abs(value - 1 / self.size) < 1e-12 for row in columns for value in row)

    def describe(self) -> dict[str, object]:
        """Return what a report says of it: size, degree, symmetry, definiteness, gap.

        Returns:
            Plain values by name.
        """
        return {
            "name": self.name,
            "nodes": self.size,
            "degree": self.degree,
            "rounds": self.period,
            "doubly stochastic": True,
            "symmetric": self.symmetric,
            "positive definite": self.positive_definite,
            "spectral gap": self.spectral_gap,
        }


def components(size: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the connected parts of an undirected graph.

    Args:
        size: number of nodes.
        edges: pairs of nodes.

    Returns:
        Nodes of each part in rising order, parts by their first node.

    Example:
        >>> components(4, [(0, 2), (2, 3)])
        [[0, 2, 3], [1]]
    """
    beside: list[set[int]] = [set() for _ in range(whole("size", size))]
    for i, j in edges:
        beside[i].add(j)
        beside[j].add(i)
    parts, seen = [], set()
    for start in range(size):
        if start in seen:
            continue
        todo, part = [start], {start}
        while todo:
            for other in beside[todo.pop()] - part:
                part.add(other)
                todo.append(other)
        seen |= part
        parts.append(sorted(part))
    return parts
