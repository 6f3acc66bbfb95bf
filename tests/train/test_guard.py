"""Not finite: the run stops with step, samples and parameter, or skips and moves `drawn` alone. Evaluation is clean."""

import math

import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch.errors import NonFiniteError
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.train import Guard, StepVerdict, Trainer
from isobatch.train.guard import all_finite


class Net(nn.Module):
    """Two layers with batch norm between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.double()

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def trainer(bad=(), *, guard=None, loss=None, **parts):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 2, generator=generator, dtype=torch.double)
    x[list(bad)] = math.nan
    made = recipe(data_size=40, batch={"size": 8}, batch_norm={"momentum": 0.1}, **parts)
    run = Run(Net(), TensorSamples(x), loss or (lambda net, b: net(b[0]).square().mean()), lambda net: {"loss": 1.0})
    return Trainer(run, made, guard=guard)


def everything(one):
    state = {f"model {n}": t.clone() for n, t in one.run.model.state_dict().items()}
    state |= {f"average {n}": t.clone() for n, t in one.average.average().items()}
    names = {p: n for n, p in one.run.model.named_parameters()}
    for p, slots in one.optimizer.state.items():
        state |= {f"{names[p]} {k}": v.clone() for k, v in slots.items() if isinstance(v, torch.Tensor)}
    return state


def same(before, after):
    assert before.keys() == after.keys()
    return all(torch.equal(before[name], after[name]) for name in before)


def bad_in_step(one, step, size=8):
    return int(one.order.indices(size * step, size)[3])


MOMENTUM = {"momentum": 0.9, "weight_decay": 0.01}


def test_a_nan_loss_stops_with_step_samples_and_parameter_and_changes_nothing():
    probe = trainer()
    one = trainer([bad_in_step(probe, 2)], optimizer=MOMENTUM)
    one.step(), one.step()
    before = everything(one)
    with pytest.raises(NonFiniteError, match=r"stopped at step 3 with 16 samples seen: loss is nan") as caught:
        one.step()
    assert caught.value.seen == 16
    assert caught.value.parameter == "first.weight"
    assert "first bad gradient: first.weight" in str(caught.value)
    assert same(before, everything(one))
    assert (one.seen, one.drawn, one.steps) == (16, 16, 2)


def test_a_finite_loss_with_a_bad_gradient_stops_too_and_names_it():
    def loss(net, batch):
        return net(batch[0]).square().mean() + 0.0 * net.last.bias.sub(net.last.bias.detach()).abs().sqrt().sum()

    one = trainer(loss=loss)
    before = everything(one)
    with pytest.raises(NonFiniteError, match=r"a gradient is not finite; first bad gradient: last\.bias"):
        one.step()
    assert same(before, everything(one))


def test_a_skip_moves_drawn_and_the_count_alone():
    probe = trainer()
    one = trainer([bad_in_step(probe, 1)], guard=Guard(patience=1), optimizer=MOMENTUM)
    one.step()
    before = everything(one)
    step = one.step()
    assert step.verdict is StepVerdict.SKIP
    assert math.isnan(step.loss)
    assert step.lr == 0
    assert (one.seen, one.drawn, one.steps, one.skipped) == (8, 16, 1, 1)
    assert same(before, everything(one))
    assert one.step().verdict is StepVerdict.APPLY
    assert (one.seen, one.drawn, one.steps, one.skipped) == (16, 24, 2, 1)
    assert one.average.seen == 16


def test_after_a_skip_the_clock_of_the_settings_lags_behind_the_order():
    probe = trainer()
    clean = trainer(schedule={"warmup": "40 samples"})
    one = trainer([bad_in_step(probe, 0)], guard=Guard(patience=1), schedule={"warmup": "40 samples"})
    one.step()
    assert one.step().lr == clean.step().lr


def test_patience_ends():
    one = trainer(range(40), guard=Guard(patience=3))
    assert [one.step().verdict for _ in range(3)] == [StepVerdict.SKIP] * 3
    with pytest.raises(NonFiniteError, match="stopped at step 1 with 0 samples seen"):
        one.step()
    assert (one.seen, one.drawn, one.skipped) == (0, 24, 3)


def test_patience_counts_skips_in_a_row():
    one = trainer([bad_in_step(trainer(), k) for k in (0, 2, 4)], guard=Guard(patience=1))
    verdicts = [one.step().verdict for _ in range(5)]
    assert verdicts == [StepVerdict.SKIP, StepVerdict.APPLY, StepVerdict.SKIP, StepVerdict.APPLY, StepVerdict.SKIP]


@pytest.mark.parametrize(
    ("spread", "batch", "passes", "ratio"),
    [
        ({}, 8, 8, 1),
        ({}, 16, 16, 2),
        ({}, 4, 4, 0.5),
        ({"micro": 4}, 16, 4, 1),
        ({"devices": 2}, 16, 8, 2),
        ({"micro": 4}, 2, 2, 0.5),
    ],
)
def test_batch_norm_keeps_its_half_life_in_samples_of_a_pass(spread, batch, passes, ratio):
    one = trainer()
    one = Trainer(one.run, one.recipe.model_copy(update={"batch": one.recipe.batch.model_copy(update=spread)}))
    norm, first = one.run.model.norm, one.run.model.first
    truth, m = torch.zeros(4, dtype=torch.double), 1 - 0.9**ratio
    x = one.run.samples[one.order.indices(0, batch)][0]
    with torch.no_grad():
        for part in first(x).split(passes):
            truth = (1 - m) * truth + m * part.mean(0)
    one.step(batch)
    assert norm.momentum == pytest.approx(m)
    torch.testing.assert_close(norm.running_mean, truth)


def test_evaluation_gives_both_models_and_leaves_the_raw_one_in_place():
    made = recipe(task="digits-cnn", data_size=1437, batch={"size": 16}, batch_norm={"momentum": 0.1})
    one = Trainer(make_run(made, 0), made)
    one.train_to(320)
    before = everything(one)
    found = one.evaluate()
    assert found.keys() == {"raw", "average"}
    assert found["raw"].keys() == {"loss", "accuracy"}
    assert found["raw"]["loss"] != found["average"]["loss"]
    assert found == one.evaluate()
    assert same(before, everything(one))
    assert one.run.model.training


def test_an_exception_in_the_evaluation_leaves_the_raw_weights_in_place():
    one = trainer()
    for _ in range(5):
        one.step()
    calls = []

    def metrics(net):
        calls.append(net.last.weight.detach().clone())
        if len(calls) == 2:
            raise RuntimeError("boom")
        return {"loss": 1.0}

    one.run.metrics = metrics
    before = everything(one)
    with pytest.raises(RuntimeError, match="boom"):
        one.evaluate()
    assert not torch.equal(*calls)
    assert same(before, everything(one))
    assert one.run.model.training
    one.step()


def test_without_an_average_only_the_raw_model_is_evaluated():
    one = trainer(ema=None)
    one.step()
    assert one.evaluate() == {"raw": {"loss": 1.0}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_the_guard_sees_every_bad_element_and_changes_no_value(dtype):
    edges = torch.tensor([-0.0, 1.0, -3.5, 6e-8, 6e4], dtype=torch.float32)
    tensors = [edges.to(dtype), torch.ones(2, 3, dtype=dtype).t(), torch.zeros((), dtype=dtype)]
    if not dtype.is_complex:
        # all but the largest number: a norm would overflow, the check does not
        tensors.append(torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).tiny / 2], dtype=dtype))
    before = [t.clone() for t in tensors]
    assert all_finite(tensors)
    for t, kept in zip(tensors, before, strict=True):
        assert torch.equal(t, kept)
        assert dtype.is_complex or torch.equal(torch.signbit(t), torch.signbit(kept))
    for value in (math.nan, math.inf, -math.inf):
        for number, t in enumerate(before):
            spoiled = [kept.clone() for kept in before]
            spoiled[number][(-1,) * t.dim()] = value
            assert not all_finite(spoiled), (value, number)
    assert all_finite([])
