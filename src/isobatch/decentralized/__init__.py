"""Decentralized training: each node averages with its neighbours alone; one update, real processes or virtual nodes."""

from isobatch.installed import need

need("torch")

from isobatch.decentralized.flat import consensus_distance as consensus_distance
from isobatch.decentralized.flat import relative_error as relative_error
from isobatch.decentralized.methods import METHODS as METHODS
from isobatch.decentralized.methods import Method as Method
from isobatch.decentralized.methods import find as find
from isobatch.decentralized.neighbourhood import Incident as Incident
from isobatch.decentralized.optimizer import Decentralized as Decentralized
from isobatch.decentralized.resume import mean_state as mean_state
from isobatch.decentralized.resume import node_state as node_state
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
