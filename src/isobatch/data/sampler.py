"""The sample order in the forms that a torch DataLoader takes: samples, batches, and batches of repeated samples."""

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

from isobatch.data.order import SampleOrder, checked_rank, shard
from isobatch.errors import InputError
from isobatch.units import whole

BatchSize = int | Callable[[int], int]


class OrderSampler(Sampler[int]):
    """One index at a time, for `DataLoader(dataset, sampler=..., batch_size=...)` in a single process.

    Several ranks need OrderBatchSampler, which cuts each global batch.

    Args:
        order: the sample order.
        drawn: position of the first sample; may be set between two iterations.
        stop: position after the last sample; None runs for ever.

    Raises:
        InputError: a negative position, or stop before drawn.

    Example:
        >>> list(OrderSampler(SampleOrder(3, seed=0, shuffle=False), drawn=2, stop=5))
        [2, 0, 1]
    """

    def __init__(self, order: SampleOrder, drawn: int = 0, stop: int | None = None):
        self.order = order
        self.drawn = whole("drawn", drawn, 0)
        self.stop = None if stop is None else whole("stop", stop, self.drawn)

    def __iter__(self) -> Iterator[int]:
        position = self.drawn
        while self.stop is None or position < self.stop:
            ahead = self.order.size - position % self.order.size
            count = ahead if self.stop is None else min(ahead, self.stop - position)
            yield from self.order.indices(position, count).tolist()
            position += count

    def __len__(self) -> int:
        return _finite(self.stop) - self.drawn


