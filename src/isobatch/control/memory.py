"""Out of memory: half the micro-batch, the same global batch by accumulation, down to one sample."""

from dataclasses import dataclass

from isobatch.control.elastic import Split, largest_divisor


@dataclass(frozen=True)
class Fallback:
    """What to try after a step ran out of memory.

    Args:
        split: the next split, None when there is none left.
        reason: in words.
    """

    split: Split | None
    reason: str


def after_out_of_memory(split: Split) -> Fallback:
    """Return the next smaller micro-batch that keeps the global batch.

    The largest divisor of a device's share in (micro/4, micro/2], so that micro-batches stay equal; where there is
    none, micro//2 with a smaller last one. The update is the same, batch norm's statistics are not. The step that
    failed is repeated from its first sample; under several processes all take the smallest micro-batch of any.

    Args:
        split: what ran out of memory.

    Returns:
        The next split, or None with the ways out when one sample does not fit.

    Example:
        >>> from isobatch.control import Split
        >>> after_out_of_memory(Split(64, devices=2, micro=32)).split
        Split(batch=64, devices=2, micro=16)
        >>> after_out_of_memory(Split(64, devices=2, micro=1)).split is None
        True
    """
    micro = split.widest
    if micro == 1:
        reason = (
            f"one sample of {split.batch} does not fit on a device: shorten the sample, recompute activations, shard "
            "the model, or keep fewer states; a smaller batch would not help"
        )
        return Fallback(None, reason)
    half = micro // 2
    divisor = largest_divisor(split.share(0), half)
    new = Split(split.batch, split.devices, divisor if 4 * divisor > micro else half)
    reason = f"micro-batch {micro} to {new.micro}: the batch stays {new}, batch norm alone sees the difference"
    return Fallback(new, reason)
