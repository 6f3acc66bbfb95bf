"""The cost of exchanges: fitted to this machine's loopback, extrapolated to many nodes, assumptions in words."""

from typing import Any

from isobatch.decentralized.cost import ASSUMPTIONS, Link, allreduce_seconds, compare, fit_link
from isobatch.decentralized.graphs import build
from isobatch.units import finite
from isobatch_studies.decentlam.loopback import measure

GRAPHS = ("ring", "torus", "symmetric-exponential", "exponential", "one-peer-exponential", "star")
SIZE = 102_400_000  # bytes of ResNet-50's parameters in float32
ASSUMED = Link(50e-6, 25e9 / 8)  # a data centre's 25 Gbit/s and 50 us: assumed, not measured
_MOST = 16_384


def communication(nodes: int, measured: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the fitted link and the cost of every topology beside a ring all-reduce.

    Args:
        nodes: largest number of nodes.
        measured: rows of `loopback.measure`; measured here unless given.

    Returns:
        Rows measured, the link fitted, what it says of the measured all-reduce, and the extrapolation for both links.

    Raises:
        InputError: nodes outside [3, 16384].
    """
    finite("simulate-nodes", nodes, 3, _MOST)
    rows = measure() if measured is None else measured
    link = fit_link([(row["degree"], row["bytes"], row["seconds"]) for row in rows if row["degree"]])
    reduced = [row for row in rows if not row["degree"]]
    sizes = sorted({8, 64, 256, nodes} & set(range(3, nodes + 1)))
    return {
        "measured": rows,
        "link": {"alpha": link.alpha, "bandwidth": link.bandwidth, "fit error": link.error},
        "all-reduce, 4 processes": [
            {"bytes": row["bytes"], "measured": row["seconds"], "model": allreduce_seconds(link, row["bytes"], 4)}
            for row in reduced
        ],
        "bytes": SIZE,
        "assumptions": list(ASSUMPTIONS),
        "extrapolated": {
            "fitted loopback": [row for n in sizes for row in compare(link, SIZE, [build(g, n) for g in GRAPHS])],
            "assumed 25 Gbit/s, 50 us": [
                row for n in sizes for row in compare(ASSUMED, SIZE, [build(g, n) for g in GRAPHS])
            ],
        },
        "latency": "not measured: tc netem is missing from this kernel, so loopback has no shaped latency",
    }


def tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the extrapolation as tables for people, assumptions last.

    Args:
        found: what `communication` gave.

    Returns:
        Title and rows of each, the first row the header.
    """
    made = []
    for name, rows in found["extrapolated"].items():
        most = max(row["nodes"] for row in rows)
        table = [["topology", "nodes", "neighbours", "exchange", "all-reduce", "all-reduce / exchange"]]
        for row in (row for row in rows if row["nodes"] == most):
            times = [f"{row[key] * 1e3:,.1f} ms" for key in ("exchange", "all-reduce")]
            table.append([row["topology"], f"{row['nodes']}", f"{row['degree']}", *times, f"{row['ratio']:.3g}"])
        made.append({"title": f"one step's exchange of {found['bytes'] / 1e6:.0f} MB, {name}", "rows": table})
    link = found["link"]
    words = [*found["assumptions"], f"latency-shaped loopback: {found['latency']}"]
    fitted = (
        f"alpha {link['alpha'] * 1e6:.0f} us, {link['bandwidth'] / 1e9:.2f} GB/s, worst error {link['fit error']:.0%}"
    )
    words.insert(0, f"fitted to 4 processes on this machine's loopback: {fitted}")
    return [*made, {"title": "assumptions", "rows": [["", "in words"], *([str(n), w] for n, w in enumerate(words, 1))]}]
