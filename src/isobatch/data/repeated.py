"""Repeated augmentation across ranks: every sample of a batch several times, its copies on different ranks.

This is not batch augmentation. The rows of a batch stay as many, so that a batch of B rows holds B/m distinct samples
and an epoch of the data takes m times the batches; nothing is dropped, and the clock counts distinct samples.
"""

from collections.abc import Iterator

from torch.utils.data import Sampler

from isobatch.data.order import SampleOrder
from isobatch.errors import InputError
from isobatch.units import whole


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
            its range.

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
        self.world, self.rank = whole("world", world), whole("rank", rank, 0)
        self.drawn = whole("drawn", drawn, 0)
        self.stop = None if stop is None else whole("stop", stop, self.drawn)
        self._positions = bool(positions)
        if self.rank >= self.world:
            raise InputError(f"rank={rank} must be in [0, {self.world - 1}] for world={world}")
        for name, part in (("repeats", self.repeats), ("world", self.world)):
            if self.rows % part:
                lower = self.rows // part * part
                near = f"{lower} or {lower + part}" if lower else f"{part}"
                raise InputError(f"rows={rows} must be a multiple of {name}={part}; nearest: {near}")

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
            count = self.samples if self.stop is None else min(self.samples, self.stop - position)
            indices = self.order.indices(position, count).tolist()
            places = [(sample, copy) for sample in range(count) for copy in range(self.repeats)]
            mine = places[self.rank :: self.world]
            if self._positions:
                yield [(indices[sample], position + sample, copy) for sample, copy in mine]
            else:
                yield [indices[sample] for sample, _ in mine]
            position += count

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless sampler has no length; give it a stop")  # the error that len() may raise
        return -(-(self.stop - self.drawn) // self.samples)
