"""Decentralized training: each node averages with its neighbours alone; one update, real processes or virtual nodes.

`graphs` builds who averages with whom, `cost` says what an exchange takes.
"""

from isobatch.installed import need

need("torch")

from isobatch.decentralized import cost as cost
from isobatch.decentralized import graphs as graphs
from isobatch.decentralized.graphs import complete as complete
from isobatch.decentralized.graphs import exponential as exponential
from isobatch.decentralized.graphs import from_edges as from_edges
from isobatch.decentralized.graphs import from_graph as from_graph
from isobatch.decentralized.graphs import mesh as mesh
from isobatch.decentralized.graphs import one_peer_exponential as one_peer_exponential
from isobatch.decentralized.graphs import random_matching as random_matching
from isobatch.decentralized.graphs import ring as ring
from isobatch.decentralized.graphs import star as star
from isobatch.decentralized.graphs import symmetric_exponential as symmetric_exponential
from isobatch.decentralized.graphs import torus as torus
from isobatch.decentralized.methods import METHODS as METHODS
from isobatch.decentralized.methods import Method as Method
from isobatch.decentralized.methods import find as find
from isobatch.decentralized.mixing import Mixing as Mixing
from isobatch.decentralized.neighbourhood import Incident as Incident
from isobatch.decentralized.nodes_mean import consensus_distance as consensus_distance
from isobatch.decentralized.nodes_mean import mean_state as mean_state
from isobatch.decentralized.nodes_mean import node_state as node_state
from isobatch.decentralized.nodes_mean import relative_error as relative_error
from isobatch.decentralized.optimizer import Decentralized as Decentralized
from isobatch.decentralized.topology import Topology as Topology
from isobatch.decentralized.updates import Everyone as Everyone
from isobatch.decentralized.updates import advance as advance
from isobatch.decentralized.updates import awc as awc
from isobatch.decentralized.updates import d2 as d2
from isobatch.decentralized.updates import da as da
from isobatch.decentralized.updates import decentlam as decentlam
from isobatch.decentralized.updates import dmsgd as dmsgd
from isobatch.decentralized.updates import dsgd as dsgd
from isobatch.decentralized.updates import lars_ratio as lars_ratio
from isobatch.decentralized.updates import pmsgd as pmsgd
from isobatch.decentralized.updates import qg as qg
from isobatch.decentralized.updates import slow_outer as slow_outer
from isobatch.decentralized.virtual import VirtualNodes as VirtualNodes
