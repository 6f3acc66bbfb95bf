"""How one global batch becomes micro-batches on ranks, and which splits are even."""

from isobatch.control import Split, nearest_splits
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
    if whole("batch", batch) < whole("world", world):
        raise InputError(f"batch={batch} must be at least world={world}, one sample for each rank; use fewer ranks")
    split = Split(batch, world, -(-batch // world) if micro is None else whole("micro", micro))
    if not (remainder or split.even):
        plans = [
            f"batch={near.batch} world={near.devices} micro={near.micro}"
            for near in nearest_splits(batch, world, split.micro)
        ]
        raise InputError(
            f"batch={batch} is not a multiple of world={world} x micro={split.micro}; nearest even plans: "
            f"{'; '.join(plans)}; or give remainder=True where every mean is weighted by size"
        )
    return [list(split.micro_batches(rank)) for rank in range(world)]
