"""A DataLoader in the sample order, whose batch size may be set between any two batches."""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from isobatch.data.order import SampleOrder, shard_sizes
from isobatch.data.sampler import BatchSize, OrderBatchSampler
from isobatch.errors import InputError


class SeededItems(Dataset):
    """A map-style data set whose random augmentations depend on (seed, position) only.

    Without it an augmentation depends on the number of workers and on how often the run was resumed. Items are asked
    for as (index, position); Python's, numpy's and torch's CPU generators are seeded for each, and put back afterwards
    in the main process.

    Args:
        dataset: map-style.
        seed: the order's seed.

    Example:
        >>> class Noisy(Dataset):
        ...     def __getitem__(self, index):
        ...         return torch.rand(())
        >>> items = SeededItems(Noisy(), seed=0)
        >>> bool(items[0, 5] == items[0, 5]), bool(items[0, 5] == items[0, 6])
        (True, False)
    """

    def __init__(self, dataset: Dataset, seed: int):
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, index: tuple[int, int]) -> Any:
        item, position = index
        key = hashlib.blake2b(f"{self._seed}/{position}".encode(), digest_size=8).digest()
        if get_worker_info() is not None:
            _seed_all(int.from_bytes(key, "little"))
            return self._dataset[item]
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - data sets use it
        try:
            _seed_all(int.from_bytes(key, "little"))
            return self._dataset[item]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            torch.set_rng_state(before[2])


class OrderLoader:
    """Iterate batches of a map-style data set in the sample order, from `drawn` on.

    The order is the same for any number of workers. After each batch `drawn` is the position behind it; it is what a
    checkpoint keeps. `batch_size` may be set while iterating and counts from the next batch: what workers fetched ahead
    at the old size is thrown away, the samples are fetched again. The global random generators are not touched.

    Args:
        dataset: map-style, with as many items as the order.
        order: the sample order.
        batch_size: global samples per batch, or a function of the position that gives them.
        drawn: position of the first sample.
        stop: position after the last sample; None runs for ever.
        rank: this process, in [0, world).
        world: number of ranks.
        workers: loader processes; 0 loads in this one.
        item_seeds: give each item's augmentation its own seed (SeededItems); False for data sets without randomness
            saves some 50 microseconds an item.
        collate: makes a batch of a list of items; None is torch's default.
        pin_memory: as in DataLoader.

    Raises:
        InputError: an iterable data set, one of another size than the order, or as OrderBatchSampler.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.arange(6))
        >>> loader = OrderLoader(data, SampleOrder(6, seed=0, shuffle=False), batch_size=2, stop=6)
        >>> for (x,) in loader:
        ...     loader.batch_size = 4
        ...     print(x.tolist(), loader.drawn)
        [0, 1] 2
        [2, 3, 4, 5] 6
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        batch_size: BatchSize,
        *,
        drawn: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        item_seeds: bool = True,
        collate: Callable[[list], Any] | None = None,
        pin_memory: bool = False,
    ):
        if isinstance(dataset, IterableDataset):
            raise InputError(
                f"{type(dataset).__name__} is an iterable data set, which has no order to follow; give a map-style one"
            )
        length = len(dataset)  # ty: ignore[invalid-argument-type]
        if length != order.size:
            raise InputError(f"data set of {length} items, order of {order.size}; build the order with size={length}")
        self._sampler = OrderBatchSampler(order, batch_size, drawn, stop, rank, world, positions=item_seeds)
        self._loader = DataLoader(
            SeededItems(dataset, order.seed) if item_seeds else dataset,
            batch_sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the default one would draw from the run's generator at every resume
        )
        self._changed = False

    @property
    def drawn(self) -> int:
        """Position behind the last batch that was handed out."""
        return self._sampler.drawn

    @property
    def batch_size(self) -> BatchSize:
        """Global samples per batch, or the function that gives them."""
        return self._sampler.batch_size

    @batch_size.setter
    def batch_size(self, size: BatchSize) -> None:
        before = self._sampler.batch_size
        self._sampler.batch_size = size
        try:
            if self._sampler.stop is None or self.drawn < self._sampler.stop:
                self._sampler.size_at(self.drawn)
        except InputError:
            self._sampler.batch_size = before
            raise
        self._changed = self._changed or size != before

    def sizes(self) -> list[int]:
        """Return how many samples each rank gets in the next batch, for the weights of their mean losses.

        Returns:
            Samples by rank.
        """
        return shard_sizes(self._sampler.size_at(self.drawn), self._sampler.world)

    def __iter__(self) -> Iterator[Any]:
        while self._sampler.stop is None or self.drawn < self._sampler.stop:
            self._changed = False
            for batch in self._loader:
                self._sampler.drawn += self._sampler.size_at(self.drawn)
                yield batch
                if self._changed:
                    break


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' generators too
