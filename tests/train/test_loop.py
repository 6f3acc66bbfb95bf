"""The one loop: the plain PyTorch loop at its own batch, the paper's formulas at any other, every sample once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recipes import recipe
from tests.reference.training import heavy_ball
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.tasks.quadratic import curvatures
from isobatch.train import Trainer

DIGITS = {"task": "digits", "data_size": 1437}


def double(run):
    """The same run in float64."""
    run.model.double()
    run.samples = TensorSamples(*(t.double() if t.is_floating_point() else t for t in run.samples.tensors))
    return run


def trainer(*, seed=0, order_seed=0, **parts):
    made = recipe(**{**DIGITS, **parts})
    return Trainer(double(make_run(made, seed)), made, order_seed=order_seed)


def weights(one):
    return {name: p.detach().clone() for name, p in one.run.model.named_parameters()}


class Recorder:
    """Samples that remember in which order they were asked for."""

    def __init__(self, size):
        self.size, self.drawn = size, []

    @property
    def flat(self):
        return [index for part in self.drawn for index in part]

    def __len__(self):
        return self.size

    def __getitem__(self, indices):
        self.drawn.append(indices.tolist())
        return indices.double()[:, None]


def recorded(size, **parts):
    model = torch.nn.Linear(1, 1).double()
    run = Run(model, Recorder(size), lambda net, x: (net(x) * 1e-3).square().mean(), lambda net: {"loss": 1.0})
    return Trainer(run, recipe(data_size=size, **parts))


OPTIMIZERS = {
    "sgd": ({"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}, torch.optim.SGD),
    "adamw": ({"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, torch.optim.AdamW),
    "adam": ({"name": "adam", "lr": 1e-3, "betas": [0.8, 0.99], "eps": 1e-6}, torch.optim.Adam),
    "rmsprop": ({"name": "rmsprop", "lr": 1e-3, "alpha": 0.9, "momentum": 0.5}, torch.optim.RMSprop),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_its_own_batch_it_is_the_plain_loop(name):
    numbers, make = OPTIMIZERS[name]
    one = trainer(optimizer=numbers, batch={"size": 30}, schedule={"length": "2 epochs"})
    run = double(make_run(one.recipe, 0))
    stock = make(run.model.parameters(), **{k: v for k, v in numbers.items() if k != "name"})
    average = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    order = torch.cat([one.order.indices(0, 1437), one.order.indices(1437, 1437)])
    for step in range(60):
        x, y = run.samples[order[30 * step : 30 * step + 30]]
        stock.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        stock.param_groups[0]["lr"] = numbers["lr"] * one.schedule.at(30 * step)
        stock.step()
        for key, p in run.model.named_parameters():
            average[key] = 0.99 * average[key] + 0.01 * p.detach()
    one.train_to(1800)
    for key, p in run.model.named_parameters():
        torch.testing.assert_close(weights(one)[key], p.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(one.average.average()[key], average[key], rtol=1e-12, atol=1e-13)


@settings(max_examples=12)
@given(
    batches=st.lists(st.integers(1, 40), min_size=3, max_size=30), mu=st.sampled_from([0.0, 0.9]),
    every=st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_sequence_of_batches_follows_the_formulas(batches, mu, every):
    made = recipe(
        task="quadratic", data_size=64, optimizer={"lr": 0.02, "momentum": mu}, ema={"decay": 0.95, "every": every},
        schedule={"length": "640 samples", "warmup": "90 samples"}, options={"dimension": 3, "noise": 0.5},
    )  # fmt: skip
    one = Trainer(double(make_run(made, 0)), made)
    start = one.run.model.get_parameter("theta").detach().numpy().copy()
    noise = one.run.samples[one.order.indices(0, sum(batches))][0].numpy()
    for n in batches:
        one.step(n)
    a = torch.as_tensor(curvatures(3), dtype=torch.float32).double().numpy()
    theta, b, zeta = heavy_ball(
        start, noise, batches, a=a, B=8, eta=0.02, mu=mu, rho=0.95, length=640, warmup=90, every=every
    )  # fmt: skip
    got = one.run.model.get_parameter("theta")
    assert got.detach().numpy() == pytest.approx(theta, rel=1e-10)
    assert one.average.average()["theta"].numpy() == pytest.approx(zeta, rel=1e-10)
    if mu:
        assert one.optimizer.state[got]["momentum_buffer"].numpy() == pytest.approx(b, rel=1e-9, abs=1e-12)
    assert one.seen == one.drawn == sum(batches)


def test_each_epoch_holds_each_sample_once_across_epoch_ends():
    one = recorded(101, batch={"size": 8})
    one.train_to(505)
    drawn = one.run.samples.flat
    assert len(drawn) == 505
    for epoch in range(5):
        assert sorted(drawn[101 * epoch : 101 * (epoch + 1)]) == list(range(101))
    assert drawn[:101] != drawn[101:202]
    assert [len(part) for part in one.run.samples.drawn] == [8] * 63 + [1]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 40))
def test_the_clock_reaches_exactly_the_samples_asked_for(batches, more):
    one = recorded(37, batch={"size": 8})
    for n in batches:
        assert one.step(n).batch == n
    end = sum(batches) + more
    one.train_to(end)
    assert one.seen == one.drawn == end
    assert one.run.samples.flat == one.order.indices(0, end).tolist()
    assert one.steps == len(batches) + math.ceil(more / 8)


@pytest.mark.parametrize("spread", [{"micro": 8}, {"micro": 16, "devices": 2}, {"devices": 4}])
def test_accumulation_is_one_batch(spread):
    whole = trainer(batch={"size": 32}, optimizer={"lr": 0.1, "momentum": 0.9, "clip": 0.5})
    parts = trainer(batch={"size": 32, **spread}, optimizer={"lr": 0.1, "momentum": 0.9, "clip": 0.5})
    for _ in range(100):
        one, other = whole.step(), parts.step()
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=1e-12)
    whole.step(13), parts.step(13)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("spread", "batch", "sizes"), [
    ({}, 24, [24]), ({"micro": 4}, 8, [4, 4]), ({"micro": 4}, 10, [4, 4, 2]), ({"micro": 4}, 3, [3]),
    ({"devices": 2}, 8, [4, 4]), ({"devices": 2}, 24, [12, 12]), ({"devices": 4}, 5, [2, 2, 1]),
])  # fmt: skip
def test_what_one_forward_pass_holds(spread, batch, sizes):
    one = recorded(100, batch={"size": 8, **spread})
    one.step(batch)
    assert [len(part) for part in one.run.samples.drawn] == sizes


def test_a_few_hundred_steps_on_digits_learn_and_depend_on_the_seeds_alone():
    parts = {"schedule": {"length": "3 epochs"}, "optimizer": {"lr": 0.1}}
    one, same, other = trainer(**parts), trainer(**parts), trainer(**parts, order_seed=1)
    losses = []
    one.train_to(2400, lambda step: losses.append(step.loss))
    same.train_to(2400), other.train_to(2400)
    assert np.mean(losses[-30:]) < 0.5 * np.mean(losses[:30])
    for name, value in weights(one).items():
        assert torch.equal(weights(same)[name], value)
        assert not torch.equal(weights(other)[name], value)


def test_a_step_reports_the_mean_of_the_schedule():
    one = recorded(100, batch={"size": 8}, optimizer={"lr": 0.1}, schedule={"warmup": "80 samples"})
    assert one.step().lr == pytest.approx(0.1 * 0.1)
    assert one.step(16).lr == pytest.approx(0.2 * (0.2 + 0.3) / 2)


@pytest.mark.parametrize(("parts", "message"), [
    ({"schedule": None}, r"the recipe has no \[schedule\]"),
    ({"optimizer": {"name": "nadamw"}}, r"optimizer\.name='nadamw' can be planned but not trained; these can: sgd"),
    ({"optimizer": {"decay": "independent", "weight_decay": 0.1}}, r"optimizer.decay='independent' can be planned"),
    ({"optimizer": {"decay": "decoupled", "weight_decay": 0.1}}, r"has L2 weight decay, not decoupled"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused(parts, message):
    with pytest.raises(InputError, match=message):
        trainer(**parts)


@pytest.mark.parametrize("batch", [0, -1, 2.5, True])
def test_a_bad_batch_is_refused(batch):
    one = recorded(10)
    with pytest.raises(InputError, match=r"batch=.*at least 1"):
        one.step(batch)
    assert one.drawn == 0
