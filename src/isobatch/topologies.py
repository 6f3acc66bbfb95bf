"""The old place of graphs, mixing matrices and costs, which are in `isobatch.decentralized` now."""

import warnings
from importlib import import_module
from typing import Any

_HOMES = {
    "cost": ("ASSUMPTIONS", "Link", "allreduce_seconds", "compare", "exchange_seconds", "fit_link"),
    "graphs": ("TOPOLOGIES", "build", "complete", "exponential", "from_edges", "from_graph", "mesh",
               "one_peer_exponential", "random_matching", "ring", "star", "symmetric_exponential", "torus"),
    "mixing": ("Mixing", "renormalised"),
    "topology": ("Topology", "components"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            new = f"isobatch.decentralized.{home}"
            warnings.warn(f"isobatch.topologies.{name} is {new}.{name} now", DeprecationWarning, stacklevel=2)
            return getattr(import_module(new), name)
    raise AttributeError(f"module 'isobatch.topologies' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
