"""How one global batch becomes micro-batches on ranks, and which splits are even."""

from isobatch.data.order import shard_sizes
from isobatch.errors import InputError
from isobatch.units import whole


def split_batch(batch: int, world: int = 1, micro: int | None = None, *, remainder: bool = False) -> list[list[int]]:
    """Return the sizes of the micro-batches of every rank.

    The sizes sum to the batch. With unequal sizes a mean loss must be weighted: each micro-batch by its size / batch.

    Args:
        batch: global samples per step.
        world: number of ranks.
        micro: most samples in one forward pass; None means a rank's whole part at once.
        remainder: allow the last micro-batches and ranks to be smaller, for a loop that weights by size.

    Returns:
        For each rank a list of sizes.

    Raises:
        InputError: batch is not a multiple of world * micro and remainder is False; the message lists the nearest
            plans that are even. Fewer samples than ranks are refused always.

    Example:
        >>> split_batch(16, world=2, micro=4)
        [[4, 4], [4, 4]]
        >>> split_batch(10, world=2, micro=4, remainder=True)
        [[4, 1], [4, 1]]
    """
    whole("batch", batch, 1)
    if batch < whole("world", world, 1):
        raise InputError(f"batch={batch} must be at least world={world}, one sample for each rank; use fewer ranks")
    most = -(-batch // world) if micro is None else whole("micro", micro, 1)
    if not remainder and (batch % world or (batch // world) % most):
        raise InputError(
            f"batch={batch} is not a multiple of world={world} x micro={most}; nearest even plans: "
            f"{'; '.join(_nearest(batch, world, most))}; or give remainder=True where every mean is weighted by size"
        )
    return [[most] * (size // most) + [size % most] * (size % most > 0) for size in shard_sizes(batch, world)]


def _nearest(batch: int, world: int, micro: int) -> list[str]:
    below = batch - batch % (world * micro)
    others = [(near, world, micro) for near in (below, below + world * micro) if near]
    for ranks in sorted({world, max(ranks for ranks in range(1, world + 1) if batch % ranks == 0)}, reverse=True):
        if batch % ranks == 0:
            part = batch // ranks
            others.append((batch, ranks, max(size for size in range(1, min(part, micro) + 1) if part % size == 0)))
    return [f"batch={near} world={ranks} micro={size}" for near, ranks, size in others]
