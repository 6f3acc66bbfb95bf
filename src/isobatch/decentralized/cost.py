"""What an exchange costs: a message of S bytes takes alpha + S/bandwidth, fitted to measured exchanges."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from isobatch.decentralized.topology import Topology
from isobatch.errors import InputError
from isobatch.units import finite, whole

ASSUMPTIONS = (
    "a message of S bytes takes alpha + S/bandwidth, whatever else is sent: no congestion, no stragglers",
    "a node sends and receives at the same time, and handles its neighbours one after another",
    "all-reduce is the ring algorithm in 2(n-1) rounds of S/n bytes; trees trade one term for the other",
    "alpha and bandwidth are those of the links measured here; another network has others, which can be given",
    "no overlap with computation on either side",
)
"""What every figure of this file takes for granted, as printed beside it."""


@dataclass(frozen=True)
class Link:
    """A link between two nodes.

    Args:
        alpha: seconds a message costs before its first byte.
        bandwidth: bytes a second.
        error: largest relative error of the fit that gave the two, None where they were given.

    Raises:
        InputError: a negative alpha or a bandwidth of 0.

    Example:
        >>> Link(1e-5, 1e9).message(1_000_000)
        0.00101
    """

    alpha: float
    bandwidth: float
    error: float | None = None

    def __post_init__(self):
        finite("alpha", self.alpha, 0)
        finite("bandwidth", self.bandwidth, 0, open_low=True)

    def message(self, size: float) -> float:
        """Return the seconds of one message.

        Args:
            size: bytes.

        Returns:
            alpha + size/bandwidth.
        """
        return self.alpha + size / self.bandwidth


def exchange_seconds(link: Link, size: float, degree: int) -> float:
    """Return the seconds of one exchange with neighbours: degree (alpha + S/bandwidth), whatever the number of nodes.

    Args:
        link: the network.
        size: S in bytes.
        degree: neighbours of a node.

    Returns:
        Seconds.
    """
    return whole("degree", degree, 0) * link.message(size)


def allreduce_seconds(link: Link, size: float, nodes: int) -> float:
    """Return the seconds of a ring all-reduce: 2(n-1) (alpha + S/(n bandwidth)).

    Args:
        link: the network.
        size: S in bytes.
        nodes: n.

    Returns:
        Seconds.

    Example:
        >>> round(allreduce_seconds(Link(1e-5, 1e9), 1e6, 1024), 6)
        0.022458
    """
    n = whole("nodes", nodes)
    return 2 * (n - 1) * link.message(size / n)


def fit_link(measured: Iterable[tuple[float, float, float]]) -> Link:
    """Fit alpha and bandwidth to measured exchanges by least squares of the relative error.

    Args:
        measured: (messages one after another, bytes of each, seconds of all).

    Returns:
        The link, with the largest relative error of the fit; alpha is at least 0.

    Raises:
        InputError: fewer than two sizes, or a time that is not positive.

    Example:
        >>> link = fit_link([(2, s, 2 * (1e-4 + s / 1e9)) for s in (1e3, 1e5, 1e7)])
        >>> round(link.alpha, 9), round(link.bandwidth)
        (0.0001, 1000000000)
    """
    rows = [(float(m), m * float(s), finite("seconds", t, 0, open_low=True)) for m, s, t in measured]
    if len({s / m for m, s, _ in rows}) < 2:
        raise InputError("alpha and bandwidth need exchanges of at least two sizes")
    aa = sum((m / t) ** 2 for m, _, t in rows)
    ab = sum(m * s / t**2 for m, s, t in rows)
    bb = sum((s / t) ** 2 for _, s, t in rows)
    a1, b1 = sum(m / t for m, _, t in rows), sum(s / t for _, s, t in rows)
    determinant = aa * bb - ab * ab
    alpha, slope = (a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant
    if alpha < 0:
        alpha, slope = 0.0, b1 / bb
    if slope <= 0:
        alpha, slope = a1 / aa, 1e-15
    error = max(abs((m * alpha + s * slope) / t - 1) for m, s, t in rows)
    return Link(alpha, 1 / slope, error)


def compare(link: Link, size: float, topologies: Iterable[Topology]) -> list[dict[str, float | str]]:
    """Return the cost of an exchange on each topology beside a ring all-reduce over the same nodes.

    Args:
        link: the network.
        size: bytes of the parameters.
        topologies: to compare.

    Returns:
        One row a topology: name, nodes, degree, exchange and all-reduce in seconds, and the ratio of the two.
    """
    rows: list[dict[str, float | str]] = []
    for topology in topologies:
        mine = exchange_seconds(link, size, topology.degree)
        all_reduce = allreduce_seconds(link, size, topology.size)
        ratio = all_reduce / mine if mine else math.inf
        rows.append({
            "topology": topology.name, "nodes": topology.size, "degree": topology.degree,
            "exchange": mine, "all-reduce": all_reduce, "ratio": ratio,
        })  # fmt: skip
    return rows
