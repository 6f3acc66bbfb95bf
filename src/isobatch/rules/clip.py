"""Gradient clipping: the norm is kept, and nobody knows whether that is right."""

from isobatch.rules.rule import Change, Confidence, Rule, RuleWarning, Severity, Side


def _kept(c: Change, _: float) -> tuple[str, str]:
    fewer, grows = ("fewer", "grows") if c.kappa > 1 else ("more", "shrinks")
    message = f"the clipping norm is kept because no rule is known; {fewer} steps clip as the batch {grows}"
    return "gradient clipping", message


KEPT = Rule(
    "clip",
    "the gradient norm falls towards its mean as the batch grows, so fewer steps clip; no rule is known",
    "unknown",
    Confidence.UNKNOWN,
    warnings=(RuleWarning(Side.BOTH, _kept, "unknown", Severity.WEAK),),
)
