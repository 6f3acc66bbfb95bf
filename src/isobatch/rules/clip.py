"""Gradient clipping: the norm is kept, and nobody knows whether that is right."""

from isobatch.rules.rule import Confidence, Rule

KEPT = Rule(
    "norm kept",
    "the gradient norm falls towards its mean as the batch grows, so fewer steps clip; no rule is known",
    "unknown",
    Confidence.UNKNOWN,
)
