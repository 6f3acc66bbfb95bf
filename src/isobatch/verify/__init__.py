"""verify: is it the same run? Equivalence of whole runs, over seeds, with fixed margins."""

from isobatch.installed import need

need("torch", "verify")

from isobatch.split import split
from isobatch.verify.advice import next_actions
from isobatch.verify.comparison import Comparisons, run
from isobatch.verify.design import ABLATIONS, arms
from isobatch.verify.equivalence import Comparison, Verdict, compare
from isobatch.verify.judging import ArmTest, Conclusion, Failure, RecipeFails, conclude, judge, margin_of
from isobatch.verify.result import to_dict

__all__ = [
    "ABLATIONS",
    "ArmTest",
    "Comparison",
    "Comparisons",
    "Conclusion",
    "Failure",
    "RecipeFails",
    "Verdict",
    "arms",
    "compare",
    "conclude",
    "judge",
    "margin_of",
    "next_actions",
    "run",
    "split",
    "to_dict",
]
