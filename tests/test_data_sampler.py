import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from isobatch.data import OrderBatchSampler, OrderLoader, OrderSampler, SampleOrder, SeededItems, shard, split_batch
from isobatch.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SIZE = 23


class Items(Dataset):
    """Gives the index back; with noise, also draws from all three generators."""

    def __init__(self, noise=False):
        self.noise = noise

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        if not self.noise:
            return index
        return index, torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002


def flat(batches):
    return [int(index) for batch in batches for index in batch]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_is_the_same_for_any_number_of_workers(workers):  # fault 14
    order, start = SampleOrder(SIZE, 5), 9
    expected = order.indices(start, 3 * SIZE).tolist()
    sampler = OrderBatchSampler(order, 4, start, start + 3 * SIZE)
    assert flat(DataLoader(Items(), batch_sampler=sampler, num_workers=workers)) == expected
    assert flat(OrderLoader(Items(), order, 4, drawn=start, stop=start + 3 * SIZE, workers=workers)) == expected
    single = OrderSampler(order, start, start + 3 * SIZE)
    assert flat(DataLoader(Items(), sampler=single, batch_size=5, num_workers=workers)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_a_batch_size_set_from_outside(workers):
    order = SampleOrder(SIZE, 1)
    loader = OrderLoader(Items(), order, 4, stop=3 * SIZE, workers=workers)
    sizes, drawn, seen = [4, 8, 3, 3, 13, 1, 5], 0, []
    stream = iter(loader)
    for place, size in enumerate(sizes):
        loader.batch_size = size
        batch = next(stream)
        assert len(batch) == size, f"batch {place}"
        seen += batch.tolist()
        drawn += size
        assert loader.drawn == drawn
        loader.batch_size = 99  # changed twice before the next batch: only the last counts
    loader.batch_size = 7
    seen += flat(stream)
    assert seen == order.indices(0, 3 * SIZE).tolist()


def test_the_first_batch_size_is_one_set_before_iteration():
    loader = OrderLoader(Items(), SampleOrder(SIZE, 1), 4, stop=SIZE)
    loader.batch_size = 10
    assert [len(batch) for batch in loader] == [10, 10, 3]
    assert list(loader) == []


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 60), max_size=4), batch=st.integers(1, 30))
def test_resuming_any_number_of_times_gives_the_stream(cuts, batch):  # faults 8, 9: the data part
    order, drawn, seen = SampleOrder(SIZE, 3), 0, []
    for cut in [*cuts, 100]:
        batches = iter(OrderBatchSampler(order, batch, drawn))
        for _ in range(cut):
            seen += next(batches)
        drawn += cut * batch
    assert seen == order.indices(0, drawn).tolist()


@pytest.mark.parametrize("batch", [8, 32, 24, 13])  # x1/2, x2, x3/2, a prime: fault 11, the data part
def test_batch_changed_at_resume_keeps_the_multiset(batch):
    order = SampleOrder(SIZE, 3)
    first = flat(OrderLoader(Items(), order, 16, stop=48))
    rest = flat(OrderLoader(Items(), order, batch, drawn=48, stop=4 * SIZE))
    assert sorted(first + rest) == sorted(4 * list(range(SIZE)))


