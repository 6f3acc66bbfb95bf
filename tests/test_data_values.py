"""Values that people hand to samplers and fingerprints: numpy's numbers, odd tensors, named tuples."""

import collections

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from isobatch.data import (
    OrderBatchSampler,
    OrderLoader,
    OrderSampler,
    RepeatedBatchSampler,
    SampleOrder,
    TokenBatches,
    TokenBatchSampler,
    fingerprint,
    shard,
    shard_sizes,
    split_batch,
)
from isobatch.errors import InputError

N = np.int64
NUMPY = {
    "order": lambda n: SampleOrder(n(6), n(1)).indices(n(2), n(3)).tolist(),
    "sampler": lambda n: list(OrderSampler(SampleOrder(6, 1), n(2), n(5))),
    "batches": lambda n: list(OrderBatchSampler(SampleOrder(6, 1), n(2), n(0), n(6), n(1), n(2))),
    "batches, counted": lambda n: len(OrderBatchSampler(SampleOrder(6, 1), n(4), stop=n(6))),
    "batches of a function": lambda n: list(OrderBatchSampler(SampleOrder(6, 1), lambda p: n(2), stop=n(6))),
    "repeated": lambda n: list(RepeatedBatchSampler(SampleOrder(6, 1), n(4), n(2), stop=n(6), rank=n(0), world=n(2))),
    "tokens": lambda n: list(TokenBatchSampler(TokenBatches(SampleOrder(4, 1), [3, 2, 4, 1]), n(6), stop=n(10))),
    "tokens of a function": lambda n: list(
        TokenBatchSampler(TokenBatches(SampleOrder(4, 1), np.array([3, 2, 4, 1])), lambda p: n(6), stop=n(10))
    ),
    "shards": lambda n: [part.tolist() for part in [shard(torch.arange(5), n(1), n(2))[0]]] + shard_sizes(n(5), n(2)),
    "splits": lambda n: split_batch(n(8), n(2), n(2)),
    "loader": lambda n: [
        batch[0].tolist()
        for batch in OrderLoader(
            TensorDataset(torch.arange(6)), SampleOrder(6, 1), n(2), drawn=n(2), stop=n(6), workers=0
        )
    ],
}


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("name", NUMPY)
def test_numpys_numbers_are_pythons(name, kind):
    assert NUMPY[name](kind) == NUMPY[name](int)


def test_a_loader_keeps_pythons_numbers_for_the_checkpoint():
    loader = OrderLoader(TensorDataset(torch.arange(6)), SampleOrder(6, 1), N(2), stop=N(6))
    for _ in loader:
        loader.batch_size = N(4)
    assert type(loader.drawn) is int


@pytest.mark.parametrize("bad", [0, -1, 2.5, "4", None, True, float("nan"), np.float64(2.0)])
def test_a_budget_that_is_no_whole_number_is_refused(bad):
    packs = TokenBatches(SampleOrder(4, 1), [3, 2, 4, 1])
    with pytest.raises(InputError, match="budget"):
        list(TokenBatchSampler(packs, bad, stop=10))


Pair = collections.namedtuple("Pair", "x y")
ITEMS = {
    "complex": torch.tensor([1 + 2j, 3j]),
    "a conjugate": torch.tensor([1 + 2j, 3j]).conj(),
    "one part of it": torch.tensor([1 + 2j]).real,
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "bfloat16": torch.ones(3).bfloat16(),
    "sparse": torch.eye(3).to_sparse(),
    "a view": torch.arange(6.0).view(2, 3).T,
    "needs a gradient": torch.ones(2, requires_grad=True),
    "empty": torch.zeros(0, 3),
    "a named pair": Pair(torch.ones(2), 3),
    "a packed sequence": torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    "numpy's": np.float32(2.5),
    "numpy's string": np.str_("a"),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ITEMS)
def test_items_of_every_kind_have_a_fingerprint(name, inside):
    with torch.inference_mode(inside):
        found = fingerprint([ITEMS[name]])
    assert found == fingerprint([ITEMS[name]])
    others = [fingerprint([item]) for other, item in ITEMS.items() if other != name]
    assert found not in others


@pytest.mark.filterwarnings("ignore")  # torch calls these kinds unfinished
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
)
def test_tensors_without_plain_values_are_refused_in_words(make):
    with pytest.raises(InputError, match="without plain values"):
        fingerprint([make()])
