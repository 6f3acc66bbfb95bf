"""A mixing matrix W: who averages with whom in one exchange, as sparse rows of numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isobatch.errors import InputError

_CLOSE = 1e-9
_LARGEST = 4096


@dataclass(frozen=True)
class Mixing:
    """A doubly stochastic matrix W = [w_ij]: node i's next value is sum_j w_ij x_j.

    Args:
        rows: rows[i] maps j to w_ij > 0; i itself may be among them.

    Raises:
        InputError: a negative or non-finite weight, a node that does not exist, or a row or column that does not sum
            to 1.

    Example:
        >>> pair = Mixing(({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}))
        >>> pair.symmetric, pair.smallest_eigenvalue, pair.spectral_gap
        (True, 0.0, 1.0)
    """

    rows: tuple[Mapping[int, float], ...]

    def __post_init__(self):
        n = len(self.rows)
        columns = [0.0] * n
        if n == 0:
            raise InputError("a mixing matrix of 0 nodes; give at least one")
        for i, row in enumerate(self.rows):
            for j, weight in row.items():
                if not 0 <= j < n:
                    raise InputError(f"w[{i}, {j}]: node {j} must be in [0, {n - 1}]")
                if not (math.isfinite(weight) and weight >= 0):
                    raise InputError(f"w[{i}, {j}]={weight} must be a finite weight of at least 0")
                columns[j] += weight
            _check_sum(f"row {i}", sum(row.values()))
        for j, total in enumerate(columns):
            _check_sum(f"column {j}", total)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.rows)

    def weight(self, i: int, j: int) -> float:
        """Return w_ij, what node i gives to the value of node j.

        Args:
            i: receiving node.
            j: sending node.

        Returns:
            The weight, 0 where they do not talk.
        """
        return self.rows[i].get(j, 0.0)

    def sources(self, i: int) -> tuple[int, ...]:
        """Return the nodes whose values node i receives, itself left out.

        Args:
            i: the node.

        Returns:
            Nodes in rising order.
        """
        return tuple(sorted(j for j, weight in self.rows[i].items() if weight and j != i))

    def targets(self, i: int) -> tuple[int, ...]:
        """Return the nodes to which node i sends its value.

        Args:
            i: the node.

        Returns:
            Nodes in rising order.
        """
        return self._targets[i]

    @property
    def degree(self) -> int:
        """Most values that one node receives in an exchange."""
        return max(len(self.sources(i)) for i in range(self.size))

    def dense(self) -> list[list[float]]:
        """Return W as n rows of n numbers."""
        return [[row.get(j, 0.0) for j in range(self.size)] for row in self.rows]

    @cached_property
    def symmetric(self) -> bool:
        """Whether w_ij = w_ji."""
        return all(abs(w - self.weight(j, i)) < _CLOSE for i, row in enumerate(self.rows) for j, w in row.items())

    @cached_property
    def eigenvalues(self) -> tuple[complex, ...]:
        """Eigenvalues of a circulant or symmetric W, largest modulus first; others are refused."""
        if self._circulant:
            values = self._spectrum().tolist()
            found = [complex(v.real, 0.0) if self.symmetric else v for v in values]
        elif self.symmetric:
            found = [complex(value) for value in np.linalg.eigvalsh(_checked(self.dense()))]
        else:
            raise InputError("eigenvalues are known here for symmetric and for circulant matrices alone")
        return tuple(sorted(found, key=lambda value: -abs(value)))

    @property
    def smallest_eigenvalue(self) -> float | None:
        """The smallest eigenvalue of a symmetric W, None for another."""
        if not self.symmetric:
            return None
        least = min(value.real for value in self.eigenvalues)
        return 0.0 if abs(least) < _CLOSE else least

    @property
    def positive_definite(self) -> bool:
        """Whether W is symmetric with every eigenvalue above 0."""
        least = self.smallest_eigenvalue
        return least is not None and least > _CLOSE

    @property
    def spectral_gap(self) -> float:
        """1 minus the largest factor by which one exchange shrinks a disagreement: 1 - sigma_2(W)."""
        return 1.0 - contraction([self])

    def lazy(self) -> "Mixing":
        """Return (I + W)/2: positive definite for any symmetric W whose smallest eigenvalue is above -1."""
        halves = ({j: w / 2 for j, w in row.items()} for row in self.rows)
        return Mixing(tuple({**half, i: half.get(i, 0.0) + 0.5} for i, half in enumerate(halves)))

    def without(self, missing: Iterable[int]) -> "Mixing":
        """Return the matrix when nodes are gone: each gives the weight of a lost neighbour to itself.

        A symmetric W stays symmetric and doubly stochastic on those that are left; lost nodes keep their own value.

        Args:
            missing: the lost nodes.

        Returns:
            A matrix of the same size.

        Raises:
            InputError: W is not symmetric, so that its columns would no longer sum to 1.
        """
        gone = set(missing)
        rows = [{i: 1.0} if i in gone else renormalised(self.rows[i], i, gone) for i in range(self.size)]
        return Mixing(tuple(rows))

    @cached_property
    def _targets(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.rows]
        for i, row in enumerate(self.rows):
            for j, weight in row.items():
                if weight and i != j:
                    found[j].append(i)
        return tuple(map(tuple, found))

    def _spectrum(self) -> np.ndarray:
        """Return the eigenvalues of a circulant W, the Fourier transform of its first row."""
        return np.fft.ifft([self.weight(0, j) for j in range(self.size)], norm="forward")

    @cached_property
    def _circulant(self) -> bool:
        first, n = self.rows[0], self.size
        for i, row in enumerate(self.rows):
            if len(row) != len(first):
                return False
            if any(abs(row.get((j + i) % n, 0.0) - w) > _CLOSE for j, w in first.items()):
                return False
        return True


def renormalised(row: Mapping[int, float], own: int, missing: Iterable[int]) -> dict[int, float]:
    """Return a row without some senders: their weight goes to the node itself.

    w_ii' = w_ii + sum of w_ij over the missing j.

    Args:
        row: j -> w_ij.
        own: i.
        missing: senders whose values did not arrive.

    Returns:
        The row; it still sums to 1.

    Example:
        >>> renormalised({0: 0.5, 1: 0.25, 2: 0.25}, 0, [2])
        {0: 0.75, 1: 0.25}
    """
    gone = set(missing) - {own}
    kept = {j: weight for j, weight in row.items() if j not in gone}
    kept[own] = kept.get(own, 0.0) + sum(weight for j, weight in row.items() if j in gone)
    return kept


def contraction(rounds: Sequence[Mixing]) -> float:
    """Return the factor by which an exchange shrinks a disagreement, in the mean square over the rounds.

    sqrt of the largest eigenvalue of mean_t W_t^T W_t off the vector of ones; sigma_2(W) for a single round.

    Args:
        rounds: matrices of one size, used in turn.

    Returns:
        A number in [0, 1]; 0 means exact agreement after one exchange.
    """
    first = rounds[0]
    if first.size == 1:
        return 0.0
    if len(rounds) == 1 and (first.symmetric or first._circulant):
        return min(1.0, abs(first.eigenvalues[1]))
    if all(mixing._circulant for mixing in rounds):
        squares = np.mean([abs(mixing._spectrum()) ** 2 for mixing in rounds], axis=0)
        return min(1.0, math.sqrt(float(squares[1:].max())))
    dense = [_checked(mixing.dense()) for mixing in rounds]
    gram = np.mean([w.T @ w for w in dense], axis=0) - 1.0 / first.size
    return min(1.0, math.sqrt(max(0.0, float(np.linalg.eigvalsh(gram)[-1]))))


def _checked(rows: Sequence[Sequence[float]]) -> np.ndarray:
    if len(rows) > _LARGEST:
        raise InputError(f"the spectrum of {len(rows)} nodes is not computed here; at most {_LARGEST} without symmetry")
    return np.array(rows)


def _check_sum(what: str, total: float) -> None:
    if abs(total - 1.0) > _CLOSE:
        raise InputError(
            f"{what} of the mixing matrix sums to {total:g}, it must be 1; Metropolis weights make any graph so"
        )
