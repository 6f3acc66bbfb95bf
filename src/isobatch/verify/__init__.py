"""verify: is it the same run? Equivalence of whole runs, over seeds, with fixed margins."""

from isobatch.installed import need

need("torch", "verify")

from isobatch.verify.arms import ABLATIONS, arms
from isobatch.verify.comparison import Comparisons, run
from isobatch.verify.equivalence import Comparison, Verdict, compare, gaps, margins
from isobatch.verify.outcome import next_actions, to_dict

__all__ = [
    "ABLATIONS",
    "Comparison",
    "Comparisons",
    "Verdict",
    "arms",
    "compare",
    "gaps",
    "margins",
    "next_actions",
    "run",
    "to_dict",
]