class OrderBatchSampler(Sampler[list]):
    """This rank's part of one global batch at a time, for `DataLoader(dataset, batch_sampler=...)`.

    The batch at position p has batch_size(p) samples; nothing is dropped, and only `stop` makes a batch shorter. A
    loader with workers asks ahead of the training loop, so a batch size that changes as the run goes must be a function
    of the position; OrderLoader also takes one that is set from outside.

    Args:
        order: the sample order.
        batch_size: global samples per batch, or a function of the position that gives them.
        drawn: position of the first sample; may be set between two iterations.
        stop: position after the last sample; None runs for ever.
        rank: which part, in [0, world).
        world: number of ranks.
        positions: yield (index, position) in place of index, for SeededItems.

    Raises:
        InputError: a position, rank or batch size outside its range; a batch with fewer samples than ranks.

    Example:
        >>> order = SampleOrder(6, seed=0, shuffle=False)
        >>> list(OrderBatchSampler(order, 4, stop=6, rank=1, world=2))
        [[2, 3], [5]]
    """

    def __init__(
        self,
        order: SampleOrder,
        batch_size: BatchSize,
        drawn: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
        positions: bool = False,
    ):
        self.order = order
        self.batch_size = batch_size
        self.drawn = whole("drawn", drawn, 0)
        self.stop = None if stop is None else whole("stop", stop, self.drawn)
        self.rank, self.world = checked_rank(rank, world)
        self._positions = bool(positions)
        if self.stop is None or self.drawn < self.stop:
            self.size_at(self.drawn)
            if self.stop is not None and not callable(batch_size):  # said now, not on the last day of training
                size = whole("batch size", batch_size)
                self.size_at(self.drawn + (self.stop - self.drawn - 1) // size * size)

    def size_at(self, position: int) -> int:
        """Return the global samples of the batch that begins at a position.

        Args:
            position: where the batch begins.

        Returns:
            Samples over all ranks.

        Raises:
            InputError: not a whole number of at least 1, or fewer samples than ranks.
        """
        return _size_at(self.batch_size, position, self.stop, self.world)

    def __iter__(self) -> Iterator[list]:
        size, position = self.batch_size, self.drawn  # a change from outside counts from the next iteration
        while self.stop is None or position < self.stop:
            count = _size_at(size, position, self.stop, self.world)
            part, sizes = shard(self.order.indices(position, count), self.rank, self.world)
            first = position + sum(sizes[: self.rank])
            indices = part.tolist()
            yield [(index, first + place) for place, index in enumerate(indices)] if self._positions else indices
            position += count

    def __len__(self) -> int:
        position, batches, stop = self.drawn, 0, _finite(self.stop)
        if not callable(self.batch_size):
            return -(-(stop - position) // int(self.batch_size))
        while position < stop:
            position, batches = position + self.size_at(position), batches + 1
        return batches


def _size_at(batch_size: BatchSize, position: int, stop: int | None, world: int) -> int:
    size = whole("batch size", batch_size(position) if callable(batch_size) else batch_size, 1)
    if stop is not None:
        size = min(size, stop - position)
    if size < world:
        raise InputError(
            f"batch of {size} samples at position {position} must have at least {world}, one for each rank; take a "
            "larger batch, fewer ranks, or another stop"
        )
    return size


def _finite(stop: int | None) -> int:
    if stop is None:
        raise TypeError("an endless sampler has no length; give it a stop")  # the error that len() is allowed to raise
    return stop


class RepeatedBatchSampler(Sampler[list]):
    """This rank's rows of one global batch at a time, for `DataLoader(dataset, batch_sampler=...)`.

    A global batch takes the next rows/repeats samples of the order, each `repeats` times; row k goes to rank k mod
    world, so that the copies of a sample lie on different ranks where there are enough. The position `drawn` counts
    distinct samples: `size` of them are one epoch of the data, in `repeats` times the rows.

    Args:
        order: the sample order.
        rows: rows of a global batch, a multiple of repeats and of world.
        repeats: m, rows a sample.
        drawn: position of the first sample; may be set between two iterations.
        stop: position after the last sample; None runs for ever. It may leave the last batch smaller.
        rank: which part, in [0, world).
        world: number of ranks.
        positions: yield (index, position, copy) in place of index, for views with a seed of their own.

    Raises:
        InputError: rows that are no multiple of repeats and of world (the nearest ones are named), or a rank outside
            its range; a last batch with fewer rows than ranks, of which some would get none.

    Example:
        >>> order = SampleOrder(4, seed=0, shuffle=False)
        >>> [list(RepeatedBatchSampler(order, 4, 2, stop=4, rank=rank, world=2)) for rank in range(2)]
        [[[0, 1], [2, 3]], [[0, 1], [2, 3]]]

    References:
        arXiv 1902.05509 (MultiGrain), 2012.12877 (DeiT: copies on different ranks).
    """

    def __init__(
        self,
        order: SampleOrder,
        rows: int,
        repeats: int,
        drawn: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
        positions: bool = False,
    ):
        self.order, self.rows, self.repeats = order, whole("rows", rows), whole("repeats", repeats)
        self.rank, self.world = checked_rank(rank, world)
        self.drawn = whole("drawn", drawn, 0)
        self.stop = None if stop is None else whole("stop", stop, self.drawn)
        self._positions = bool(positions)
        for name, part in (("repeats", self.repeats), ("world", self.world)):
            if self.rows % part:
                lower = self.rows // part * part
                near = f"{lower} or {lower + part}" if lower else f"{part}"
                raise InputError(f"rows={rows} must be a multiple of {name}={part}; nearest: {near}")
        if self.stop is not None and self.drawn < self.stop:
            self._count_at(self.drawn + (self.stop - self.drawn - 1) // self.samples * self.samples)

    @property
    def samples(self) -> int:
        """Distinct samples of a global batch: what the clock of the run counts."""
        return self.rows // self.repeats

    @property
    def batches_per_epoch(self) -> float:
        """Global batches in one epoch of the data: `repeats` times those without repetition."""
        return self.order.size / self.samples

    def __iter__(self) -> Iterator[list]:
        position = self.drawn
        while self.stop is None or position < self.stop:
            count = self._count_at(position)
            indices = self.order.indices(position, count).tolist()
            places = [(sample, copy) for sample in range(count) for copy in range(self.repeats)]
            mine = places[self.rank :: self.world]
            if self._positions:
                yield [(indices[sample], position + sample, copy) for sample, copy in mine]
            else:
                yield [indices[sample] for sample, _ in mine]
            position += count

    def _count_at(self, position: int) -> int:
        """Distinct samples of the batch that begins at a position, refused where some rank would get no row of it."""
        count = self.samples if self.stop is None else min(self.samples, self.stop - position)
        if count * self.repeats < self.world:
            more = position + -(-self.world // self.repeats)
            raise InputError(
                f"the last batch, at position {position}, has {count * self.repeats} rows for {self.world} ranks, so "
                f"some would get none; take stop={position} or {more}, or fewer ranks"
            )
        return count

    def __len__(self) -> int:
        return -(-(_finite(self.stop) - self.drawn) // self.samples)
