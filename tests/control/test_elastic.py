import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.control import Split, after_out_of_memory, change_world, even_split, nearest_splits
from isobatch.data.order import shard_sizes
from isobatch.errors import InputError

SPLITS = st.tuples(st.integers(1, 400), st.integers(1, 12), st.integers(1, 50)).filter(lambda s: s[0] >= s[1])


def sizes(split):
    return [split.micro_batches(device) for device in range(split.devices)]


def test_known_splits():
    assert sizes(even_split(64, 4, 8)) == [(8, 8)] * 4
    assert sizes(Split(64, 3, 8)) == [(8, 8, 6), (8, 8, 5), (8, 8, 5)]
    assert str(Split(64, 3, 8)) == "64 = 3 devices x micro 8 x 3, uneven"
    assert [str(near) for near in nearest_splits(64, 6, 8)] == [
        "64 = 4 devices x micro 8 x 2",
        "48 = 6 devices x micro 8 x 1",
        "96 = 6 devices x micro 8 x 2",
    ]


@settings(max_examples=100, deadline=None)
@given(values=SPLITS)
def test_a_split_hands_out_every_sample_once_and_devices_differ_by_one(values):
    split = Split(*values)
    shares = [sum(parts) for parts in sizes(split)]
    assert sum(shares) == split.batch
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1
    assert max(len(parts) for parts in sizes(split)) == split.accumulation
    assert all(1 <= size <= split.micro for parts in sizes(split) for size in parts)
    assert split.even == (len(set(shares)) == 1 and len({size for parts in sizes(split) for size in parts}) == 1)
    assert split.widest == max(size for parts in sizes(split) for size in parts)


@settings(max_examples=100, deadline=None)
@given(values=SPLITS)
def test_the_nearest_splits_are_even_and_none_is_nearer(values):
    batch, devices, micro = values
    found = nearest_splits(*values)
    assert all(near.even for near in found)
    whole = devices * micro
    best = min(abs(near - batch) for near in range(whole, batch + whole + 1, whole))
    assert min(abs(near.batch - batch) for near in found if near.micro == micro and near.devices == devices) == best
    assert any(near.batch == batch for near in found)  # one device at least keeps the batch


@settings(max_examples=100, deadline=None)
@given(values=SPLITS, worlds=st.lists(st.integers(1, 12), max_size=6), micro=st.integers(1, 50))
def test_worlds_may_change_and_the_batch_stays(values, worlds, micro):
    batch, devices, _ = values
    for world in worlds:
        if world > batch:
            continue
        change = change_world(batch, devices, world, micro, uneven=True)
        assert (change.split.batch, change.split.devices, change.kappa) == (batch, world, 1.0)
        assert change.split.micro <= micro
        devices = world


def test_uneven_shares_are_those_of_the_sample_order():
    assert [Split(10, 4, 2).share(device) for device in range(4)] == shard_sizes(10, 4) == [3, 3, 2, 2]


def test_a_micro_batch_that_does_not_divide_gives_way_to_a_divisor():
    change = change_world(60, 1, 4, micro=8)
    assert change.split == Split(60, 4, 5)
    assert change.reason == (
        "the batch stays 60 = 4 devices x micro 5 x 3; the micro-batch was 8, which only batch norm sees"
    )
    # A prime share stays even one sample at a time; where weights allow, it need not.
    assert change_world(62, 1, 2, micro=16).split == Split(62, 2, 1)
    assert change_world(62, 1, 2, micro=16, uneven=True).split == Split(62, 2, 16)


def test_scaling_with_the_devices_keeps_the_share():
    change = change_world(64, 4, 6, micro=8, mode="scale")
    assert (change.split, change.kappa) == (Split(96, 6, 8), 1.5)
    assert "kappa = 6/4" in change.reason


@pytest.mark.parametrize("batch", [8, 20, 62, 64, 97])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_out_of_memory_halves_down_to_one_and_keeps_the_batch(batch, devices):
    split, micros = Split(batch, devices, batch), []
    while (fallback := after_out_of_memory(split)).split is not None:
        new = fallback.split
        assert split.widest / 4 < new.micro <= split.widest / 2
        assert (new.batch, new.devices) == (batch, devices)
        assert str(new.micro) in fallback.reason
        assert sum(sum(parts) for parts in sizes(new)) == batch
        micros, split = [*micros, new.micro], new
    assert micros[-1] == 1
    assert len(micros) <= 1 + math.log2(batch)
    assert "one sample" in fallback.reason


def test_the_fallback_prefers_equal_micro_batches():
    assert [after_out_of_memory(Split(20, 1, micro)).split.micro for micro in (20, 10, 5)] == [10, 5, 2]
    assert after_out_of_memory(Split(9, 1, 9)).split == Split(9, 1, 3)  # 4 would leave a single sample
    assert after_out_of_memory(Split(31, 1, 31)).split == Split(31, 1, 15)  # a prime: 15 + 15 + 1, weighted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_split(64, 3, 8), "batch=64 must be a multiple of devices x micro = 24; nearest.*72.*48.*uneven"),
        (lambda: change_world(64, 4, 3, 8), "nearest even splits: 64 = 2 devices x micro 8 x 4; 72"),
        (lambda: change_world(64, 4, 80, 8), "batch=64 must be at least devices=80, one sample each"),
        (lambda: change_world(64, 3, 4, 8, mode="scale"), "batch=64 x 4/3 devices is not whole"),
        (lambda: change_world(64, 4, 2, 8, mode="grow"), "mode='grow' must be one of keep, scale"),
        (lambda: change_world(64, 4, 0, 8), "new_devices=0 must be at least 1"),
        (lambda: Split(0, 1, 1), "batch=0 must be at least 1"),
        (lambda: Split(8, True, 1), "devices=True must be a whole number"),
        (lambda: Split(8, 1, 2.0), "micro=2.0 must be a whole number"),
        (lambda: Split(8, 2, 2).share(2), r"device=2 must be in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call()
