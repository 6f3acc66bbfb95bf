"""Who averages with whom: mixing matrices, graphs and what an exchange costs, in numbers alone."""

from isobatch.topologies.cost import ASSUMPTIONS as ASSUMPTIONS
from isobatch.topologies.cost import Link as Link
from isobatch.topologies.cost import allreduce_seconds as allreduce_seconds
from isobatch.topologies.cost import compare as compare
from isobatch.topologies.cost import exchange_seconds as exchange_seconds
from isobatch.topologies.cost import fit_link as fit_link
from isobatch.topologies.graphs import TOPOLOGIES as TOPOLOGIES
from isobatch.topologies.graphs import build as build
from isobatch.topologies.graphs import complete as complete
from isobatch.topologies.graphs import exponential as exponential
from isobatch.topologies.graphs import from_edges as from_edges
from isobatch.topologies.graphs import from_graph as from_graph
from isobatch.topologies.graphs import mesh as mesh
from isobatch.topologies.graphs import one_peer_exponential as one_peer_exponential
from isobatch.topologies.graphs import random_matching as random_matching
from isobatch.topologies.graphs import ring as ring
from isobatch.topologies.graphs import star as star
from isobatch.topologies.graphs import symmetric_exponential as symmetric_exponential
from isobatch.topologies.graphs import torus as torus
from isobatch.topologies.mixing import Mixing as Mixing
from isobatch.topologies.mixing import renormalised as renormalised
from isobatch.topologies.topology import Topology as Topology
from isobatch.topologies.topology import components as components
