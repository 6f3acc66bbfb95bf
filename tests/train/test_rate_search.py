"""The search beside the loop: going back, ranks that agree, and the same thing in a user's own loop."""

import json

import pytest
import torch
from tests.gloo import world
from tests.recipes import recipe

from isobatch.curves import Look
from isobatch.errors import InputError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import AutoWarmup, Trainer
from isobatch.train.rate_search import MOST_KEPT

TURN = 240


class Told:
    """A process that says yes from a given look on, and that the loss was lowest half-way."""

    def __init__(self, first):
        self.looks, self.first = 0, first

    def look(self, x, y):
        self.looks += 1
        return Look((0.99 if self.looks >= self.first else 0.1,) * 5, (0.5,) * 5)

    def state_dict(self):
        return {"looks": self.looks}


def trainer(rollback=True, told=True, **parts):
    search = {"tests": "24 samples", "rollback": rollback, "lr_min": 1e-3}
    made = recipe(**{
        "task": "digits", "data_size": 1437, "batch": {"size": 12}, "options": {"width": 4}, "ema": {"decay": 0.9},
        "optimizer": {"name": "adamp", "lr": 0.5, "weight_decay": 0.1},
        "schedule": {"length": "960 samples", "warmup": None, "shape": "autowu", "search": search}, **parts,
    })  # fmt: skip
    one = Trainer(make_run(made, 0), made, order_seed=1)
    assert one.search is not None
    if told:
        one.search.regression = Told(8)  # type: ignore[assignment]
    return one


def weights(one):
    assert one.average is not None
    state = {**one.run.model.state_dict(), **{f"average/{k}": v for k, v in one.average.average().items()}}
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.mark.parametrize("rollback", [True, False])
def test_weights_optimizer_and_average_go_back_to_the_copy_nearest_to_the_lowest_loss(rollback):
    one, seen = trainer(rollback), {}
    assert one.search is not None
    while one.search.rate.searching:
        one.step()
        seen[one.seen] = (weights(one), one.optimizer.param_groups[0]["step"])
        assert len(one.search._kept) <= MOST_KEPT
    assert (one.seen, one.search.rate.place) == (TURN, TURN / 2)
    wanted = seen[TURN / 2 if rollback else TURN - 12]
    same = all(torch.equal(value, wanted[0][name]) for name, value in weights(one).items())
    assert same == rollback
    assert one.optimizer.param_groups[0]["step"] == (wanted[1] if rollback else 20)
    assert one.search._kept == []
    step = one.step()
    assert step.lr == pytest.approx(0.5 * one.search.rate.peak, rel=0.01)


@pytest.mark.parametrize("told", [True, False], ids=["told", "by the regression"])
def test_two_processes_turn_at_the_step_of_one_and_return_to_its_weights(told, tmp_path):
    def prepare():
        one = trainer()
        one.run.model.double()
        assert isinstance(one.run.samples, TensorSamples)
        x, y = one.run.samples.tensors
        one.run.samples.tensors = (x.double(), y)
        fresh = Trainer(one.run, one.recipe, order_seed=1)
        assert fresh.search is not None
        if told:
            fresh.search.regression = Told(8)  # type: ignore[assignment]
        return fresh

    def finish(one):
        for size in (12,) * 12 + (11, 25) + (12,) * 50:
            one.step(size)
        return {**weights(one), "peak": torch.tensor(one.search.rate.peak, dtype=torch.float64)}

    def ranked(rank):
        torch.save(finish(prepare()), tmp_path / f"{rank}")

    world(2, tmp_path, ranked)
    alone = finish(prepare())
    assert alone["peak"] < 1, "the search has ended"
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}")
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=name)


def loop(length=960):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return model, optimizer, AutoWarmup(optimizer, length=length, batch_size=8, every=16, model=model)


def train(parts, steps, first=0):
    model, optimizer, warmup = parts
    for step in range(first, steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        warmup.step(loss=float(loss.detach()), samples=8)


def test_in_a_users_loop_each_group_keeps_its_ratio_and_a_resumed_search_goes_on():
    one = loop()
    train(one, 40)
    rates = [group["lr"] for group in one[1].param_groups]
    assert rates[1] == pytest.approx(rates[0] / 2)
    assert rates[0] == pytest.approx(1e-5 ** (1 - 40 / 60))
    other = loop()
    other[0].load_state_dict(one[0].state_dict())
    other[1].load_state_dict(one[1].state_dict())
    other[2].load_state_dict({**json.loads(json.dumps(_plain(one[2]))), "search": one[2].state_dict()["search"]})
    train(one, 120, 40)
    train(other, 120, 40)
    assert not one[2].search.rate.searching
    assert torch.equal(one[0].weight, other[0].weight)
    assert one[2].search.rate.state_dict() == other[2].search.rate.state_dict()
    assert one[1].param_groups[0]["lr"] < one[2].search.rate.peak


def _plain(warmup):
    return {name: value for name, value in warmup.state_dict().items() if name != "search"}


@pytest.mark.parametrize(("change", "message"), [
    ({"lr_min": 2.0}, "must be in"),
    ({"patience": 50, "every": 16}, "outlast the warm-up"),
    ({"confidence": 1.0}, "confidence=1"),
])  # fmt: skip
def test_bounds_that_make_no_sense_are_refused(change, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(InputError, match=message):
        AutoWarmup(optimizer, length=960, batch_size=8, **change)
