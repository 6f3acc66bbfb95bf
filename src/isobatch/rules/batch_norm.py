"""Batch norm's running statistics: an average over forward passes of b samples on one device."""

from isobatch.rules.rule import Confidence, Rule
from isobatch.units import finite


def scale_batch_norm(momentum: float, ratio: float) -> float:
    """Batch-norm momentum (PyTorch's m = 1 - decay) when the samples per device and forward pass grow by a ratio.

    m' = 1 - (1-m)**(b'/b). The batch statistics themselves depend on b as well, which no rule repairs.

    Args:
        momentum: m in [0, 1].
        ratio: b'/b, positive; not the ratio of global batches.

    Returns:
        The momentum at b'.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> round(scale_batch_norm(0.1, 2), 4)
        0.19
    """
    m = finite("batch norm momentum", momentum, 0, 1)
    factor = finite("micro-batch ratio", ratio, 0, open_low=True)
    return m if factor == 1 else 1 - (1 - m) ** factor


POWER = Rule(
    "1-(1-m)**(b'/b)",
    "keeps the half-life of the running statistics in samples per device; b = samples per device and forward pass",
    "derived from arXiv 2307.13813",
    Confidence.DERIVED,
    lambda c: scale_batch_norm(c.value, c.kappa),
)
