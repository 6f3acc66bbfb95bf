"""LARS, LAMB and AdamP of the catalogue against 15 lines of numpy each; their groups, and what other flags would do."""

import numpy as np
import pytest
import torch
from tests.recipes import recipe
from tests.reference import layer_wise as slow

from isobatch.errors import InputError
from isobatch.optimizers import build, write_settings
from isobatch.tasks import make_run
from isobatch.train import Trainer

SHAPES = [(6, 5), (6,), (3, 6), (3,), (4, 2, 3, 3)]
ADAM = {"betas": (0.9, 0.999), "eps": 1e-12}
CASES = {
    "lars": (slow.lars, {"lr": 0.7, "momentum": 0.9, "weight_decay": 0.01}),
    "lamb": (slow.lamb, {"lr": 0.02, "weight_decay": 0.05, **ADAM}),
    "adamp": (slow.adamp, {"lr": 0.02, "weight_decay": 0.1, **ADAM}),
}


def apart(name, *, numbers, steps=30, large=4.0):
    """Largest distance from the reference over the steps; the first matrix has |w| > 10 and a radial gradient."""
    generator = torch.Generator().manual_seed(3)
    reference = CASES[name][0]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) * (large if len(s) > 1 else 1) for s in SHAPES]
    mine = [torch.nn.Parameter(w.clone()) for w in weights]
    theirs, states = [w.numpy().copy() for w in weights], [{} for _ in weights]
    optimizer, worst = build(name, mine, **numbers), 0.0
    for t in range(1, steps + 1):
        write_settings(optimizer, lr=numbers["lr"] / t)
        for i, p in enumerate(mine):
            radial = 0.3 * p.detach() if i == 0 else 0.0
            p.grad = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64) + radial
            theirs[i] = reference(
                theirs[i], p.grad.numpy().copy(), states[i], t, **{**numbers, "lr": numbers["lr"] / t}
            )
        optimizer.step()
        worst = max(worst, *(float(np.abs(p.detach().numpy() - w).max()) for p, w in zip(mine, theirs, strict=True)))
    return worst


@pytest.mark.parametrize("name", CASES)
def test_the_catalogue_agrees_with_the_paper(name):
    assert apart(name, numbers=CASES[name][1]) < 1e-8


def test_adamp_differs_from_its_paper_by_where_eps_stands():
    numbers = CASES["adamp"][1]
    assert 1e-9 < apart("adamp", numbers={**numbers, "eps": 1e-6}) < 1e-3


def test_the_librarys_own_defaults_are_another_lamb():
    from pytorch_optimizer import Lamb

    _, numbers = CASES["lamb"]
    weight = torch.nn.Parameter(torch.full((3, 3), 1.0, dtype=torch.float64))
    stock = Lamb([weight], lr=numbers["lr"], weight_decay=0.05)
    weight.grad = torch.full((3, 3), 0.1, dtype=torch.float64)
    stock.step()
    state = {}
    wanted = slow.lamb(np.full((3, 3), 1.0), np.full((3, 3), 0.1), state, 1, **numbers)
    assert 1 - float(weight.detach()[0, 0]) > 5 * (1 - wanted[0, 0])


def test_vectors_have_a_group_of_their_own_without_decay():
    model = torch.nn.Linear(2, 3)
    for name in ("lamb", "adamp"):
        optimizer = build(name, model.parameters(), lr=0.1, weight_decay=0.0)
        write_settings(optimizer, weight_decay=0.3)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
        assert [p.ndim for group in optimizer.param_groups for p in group["params"]] == [2, 1]
    named = build("lamb", list(model.named_parameters()), lr=0.1)
    assert [group.get("adam") for group in named.param_groups] == [False, True]
    own = [{"params": list(model.parameters())}]
    assert len(build("lamb", own, lr=0.1).param_groups) == 1


def test_decay_has_one_place_for_each():
    weight = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(InputError, match="'lamb' has trust-ratio weight decay, not L2"):
        build("lamb", weight, lr=0.1, coupled=True)
    made = recipe(task="digits", optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "decay": "trust-ratio"})
    with pytest.raises(InputError, match="decay='trust-ratio' can be planned but not trained with sgd"):
        Trainer(make_run(made.model_copy(update={"data_size": 1437}), 0), made)
