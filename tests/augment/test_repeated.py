"""Repeated augmentation: copies on different ranks, every sample of every epoch, epochs counted in samples."""

from collections import Counter

import pytest

from isobatch.data import RepeatedBatchSampler, SampleOrder
from isobatch.errors import InputError


@pytest.mark.parametrize(("rows", "repeats", "world"), [(12, 3, 1), (12, 3, 4), (12, 2, 3), (24, 4, 8), (6, 1, 2)])
def test_every_sample_comes_repeats_times_an_epoch_and_on_several_ranks(rows, repeats, world):
    order = SampleOrder(38, seed=5)
    parts = [
        list(RepeatedBatchSampler(order, rows, repeats, stop=38, rank=rank, world=world, positions=True))
        for rank in range(world)
    ]
    batches = list(zip(*parts, strict=True))
    assert len(batches) == len(RepeatedBatchSampler(order, rows, repeats, stop=38)) == -(-38 // (rows // repeats))
    for batch in batches[:-1]:
        assert [len(part) for part in batch] == [rows // world] * world
        for sample in {index for part in batch for index, _, _ in part}:
            ranks = {rank for rank, part in enumerate(batch) for index, _, _ in part if index == sample}
            assert len(ranks) == min(repeats, world)
    seen = Counter(index for batch in batches for part in batch for index, _, _ in part)
    assert seen == Counter(dict.fromkeys(range(38), repeats))
    copies = Counter((position, copy) for batch in batches for part in batch for _, position, copy in part)
    assert set(copies.values()) == {1}


def test_the_order_goes_on_where_it_stopped():
    order = SampleOrder(10, seed=1)
    whole = list(RepeatedBatchSampler(order, 6, 2, stop=18))
    assert whole[2:] == list(RepeatedBatchSampler(order, 6, 2, drawn=6, stop=18))
    assert RepeatedBatchSampler(order, 6, 2).samples == 3
    assert RepeatedBatchSampler(order, 6, 2).batches_per_epoch == pytest.approx(10 / 3)


def test_uneven_rows_are_refused():
    order = SampleOrder(10, seed=1)
    with pytest.raises(InputError, match="rows=7 must be a multiple of repeats=2; nearest: 6 or 8"):
        RepeatedBatchSampler(order, 7, 2)
    with pytest.raises(InputError, match="rows=6 must be a multiple of world=4; nearest: 4 or 8"):
        RepeatedBatchSampler(order, 6, 2, world=4)
    with pytest.raises(InputError, match="repeats=0"):
        RepeatedBatchSampler(order, 6, 0)
    with pytest.raises(InputError, match=r"rank=2 must be in \[0, 1\]"):
        RepeatedBatchSampler(order, 6, 2, rank=2, world=2)
    with pytest.raises(TypeError, match="no length"):
        len(RepeatedBatchSampler(order, 6, 2))


@pytest.mark.parametrize(
    ("stop", "world", "fits"), [(13, 4, False), (14, 4, True), (13, 3, True), (25, 6, False), (24, 6, True)]
)
def test_a_last_batch_that_leaves_a_rank_without_rows_is_refused_on_every_rank(stop, world, fits):
    order = SampleOrder(stop, seed=0)
    for rank in range(world):
        if fits:
            assert all(RepeatedBatchSampler(order, 12, 3, stop=stop, rank=rank, world=world))
        else:
            with pytest.raises(InputError, match=f"for {world} ranks"):
                RepeatedBatchSampler(order, 12, 3, stop=stop, rank=rank, world=world)