def test_world_size_may_change_at_any_batch():  # fault 13: the data part
    order, drawn, seen = SampleOrder(SIZE, 3), 0, []
    for world in [1, 2, 4, 3, 1]:
        ranks = [OrderBatchSampler(order, 10, drawn, drawn + 40, rank, world) for rank in range(world)]
        assert len({len(sampler) for sampler in ranks}) == 1
        for parts in zip(*ranks, strict=True):
            seen += [index for part in parts for index in part]
            drawn += 10
    assert seen == order.indices(0, drawn).tolist()
    assert [sorted(seen[e * SIZE : (e + 1) * SIZE]) for e in range(drawn // SIZE)] == [list(range(SIZE))] * 8


def test_batch_size_as_a_function_of_the_position():
    order = SampleOrder(SIZE, 0)
    sampler = OrderBatchSampler(order, lambda drawn: 2 if drawn < 10 else 6, stop=30)
    assert [len(batch) for batch in sampler] == [2] * 5 + [6, 6, 6, 2]
    assert len(sampler) == 9
    assert len(OrderBatchSampler(order, 7, stop=30)) == len(list(OrderBatchSampler(order, 7, stop=30))) == 5
    assert len(OrderSampler(order, 4, 30)) == 26
    with pytest.raises(TypeError, match="no length"):
        len(OrderSampler(order))


def noisy(workers, drawn=0, batch=4):
    return list(OrderLoader(Items(noise=True), SampleOrder(SIZE, 2), batch, drawn=drawn, stop=40, workers=workers))


def test_augmentation_depends_on_the_position_alone():
    alone, shared = noisy(0), noisy(3)
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    resumed = noisy(1, drawn=12, batch=7)
    assert torch.equal(torch.cat([b[1] for b in alone])[12:], torch.cat([b[1] for b in resumed]))
    twice = torch.cat([b[2] for b in alone])
    assert len(set(twice.tolist())) == 40  # also differs between epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_generators_of_the_run_alone(workers):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    noisy(workers)
    assert state() == before


def test_seeds_are_put_back_after_an_exception():
    class Broken(Dataset):
        def __getitem__(self, index):
            raise KeyError(index)

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        SeededItems(Broken(), 0)[3, 4]
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_get_contiguous_parts_with_sizes():
    loader = OrderLoader(Items(), SampleOrder(SIZE, 0), 10, stop=30, rank=3, world=4)
    assert loader.sizes() == [3, 3, 2, 2]
    batch = next(iter(loader))
    assert batch.tolist() == shard(SampleOrder(SIZE, 0).indices(0, 10), 3, 4)[0].tolist()


@pytest.mark.parametrize(  # fault 15
    ("plan", "message"),
    [
        ((10, 4, 2), "batch=10 .* batch=8 world=4 micro=2; batch=16 world=4 micro=2; .*remainder=True"),
        ((96, 4, 7), "batch=96 world=4 micro=6"),
        ((3, 4, 1), "batch=3 must be at least world=4"),
        ((8, 0, 1), "world=0 must be at least 1"),
        ((8, 1, 2.0), "micro=2.0 must be a whole number"),
    ],
)
def test_uneven_plans_are_refused_with_the_nearest_even_ones(plan, message):
    with pytest.raises(InputError, match=message):
        split_batch(*plan)


@settings(max_examples=80, deadline=None)
@given(batch=st.integers(1, 300), world=st.integers(1, 8), micro=st.integers(1, 40))
def test_every_listed_plan_is_even_and_remainders_sum_to_the_batch(batch, world, micro):
    if batch < world:
        return
    parts = split_batch(batch, world, micro, remainder=True)
    assert sum(map(sum, parts)) == batch
    assert len(parts) == world
    assert all(0 < size <= micro for part in parts for size in part)
    try:
        even = split_batch(batch, world, micro)
    except InputError as error:
        plans = str(error).split("plans: ")[1].split("; or")[0].split("; ")
        assert plans
        for plan in plans:
            numbers = {key: int(value) for key, value in (pair.split("=") for pair in plan.split())}
            assert split_batch(**numbers)
    else:
        assert even == parts
        assert {size for part in even for size in part} == {even[0][0]}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OrderBatchSampler(SampleOrder(9, 0), 0), "batch size=0 must be at least 1"),
        (lambda: OrderBatchSampler(SampleOrder(9, 0), True), "batch size=True must be a whole"),
        (lambda: OrderBatchSampler(SampleOrder(9, 0), 2, world=3, rank=3), r"rank=3 must be in \[0, 2\]"),
        (lambda: OrderBatchSampler(SampleOrder(9, 0), 2, world=3), "batch of 2 samples at position 0 .* at least 3"),
        (lambda: list(OrderBatchSampler(SampleOrder(9, 0), 4, stop=9, world=2)), "batch of 1 samples at position 8"),
        (lambda: OrderSampler(SampleOrder(9, 0), 5, 4), "stop=4 must be at least 5"),
        (lambda: OrderLoader(Items(), SampleOrder(9, 0), 4), "data set of 23 items, order of 9"),
        (lambda: OrderLoader(Stream(), SampleOrder(9, 0), 4), "iterable data set"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_refused_batch_size_changes_nothing():
    loader = OrderLoader(TensorDataset(torch.arange(6)), SampleOrder(6, 0, shuffle=False), 2, stop=6)
    with pytest.raises(InputError, match="batch size=-1"):
        loader.batch_size = -1
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
