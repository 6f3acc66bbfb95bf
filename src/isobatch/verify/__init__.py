"""verify: is it the same run? Equivalence of whole runs, over seeds, with fixed margins."""

from isobatch.verify.arms import ABLATIONS, arms
from isobatch.verify.comparison import Comparisons, next_actions, run, to_dict
from isobatch.verify.equivalence import Comparison, Verdict, compare, gaps, margins

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
