"""Every kind of average, one battery: float64 reference, resume, NaN, exceptions, batch changes, JSON."""

import json
import math

import numpy as np
import pytest
import torch
from tests.average.kinds import ALL, BATCHES, KINDS, model, snapshot, step
from tests.reference import averages as truth

from isobatch.average import ModelEMA, SwitchEMA
from isobatch.errors import InputError, NonFiniteError

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
every_kind = pytest.mark.parametrize("kind", ALL, ids=lambda k: k.name)


def train(kind, steps=12, first=0, module=None, average=None, **options):
    module = model() if module is None else module
    average = kind.make(module, **options) if average is None else average
    for j in range(first, steps):
        step(module, j)
        average.update(samples=BATCHES[j])
    return module, average


def copied(state):
    return {
        "tensors": {k: t.clone() for k, t in state["tensors"].items()},
        "values": json.loads(json.dumps(state["values"])),
    }


@kinds
def test_agrees_with_the_slow_reference_when_the_batch_changes_at_every_call(kind):
    module = model()
    average = kind.make(module)
    theta = [snapshot(module)]
    for j, batch in enumerate(BATCHES):
        step(module, j)
        average.update(samples=batch)
        theta.append(snapshot(module))
    for name, value in average.average(kind.which).items():
        expected = kind.reference([t[name] for t in theta], BATCHES)
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=2e-9 if kind.name == "ramp" else 1e-12)


def test_switch_writes_the_average_back_at_multiples_of_its_samples():
    module = model()
    switch = SwitchEMA(ModelEMA(module, half_life=50), every=64, share=0.5)
    name, zeta, seen = "0.weight", snapshot(module)["0.weight"], 0
    for j, batch in enumerate(BATCHES):
        step(module, j)
        theta = snapshot(module)[name]
        switch.update(samples=batch)
        rho = 0.5 ** (batch / 50)
        zeta = rho * zeta + (1 - rho) * theta
        if (seen + batch) // 64 > seen // 64:
            theta = 0.5 * theta + 0.5 * zeta
        seen += batch
        np.testing.assert_allclose(snapshot(module)[name], theta, atol=1e-12)
        np.testing.assert_allclose(switch.average()[name].numpy(), zeta, atol=1e-12)


def test_switch_applies_what_a_cadence_holds_back():
    module = model()
    switch = SwitchEMA(ModelEMA(module, half_life=50, cadence=10), every=16)
    theta = [snapshot(module)]
    for j in range(2):
        step(module, j)
        theta.append(snapshot(module))
        switch.update(samples=8)
    expected = truth.ema_every([t["0.weight"] for t in theta], [8, 8], 50, 2)
    np.testing.assert_allclose(snapshot(module)["0.weight"], expected, atol=1e-12)


@every_kind
@pytest.mark.parametrize("cut", [0, 1, 4, 7, 11])
def test_resume_is_bit_exact(kind, cut):
    whole_module, whole = train(kind)
    module, average = train(kind, steps=cut + 1)
    state, weights = copied(average.state_dict()), {n: t.clone() for n, t in module.state_dict().items()}
    module = model(seed=99)
    module.load_state_dict(weights)
    resumed = kind.make(module)
    resumed.load_state_dict(state)
    train(kind, first=cut + 1, module=module, average=resumed)
    assert resumed.seen == whole.seen == sum(BATCHES)
    first, second = whole.state_dict(), resumed.state_dict()
    assert first["values"] == second["values"]
    assert first["tensors"].keys() == second["tensors"].keys()
    assert all(torch.equal(t, second["tensors"][k]) for k, t in first["tensors"].items())
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in whole_module.state_dict().items())


@every_kind
def test_two_resumes_equal_none(kind):
    _, whole = train(kind)
    module, average = train(kind, steps=3)
    for upto in (6, len(BATCHES)):
        again = kind.make(module)
        again.load_state_dict(copied(average.state_dict()))
        first = 3 if upto == 6 else 6
        module, average = train(kind, steps=upto, first=first, module=module, average=again)
    tensors = average.state_dict()["tensors"]
    assert all(torch.equal(t, tensors[k]) for k, t in whole.state_dict()["tensors"].items())


def update_until_applied(average):
    for _ in range(9):
        average.update(samples=64)


@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_are_refused_and_change_nothing(kind, bad):
    module, average = train(kind)
    kept, weights = copied(average.state_dict()), {n: t.clone() for n, t in module.state_dict().items()}
    with torch.no_grad():
        module[2].bias[1] = bad
    with pytest.raises(NonFiniteError, match=r"2\.bias") as error:
        update_until_applied(average)
    assert error.value.parameter == "2.bias"
    after = average.state_dict()
    assert all(torch.equal(t, after["tensors"][k]) for k, t in kept["tensors"].items())
    module.load_state_dict(weights)
    update_until_applied(average)
    assert all(bool(torch.isfinite(t).all()) for t in average.average(kind.which).values())


