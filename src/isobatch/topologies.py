"""The old place of graphs, mixing matrices and costs, which are in `isobatch.decentralized` now."""

from isobatch.renamed import old_names

_HOMES = {
    "cost": ("ASSUMPTIONS", "Link", "allreduce_seconds", "compare", "exchange_seconds", "fit_link"),
    "graphs": ("TOPOLOGIES", "build", "complete", "exponential", "from_edges", "from_graph", "mesh",
               "one_peer_exponential", "random_matching", "ring", "star", "symmetric_exponential", "torus"),
    "mixing": ("Mixing", "renormalised"),
    "topology": ("Topology", "components"),
}  # fmt: skip

__getattr__ = old_names(
    __name__, {name: f"isobatch.decentralized.{home}.{name}" for home, names in _HOMES.items() for name in names}
)
