import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.data import Split, nearest_splits, shard_sizes
from isobatch.errors import InputError

SPLITS = st.tuples(st.integers(1, 400), st.integers(1, 12), st.integers(1, 50)).filter(lambda s: s[0] >= s[1])


def sizes(split):
    return [split.micro_batches(device) for device in range(split.devices)]


def test_known_splits():
    assert sizes(Split(64, 4, 8)) == [(8, 8)] * 4
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


def test_uneven_shares_are_those_of_the_sample_order():
    assert [Split(10, 4, 2).share(device) for device in range(4)] == shard_sizes(10, 4) == [3, 3, 2, 2]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Split(0, 1, 1), "batch=0 must be at least 1"),
    (lambda: Split(8, True, 1), "devices=True must be a whole number"),
    (lambda: Split(8, 1, 2.0), "micro=2.0 must be a whole number"),
    (lambda: Split(8, 2, 2).share(2), r"device=2 must be in \[0, 1\]"),
    (lambda: Split(64, 80, 8), "batch=64 must be at least devices=80, one sample each"),
])  # fmt: skip
def test_bad_splits_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
