"""Batches in any form come back in the form they had."""

import collections
import dataclasses
import typing

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

import isobatch as ib
from isobatch.augment import BatchAugmentation, identity
from isobatch.errors import InputError
from isobatch.gradients import mapped, rebuilt
from isobatch.tasks import Run
from isobatch.train import Trainer
from isobatch.train.rate_search import _cloned

Pair = collections.namedtuple("Pair", "x y")


class Triple(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    name: str = "batch"


class Rows(list):
    """A list of a user's own class."""


class Fields(collections.UserDict):
    """A mapping of a user's own class, as a tokenizer gives it."""


@dataclasses.dataclass(frozen=True)
class Data:
    x: torch.Tensor
    y: torch.Tensor
    seen: int = 0


X, Y = torch.arange(6.0).view(3, 2), torch.zeros(3, 1)
BATCHES = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "named tuple": Pair(X, Y),
    "typed named tuple": Triple(X, Y),
    "own list": Rows([X, Y]),
    "dict": {"x": X, "y": Y},
    "ordered dict": collections.OrderedDict(x=X, y=Y),
    "own mapping": Fields(x=X, y=Y),
    "dataclass": Data(X, Y, 3),
    "nested": [Pair(X, {"deep": (Y, "word", None)}), 5],
}


def tensors(batch):
    found = []
    mapped(batch, lambda t: found.append(t) or t)
    return found


@pytest.mark.parametrize("name", BATCHES)
def test_the_form_is_kept_and_the_original_is_not_changed(name):
    batch = BATCHES[name]
    before = [t.clone() for t in tensors(batch)]
    made = mapped(batch, lambda tensor: tensor + 1)
    assert type(made) is type(batch)
    assert all(torch.equal(a + 1, b) for a, b in zip(before, tensors(made), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(batch), strict=True))
    copied = _cloned(batch)
    assert type(copied) is type(batch)
    assert not {t.data_ptr() for t in tensors(copied)} & {t.data_ptr() for t in tensors(batch)}


def test_what_is_no_tensor_stays():
    made = mapped(Triple(X, Y, "name"), lambda tensor: tensor * 2)
    assert made.name == "name"
    assert mapped(None, lambda tensor: tensor) is None
    assert rebuilt((1, 2), [3]) == (3,)


class Samples:
    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return self.form(torch.ones(len(index), 2), torch.zeros(len(index), 1))


FORMS = {
    "named tuple": (Pair, lambda b: (b.x, b.y)),
    "typed named tuple": (Triple, lambda b: (b.x, b.y)),
    "dataclass": (Data, lambda b: (b.x, b.y)),
    "own mapping": (lambda x, y: Fields(x=x, y=y), lambda b: (b["x"], b["y"])),
    "own list": (lambda x, y: Rows([x, y]), lambda b: (b[0], b[1])),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_loop_hands_every_form_to_the_loss(name):
    form, parts = FORMS[name]
    kinds = set()

    def loss(model, batch):
        kinds.add(type(batch))
        x, y = parts(batch)
        return (model(x) - y).square().mean()

    recipe = ib.Recipe.parse(
        {
            "data_size": 32,
            "batch": {"size": 8},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"length": "64 samples"},
        }
    )
    trainer = Trainer(Run(nn.Linear(2, 1), Samples(form), loss, lambda model: {"loss": 1.0}), recipe)
    trainer.step()
    assert trainer.seen == 8
    assert kinds == {type(form(X, Y))}


@pytest.mark.parametrize("name", ["tuple", "list", "named tuple", "own list"])
def test_repeated_and_viewed_batches_keep_their_form(name):
    batch = BATCHES[name]
    made = BatchAugmentation(identity, views=2).rows(batch, torch.arange(3), 0)
    assert type(made) is type(batch)
    assert torch.equal(made[0], torch.cat([X, X]))
    assert torch.equal(made[1], torch.cat([Y, Y]))


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"dataclass"}))
def test_half_batches_keep_their_form(name):
    form, parts = FORMS[name]
    model = nn.Linear(2, 1)
    noise = ib.NoiseScale(model, every=1)
    kinds = []

    def loss(batch, unused):
        kinds.append(type(batch))
        x, y = parts(batch)
        return (model(x) - y).square().mean()

    noise.halves(loss, form(torch.ones(8, 2), torch.zeros(8, 1)), torch.ones(8))
    assert set(kinds) == {type(form(X, Y))}


def test_a_packed_sequence_has_no_rows():
    packed = rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    with pytest.raises(InputError, match="packed sequence"):
        mapped(packed, lambda tensor: tensor[:1])
    with pytest.raises(InputError, match="no inputs"):
        BatchAugmentation(identity, views=2).rows(packed, torch.arange(2), 0)
    model = nn.GRU(2, 3)
    noise = ib.NoiseScale(model, every=1)
    with pytest.raises(InputError, match="packed sequence"):
        noise.halves(lambda batch, y: model(batch)[0].data.square().mean(), packed, torch.ones(2))
    moved = mapped([packed], lambda tensor: tensor, packed=lambda sequence: sequence.to(torch.float64))
    assert moved[0].data.dtype == torch.float64


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.table(x))


@pytest.mark.parametrize("bad", [False, True])
def test_sparse_gradients_are_judged_and_trained(bad):
    from isobatch.tasks import TensorSamples

    recipe = ib.Recipe.parse(
        {
            "data_size": 32,
            "batch": {"size": 8},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"length": "64 samples"},
        }
    )
    model = Sparse()
    before = model.table.weight.detach().clone()
    loss = lambda m, b: m(b[0]).square().mean() * (float("nan") if bad else 1.0)  # noqa: E731
    trainer = Trainer(Run(model, TensorSamples(torch.randint(10, (32,))), loss, lambda m: {"loss": 1.0}), recipe)
    if bad:
        with pytest.raises(ib.NonFiniteError, match="first bad gradient"):
            trainer.step()
        assert torch.equal(before, model.table.weight)
    else:
        trainer.step()
        assert not torch.equal(before, model.table.weight)
