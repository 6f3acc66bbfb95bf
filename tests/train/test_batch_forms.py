"""Batches in any form that loaders give: the loop, views and adversaries hand them on in it."""

import collections
from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from isobatch import Recipe
from isobatch.augment import BatchAugmentation, identity
from isobatch.augment.concurrent_adversarial import perturbed
from isobatch.noise.half_batches import rows_of
from isobatch.tasks import Run
from isobatch.train import Trainer
from isobatch.train.world import Device

Pair = collections.namedtuple("Pair", "x y")


class Own(tuple):
    pass


class Listed(list):
    pass


@dataclass
class Item:
    x: torch.Tensor
    y: torch.Tensor


def keyed(kind, parts):
    return kind(zip("xy", parts, strict=True))


FORMS = {
    "tuple": (tuple, lambda b: b[0], lambda b: b[1]),
    "list": (list, lambda b: b[0], lambda b: b[1]),
    "a list of its own": (Listed, lambda b: b[0], lambda b: b[1]),
    "named tuple": (lambda parts: Pair(*parts), lambda b: b.x, lambda b: b.y),
    "a tuple of its own": (Own, lambda b: b[0], lambda b: b[1]),
    "dict": (lambda parts: dict(zip("xy", parts, strict=True)), lambda b: b["x"], lambda b: b["y"]),
    "ordered dict": (lambda parts: OrderedDict(zip("xy", parts, strict=True)), lambda b: b["x"], lambda b: b["y"]),
    "a dict of a tokenizer": (
        lambda parts: UserDict(zip("xy", parts, strict=True)),
        lambda b: b["x"],
        lambda b: b["y"],
    ),
    "a pair in a pair": (lambda parts: Pair(Pair(parts[0], "name"), parts[1]), lambda b: b.x.x, lambda b: b.y),
    "an object": (lambda parts: Item(*parts), lambda b: b.x, lambda b: b.y),
}


class Samples:
    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 32

    def __getitem__(self, index):
        x = torch.linspace(-1, 1, 64, dtype=torch.float64).view(32, 2)[index]
        return self.form((x, x.sum(1, keepdim=True)))


def trained(name, **parts):
    form, x, y = FORMS[name]
    torch.manual_seed(0)
    run = Run(
        nn.Linear(2, 1).double(),
        Samples(form),
        lambda net, b: (net(x(b)) - y(b)).square().mean(),
        lambda net: {"l": 0.0},
    )
    settings = {
        "data_size": 32, "batch": {"size": 8, "micro": 4}, "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"length": "64 samples"}, **parts,
    }  # fmt: skip
    one = Trainer(run, Recipe.parse(settings))
    one.train_to(24)
    return run.model.weight.detach()


@pytest.mark.parametrize("name", FORMS)
def test_the_loop_trains_alike_on_every_form(name):
    assert torch.equal(trained(name), trained("tuple"))


@pytest.mark.parametrize("name", FORMS)
def test_a_batch_moves_to_its_device_in_its_form(name):
    form, x, y = FORMS[name]
    batch = form((torch.ones(3, 2), torch.zeros(3)))
    moved = Device.parse("cpu").batch(batch)
    assert type(moved) is type(batch)
    assert torch.equal(x(moved), x(batch))
    assert torch.equal(y(moved), y(batch))


def test_a_packed_sequence_moves_by_its_own_rule():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    moved = Device.parse("cpu").batch((packed, torch.ones(2)))[0]
    assert isinstance(moved, PackedSequence)
    assert torch.equal(moved.batch_sizes, packed.batch_sizes)


@pytest.mark.parametrize("name", ["tuple", "list", "a list of its own", "named tuple", "a tuple of its own"])
def test_views_adversaries_and_halves_keep_the_form(name):
    form, x, y = FORMS[name]
    batch = form((torch.arange(8.0).view(4, 2), torch.arange(4)))
    turned = BatchAugmentation(identity, views=2).rows(batch, torch.arange(4), 0)
    moved = perturbed(batch, torch.ones(4, 2), 0.5)
    half = rows_of(batch, 1, 3)
    for found in (turned, moved, half):
        assert type(found) is type(batch)
    assert torch.equal(x(turned), x(batch).repeat(2, 1))
    assert torch.equal(x(moved), x(batch) + 0.5)
    assert y(half).tolist() == [1, 2]
