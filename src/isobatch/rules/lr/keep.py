"""A learning rate that is kept, because the recipe says so or because the run searches for its own."""

from isobatch.rules.rule import Confidence, LearningRate, Rule

KEPT = Rule("eta", "kept because the recipe says so; not an equivalent run", "recipe", Confidence.UNKNOWN, exponent=0.0)
SEARCHED = Rule(
    "eta",
    "the highest rate that the warm-up tries; the search finds the peak at the new batch",
    "arXiv 2107.05855",
    Confidence.CONVENTION,
)

CHOICE = LearningRate("keep", lambda _: KEPT)
