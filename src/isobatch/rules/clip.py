"""Gradient clipping: the norm follows the size of the gradient where the noise scale is known; elsewhere it is kept."""

import math

from isobatch.rules.noise_share import second_moment_factor
from isobatch.rules.rule import Change, Confidence, Rule, RuleWarning, Severity, Side
from isobatch.units import finite


def scale_clip(clip: float, kappa: float, share: float) -> float:
    """Clipping norm that stands to the gradient as before when the batch grows by kappa.

        clip' = clip*sqrt((1 + Bs/(kappa*B)) / (1 + Bs/B)) = clip*sqrt((1-f) + f/kappa),  f = Bs/(Bs + B)

    because E|g|**2 = |G|**2 + tr(Sigma)/B = |G|**2*(1 + Bs/B): 1/sqrt(kappa) in pure noise, nothing without any.

    Args:
        clip: largest norm at the old batch, positive.
        kappa: new batch / old batch, positive.
        share: f, the noise share of the squared gradient at the old batch, in [0, 1].

    Returns:
        The norm at the new batch.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> scale_clip(0.125, 4, share=1.0), scale_clip(1.0, 4, share=0.0)
        (0.0625, 1.0)

    References:
        arXiv 1812.06162 (the noise scale); the norm is derived from it.
    """
    norm, ratio = finite("clip", clip, 0, open_low=True), finite("kappa", kappa, 0, open_low=True)
    return norm * math.sqrt(second_moment_factor(ratio, finite("noise share", share, 0, 1)))


def clip_rule(change: Change) -> Rule:
    """Return the rule of a clipping norm: by the noise scale where it is known.

    Args:
        change: its share is the noise share, None where it was not measured.

    Returns:
        The rule.
    """
    return KEPT if change.share is None else BY_NOISE


def _kept(c: Change, _: float) -> tuple[str, str]:
    fewer, grows = ("fewer", "grows") if c.kappa > 1 else ("more", "shrinks")
    message = (
        f"the clipping norm is kept because the noise scale is not known; {fewer} steps clip as the batch {grows}: "
        f"give --noise-scale (in pure noise the norm would be {scale_clip(c.value, c.kappa, 1.0):.4g})"
    )
    return "gradient clipping", message


BY_NOISE = Rule(
    "clip*sqrt((1-f)+f/kappa)",
    "stands to the gradient's root mean square norm as before: sqrt((1+Bs/(kappa*B))/(1+Bs/B)) with f = Bs/(Bs+B)",
    "derived from arXiv 1812.06162",
    Confidence.DERIVED,
    lambda c: c.value if c.share is None else scale_clip(c.value, c.kappa, c.share),
)
KEPT = Rule(
    "clip",
    "the gradient norm falls towards its mean as the batch grows, so fewer steps clip; the rule wants a noise scale",
    "unknown",
    Confidence.UNKNOWN,
    warnings=(RuleWarning(Side.BOTH, _kept, "unknown", Severity.WEAK),),
)
