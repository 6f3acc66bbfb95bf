"""The order in which samples are drawn: a function of (seed, epoch, index) and of nothing else.

World size, loader workers, micro-batches and the batch schedule never enter, so a run that is resumed, re-split or
re-batched goes on with the sample that comes next.
"""

import numpy as np
import torch

from isobatch.data.split import Split, nearest_splits
from isobatch.errors import InputError
from isobatch.units import whole

_ALGORITHM = "philox4x64-argsort-1"
_WORD = 2**64


class SampleOrder:
    """Endless stream of sample indices; position p lies in epoch p // size at place p % size.

    perm(epoch) = argsort(w), stable, where w are the first `size` 64-bit words of Philox4x64-10 under the key
    (seed, epoch). Both parts are fixed algorithms, so the order does not move with a version of numpy or torch. Every
    epoch holds each index exactly once; a batch that reaches over the end of an epoch takes the rest from the next.

    Memory is 8 bytes per sample for each of two cached epochs. An order is cheap to rebuild and has no position of its
    own: the position is the counter `drawn` of the run.

    Args:
        size: samples in the data set, at least 1.
        seed: any whole number in [0, 2**64).
        shuffle: False gives 0, 1, ..., size - 1 in every epoch.

    Raises:
        InputError: size below 1 or a seed outside [0, 2**64).

    Example:
        >>> order = SampleOrder(5, seed=0)
        >>> order.indices(0, 5).sort().values.tolist()
        [0, 1, 2, 3, 4]
        >>> bool((order.indices(3, 4) == order.indices(0, 7)[3:]).all())
        True

    References:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10).
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True):
        self.size = whole("size", size, 1)
        self.seed = whole("seed", seed, 0)
        self.shuffle = bool(shuffle)
        if self.seed >= _WORD:
            raise InputError(f"seed={self.seed} must be in [0, 2**64); take it modulo 2**64")
        self._cache: dict[int, torch.Tensor] = {}

    def indices(self, start: int, count: int) -> torch.Tensor:
        """Return the sample indices at positions start, ..., start + count - 1 of the stream.

        Args:
            start: position of the first one, which is `drawn` of the run.
            count: how many, 0 or more; may span any number of epochs.

        Returns:
            int64 tensor of shape (count,), each entry in [0, size).

        Raises:
            InputError: a negative start or count.

        Example:
            >>> SampleOrder(3, seed=0, shuffle=False).indices(2, 3).tolist()
            [2, 0, 1]
        """
        position, left = whole("start", start, 0), whole("count", count, 0)
        if (place := position % self.size) + left <= self.size:
            return self._permutation(position // self.size)[place : place + left].clone()
        parts = []
        while left:
            epoch, place = divmod(position, self.size)
            part = self._permutation(epoch)[place : place + left]
            parts.append(part)
            position, left = position + len(part), left - len(part)
        return torch.cat(parts)

    def epoch(self, start: int) -> int:
        """Return the epoch, counted from 0, in which position start lies.

        Args:
            start: a position of the stream, 0 or more.

        Returns:
            start // size.

        Raises:
            InputError: a negative start.

        Example:
            >>> SampleOrder(10, seed=0).epoch(20)
            2
        """
        return whole("start", start, 0) // self.size

    @property
    def fingerprint(self) -> str:
        """Name of the algorithm with everything that decides the order; equal strings mean equal orders."""
        return f"{_ALGORITHM}/size={self.size}/seed={self.seed}/shuffle={int(self.shuffle)}"

    def check(self, fingerprint: str) -> None:
        """Refuse an order stored elsewhere that is not this one.

        Args:
            fingerprint: what `fingerprint` gave when the state was stored.

        Raises:
            InputError: the two differ; the message holds both.

        Example:
            >>> SampleOrder(5, seed=0).check("philox4x64-argsort-1/size=5/seed=0/shuffle=1")
        """
        if fingerprint != self.fingerprint:
            raise InputError(
                f"sample order: stored {fingerprint!r}, now {self.fingerprint!r}; resume with the stored size, seed "
                "and shuffle, or start again at drawn=0"
            )

    def _permutation(self, epoch: int) -> torch.Tensor:
        if epoch in self._cache:
            return self._cache[epoch]
        if self.shuffle:
            key = np.array([self.seed, epoch], dtype=np.uint64)
            words = np.random.Philox(key=key).random_raw(self.size)
            fresh = torch.from_numpy(np.argsort(words, kind="stable").astype(np.int64, copy=False))
        else:
            fresh = torch.arange(self.size)
        self._cache = {kept: self._cache[kept] for kept in list(self._cache)[-1:]}
        self._cache[epoch] = fresh
        return fresh


def checked_rank(rank: int, world: int) -> tuple[int, int]:
    """Return a rank and the number of ranks as plain ints, or refuse them.

    Args:
        rank: which, in [0, world).
        world: number of ranks, at least 1.

    Returns:
        Both.

    Raises:
        InputError: outside their range.

    Example:
        >>> checked_rank(1, 2)
        (1, 2)
    """
    ranks = whole("world", world, 1)
    if (mine := whole("rank", rank, 0)) >= ranks:
        raise InputError(f"rank={rank} must be in [0, {ranks - 1}] for world={world}")
    return mine, ranks


def shard_sizes(count: int, world: int) -> list[int]:
    """Return how many of count samples each rank gets: count // world, the first count % world ranks one more.

    Args:
        count: samples of one global batch, 0 or more.
        world: number of ranks, at least 1.

    Returns:
        world sizes whose sum is count; 0 where there are fewer samples than ranks.

    Raises:
        InputError: a negative count or a world below 1.

    Example:
        >>> shard_sizes(10, 4)
        [3, 3, 2, 2]
    """
    base, extra = divmod(whole("count", count, 0), whole("world", world, 1))
    return [base + (rank < extra) for rank in range(world)]


def shard(positions: torch.Tensor, rank: int, world: int) -> tuple[torch.Tensor, list[int]]:
    """Split one global batch over the ranks in contiguous runs; joined in rank order they are the batch again.

    A mean loss must be weighted by the sizes: sum over ranks of sizes[r] / sum(sizes) * mean_r, not the plain mean.

    Args:
        positions: the global batch, a tensor whose first dimension is samples.
        rank: which part, in [0, world).
        world: number of ranks.

    Returns:
        The part of this rank (a view) and the sizes of all ranks.

    Raises:
        InputError: rank outside [0, world).

    Example:
        >>> part, sizes = shard(torch.arange(5), rank=1, world=2)
        >>> part.tolist(), sizes
        ([3, 4], [3, 2])
    """
    rank, world = checked_rank(rank, world)
    sizes = shard_sizes(len(positions), world)
    begin = sum(sizes[:rank])
    return positions[begin : begin + sizes[rank]], sizes


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