def test_a_refused_update_leaves_the_clock_as_it_was():
    module = model()
    ema = ModelEMA(module, half_life=50)
    ema.update(samples=8)
    kept = ema.state_dict()["values"]
    with torch.no_grad():
        module[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        ema.update(samples=8)
    assert ema.state_dict()["values"] == kept


@every_kind
def test_averaged_weights_are_lent_and_taken_back_also_after_an_exception(kind):
    module, average = train(kind)
    raw = {n: t.clone() for n, t in module.state_dict().items()}
    pointers = [p.data_ptr() for p in module.parameters()]
    expected = {n: t.clone() for n, t in average.average(kind.which).items()}

    def evaluate():
        with average.applied(module, kind.which):
            assert all(torch.equal(p, expected[n]) for n, p in module.named_parameters())
            module.train()(torch.randn(5, 3, dtype=torch.float64))
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        evaluate()
    assert all(torch.equal(raw[n], t) for n, t in module.state_dict().items())
    assert pointers == [p.data_ptr() for p in module.parameters()]
    assert all(torch.equal(t, expected[n]) for n, t in average.average(kind.which).items())
    average.update(samples=8)


@every_kind
def test_nothing_is_saved_or_updated_while_the_average_is_lent(kind):
    module, average = train(kind)
    with average.applied(module, kind.which):
        for forbidden in (average.state_dict, lambda: average.update(samples=8), average.reset):
            with pytest.raises(InputError, match="leave the"):
                forbidden()
        with pytest.raises(InputError, match="leave the"), average.applied(module, kind.which):
            pass


@every_kind
def test_average_model_is_a_separate_copy(kind):
    module, average = train(kind)
    copy = average.average_model(kind.which)
    expected = {n: t.clone() for n, t in average.average(kind.which).items()}
    step(module, 50)
    average.update(samples=64)
    assert all(torch.equal(p, expected[n]) and not p.requires_grad for n, p in copy.named_parameters())
    assert not copy.training
    assert torch.equal(copy[1].running_var, module[1].running_var)


@every_kind
def test_the_average_is_written_into_a_model_for_good(kind):
    module, average = train(kind)
    other = model(torch.float32, seed=3)
    expected = {n: t.clone() for n, t in average.average(kind.which).items()}
    average.copy_to(other, kind.which)
    assert all(torch.equal(p, expected[n].float()) for n, p in other.named_parameters())
    average.copy_to(module, kind.which)
    assert all(torch.equal(p, expected[n]) for n, p in module.named_parameters())


@every_kind
def test_an_attached_average_follows_the_optimizer(kind):
    module, called = train(kind, steps=4)
    module = model()
    average = kind.make(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    batches = iter(BATCHES)
    handle = average.attach(optimizer, lambda: next(batches))
    for j in range(4):
        step(module, j)
        optimizer.step()
    with pytest.raises(InputError, match="follows this optimizer already"):
        average.attach(optimizer, 8)
    handle.remove()
    optimizer.step()
    tensors = called.state_dict()["tensors"]
    assert all(torch.equal(t, tensors[k]) for k, t in average.state_dict()["tensors"].items())
    average.attach(optimizer, 8).remove()
    average.attach(torch.optim.SGD(module.parameters(), lr=0.0), 8)


@every_kind
def test_state_separates_tensors_from_json(kind):
    _, average = train(kind)
    state = average.state_dict()
    assert all(isinstance(t, torch.Tensor) for t in state["tensors"].values())
    assert json.loads(json.dumps(state["values"], allow_nan=False))["class"] == type(average).__name__


@every_kind
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "8"])
def test_bad_samples_are_refused(kind, bad):
    _, average = train(kind, steps=1)
    with pytest.raises(InputError, match="samples"):
        average.update(samples=bad)
    assert average.seen == BATCHES[0]


@every_kind
def test_report_counts_the_clock(kind):
    _, average = train(kind)
    report = average.report(kind.which)
    assert report.seen == sum(BATCHES)
    assert 0 <= report.mean_age <= report.seen
    assert report.distance > 0


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.name in ("ema", "horizon 1", "power", "tail")], ids=lambda k: k.name
)
def test_one_large_update_equals_small_ones_while_the_weights_stand_still(kind):
    def run(batches):
        module = model()
        average = kind.make(module)
        step(module, 0)
        average.update(samples=64)
        step(module, 1)
        for batch in batches:
            average.update(samples=batch)
        return average.average(kind.which)

    large, small = run([128]), run([1, 3, 60, 64])
    for name, value in large.items():
        torch.testing.assert_close(value, small[name], rtol=0, atol=1e-12)
