import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.tokens import batches
from torch.utils.data import DataLoader

from isobatch.data import SampleOrder, TokenBatches, TokenBatchSampler, check_fingerprint, fingerprint
from isobatch.errors import InputError

LENGTHS = [3, 9, 1, 4, 4, 7, 2, 5]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=15),
    budgets=st.lists(st.integers(20, 90), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_batches_equal_the_reference(lengths, budgets, seed):
    order = SampleOrder(len(lengths), seed)
    packs, drawn, found = TokenBatches(order, lengths), 0, []
    for budget in budgets:
        indices, tokens = packs.take(drawn, budget)
        assert tokens == sum(lengths[i] for i in indices.tolist()) <= budget
        found.append(indices.tolist())
        drawn += tokens
    stream = order.indices(0, sum(budgets) + 1).tolist()
    assert found == batches(lengths, stream, budgets)
    fresh = TokenBatches(SampleOrder(len(lengths), seed), lengths)  # the position alone decides
    assert fresh.take(drawn, 20)[0].tolist() == packs.take(drawn, 20)[0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99), world=st.integers(1, 3), cuts=st.lists(st.tuples(st.integers(18, 60), st.integers(1, 5)))
)
def test_each_example_once_per_epoch_for_any_budgets_and_cuts(seed, world, cuts):
    order = SampleOrder(len(LENGTHS), seed)
    packs, drawn, seen = TokenBatches(order, LENGTHS), 0, []
    for budget, count in cuts:
        ranks = [
            iter(TokenBatchSampler(packs, max(budget, 9 * world), drawn, rank=r, world=world)) for r in range(world)
        ]
        for _ in range(count):
            parts = [next(rank) for rank in ranks]
            assert all(parts)
            batch = [index for part in parts for index in part]
            seen += batch
            drawn += sum(LENGTHS[i] for i in batch)
    assert seen == order.indices(0, len(seen)).tolist()


def test_batches_are_maximal_at_the_end_of_an_epoch_too():
    packs = TokenBatches(SampleOrder(2, 0, shuffle=False), [3, 2])
    assert packs.take(0, 13)[0].tolist() == [0, 1, 0, 1, 0]
    assert packs.take(3, 4)[0].tolist() == [1]
    assert packs.take(3, 5)[0].tolist() == [1, 0]
    assert packs.take(5, 5)[0].tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_tokens_through_a_loader_stop_at_the_epoch(workers):
    order = SampleOrder(len(LENGTHS), 2)
    packs = TokenBatches(order, torch.tensor(LENGTHS))
    sampler = TokenBatchSampler(packs, lambda drawn: 9 if drawn < 18 else 20, stop=2 * packs.epoch_tokens)
    loader = DataLoader(list(range(8)), batch_sampler=sampler, num_workers=workers)
    assert torch.cat(list(loader)).tolist() == order.indices(0, 16).tolist()


def test_shares_of_ranks_are_near_equal_in_tokens():
    packs = TokenBatches(SampleOrder(100, 0), [1 + i % 7 for i in range(100)])
    parts = [next(iter(TokenBatchSampler(packs, 200, rank=r, world=4))) for r in range(4)]
    assert all(abs(sum(1 + i % 7 for i in part) - 50) <= 7 for part in parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.take(1, 20), "drawn=1 tokens lies 1 tokens inside an example"),
        (lambda p: p.take(0, 8), "budget=8 tokens is below example 1 with 9"),
        (lambda p: p.take(0, 8.5), "budget=8.5 must be a whole number"),
        (lambda p: TokenBatches(p.order, [1, 2]), r"lengths has shape \(2,\).* give 8 whole"),
        (lambda p: TokenBatches(p.order, [0.5] * 8), "dtype torch.float32"),
        (lambda p: TokenBatches(p.order, [1] * 7 + [0]), r"lengths\[7\]=0 must be at least 1"),
        (lambda p: next(iter(TokenBatchSampler(p, 9, world=9))), "must have at least 9, one for each rank"),
        (lambda p: TokenBatchSampler(p, 9, rank=2, world=2), r"rank=2 must be in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call(TokenBatches(SampleOrder(8, 0, shuffle=False), LENGTHS))


DATA = [(torch.full((2,), float(i)), i % 3) for i in range(200)]


@pytest.mark.parametrize("other", [DATA[:100], DATA + DATA[:1], DATA[::-1], DATA[:-1] + DATA[:1]])
def test_shrunk_grown_or_reordered_data_is_refused(other):  # fault 17
    stored, now = fingerprint(DATA), fingerprint(other)
    with pytest.raises(InputError, match="accept_data_change=True") as caught:
        check_fingerprint(stored, now)
    assert stored in str(caught.value)
    assert now in str(caught.value)
    check_fingerprint(stored, now, accept_data_change=True)
    check_fingerprint(stored, fingerprint(list(DATA)))


def test_an_exchange_is_found_where_all_items_are_hashed():
    other = [*DATA[:100], DATA[101], DATA[100], *DATA[102:]]
    assert fingerprint(DATA, items=None) != fingerprint(other, items=None)


def test_items_of_every_kind_have_a_fingerprint():
    kinds = [
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bfloat16), np.zeros(2), np.float32(0), 0, 0.0,
        False, None, "0", b"0", [0], [[0]], {"a": 0}, {"b": 0}, (torch.zeros(2), 0),
    ]  # fmt: skip
    marks = [fingerprint([item]) for item in kinds]
    assert len(set(marks)) == len(kinds)
    assert marks == [fingerprint([item]) for item in kinds]
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}])


def test_items_without_a_fingerprint_are_refused_or_encoded():
    with pytest.raises(InputError, match="holds a complex"):
        fingerprint([1j])
    assert fingerprint([1j], encode=lambda z: repr(z).encode()) != fingerprint([2j], encode=lambda z: repr(z).encode())


def test_random_items_are_refused():
    class Noise(list):
        def __getitem__(self, index):
            return torch.rand(1, generator=generator)

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="item 0 of Noise differs when read twice"):
        fingerprint(Noise([1]))
