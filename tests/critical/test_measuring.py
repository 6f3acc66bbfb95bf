"""The noise scale over a run, and the calibration ratio: on the quadratic both are known."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.recipes import recipe
from tests.reference import noise as slow

from isobatch import critical
from isobatch.critical import Goal, Hyperbola, Interval, Point, Sweep, measuring
from isobatch.critical.measuring import snapshot
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.tasks.text import ragged_lengths
from isobatch.train import Trainer

D, C, A = 4096, 0.004, 0.03


def task(**parts):
    whole = {
        "task": "quadratic", "data_size": D, "ema": None, "options": {"dimension": 1, "noise": C},
        "optimizer": {"lr": 0.5}, "schedule": {"length": "800 samples", "warmup": "0 samples", "shape": "linear"},
    }  # fmt: skip
    return recipe(**{**whole, **parts})


def fabricated(made, steps=(40.0, 42.0, 38.0), crit=(60.0, 40.0, 90.0)):
    """A sweep that found B_crit = 60."""
    value, low, high = crit
    fit = Hyperbola(Interval(20, 18, 22), Interval(20 * value, 900, 1500), Interval(value, low, high), 0.1, 5, 0.95)
    points = tuple(Point(b, 0.5, 40.0, 0.05, steps, False) for b in (16, 64, 256))
    return Sweep(made, "loss", (Goal(0.002, points, (), fit, ""),), len(steps), (), (), 1.0)


def test_a_snapshot_is_the_noise_over_the_squared_gradient():
    """B_simple = c/(a theta)^2 in one dimension, with the data set's own noise, and the run is left as it was."""
    made = task()
    trainer = Trainer(make_run(made, 0), made)
    trainer.train_to(80)
    theta = float(trainer.run.model.get_parameter("theta").detach())
    found = snapshot(trainer, 2048, 0)
    assert found.low < C / (A * theta) ** 2 < found.high
    assert str(found.verdict) == "identified"
    assert float(trainer.run.model.get_parameter("theta").detach()) == theta
    assert all(p.grad is None or math.isfinite(float(p.grad.sum())) for p in trainer.run.model.parameters())


@pytest.mark.parametrize("more", [{}, {"padded": True}])
def test_a_snapshot_counts_what_batches_count(more):
    """Ragged text in tokens: chunks weigh by their tokens, as steps do, and the data set is as large as an epoch."""
    options = {"width": 16, "layers": 1, "ragged": True, **more}
    made = recipe(task="text", ema=None, data_size=None, options=options, batch={"size": 512, "unit": "tokens"},
                  schedule={"length": "8192 tokens", "warmup": "0 tokens"})  # fmt: skip
    trainer = Trainer(make_run(made, 0), made)
    run, lengths = trainer.run, torch.full((8192,), 64) if more else ragged_lengths()
    parts = torch.randperm(8192, generator=torch.Generator().manual_seed(5))[:128].tensor_split(64)
    B_j, G_j = [int(lengths[part].sum()) for part in parts], []
    for part in parts:
        grads = torch.autograd.grad(run.loss(run.model, run.samples[part]), list(run.model.parameters()))
        G_j.append(torch.cat([g.flatten() for g in grads]).double().numpy())
    S = slow.trace_Sigma(G_j, B_j)
    G2 = slow.G_squared(G_j, B_j) + S / int(lengths.sum())
    found = snapshot(trainer, 128, 5)
    assert (found.trace, found.gradient_squared) == pytest.approx((S, G2), rel=1e-4)
    assert "tokens" in found.sentence


def test_readings_over_a_run_with_its_temperature():
    found = critical.measure(task(), marks=3, samples=2048)
    assert [r.seen for r in found.readings] == [0, 400, 800]
    assert [r.temperature for r in found.readings] == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
    first = found.readings[0]
    assert first.at_peak == first.value * first.temperature
    assert found.readings[1].value > first.value


def test_calibration_joins_both_errors():
    made = task()
    known = critical.calibrate(fabricated(made))
    assert (known.batch, known.low, known.high, known.samples) == (60, 40, 90, 1200)
    assert known.goal == "loss 0.002"
    assert known.ratio == pytest.approx(60 / known.noise_scale)
    assert known.noise_scale > C / A**2
    assert known.ratio_low / known.ratio <= 40 / 60
    assert known.ratio_high / known.ratio >= 90 / 60
    assert known.calibrated(known.noise_scale).batch == pytest.approx(60)


def test_one_seed_gives_a_ratio_without_an_interval():
    known = critical.calibrate(fabricated(task(), steps=(40.0,)))
    assert known.ratio is not None
    assert known.ratio_low is None


@pytest.mark.parametrize(("known", "ratio"), [(8, 60 / 4.5), (6, 60 / 3.5), (5, None), (1, None)])
def test_a_ratio_is_not_one_of_the_few_moments_that_happen_to_be_identified(monkeypatch, known, ratio):
    """The noise scale grows on the way, 1 to 8, and the late ones are too large to be told."""
    moments = iter(range(1, 9))

    def one(*_):
        value = next(moments)
        return SimpleNamespace(value=float(value), verdict="identified" if value <= known else "not identified")

    monkeypatch.setattr(measuring, "snapshot", one)
    found = critical.calibrate(fabricated(task(), steps=(40.0,)))
    assert (found.batch, found.ratio) == (60, None if ratio is None else pytest.approx(ratio))


def test_what_is_not_identified_is_not_stored():
    with pytest.raises(InputError, match="no goal of the sweep has an identified critical batch"):
        critical.calibrate(fabricated(task(), crit=(60.0, 10.0, 90.0)))


@pytest.mark.parametrize(("change", "message"), [
    ({"marks": 1}, "marks=1 must be at least 2"),
    ({"samples": 3}, "samples=3 must be at least 4"),
    ({"geometry": "other"}, "geometry"),
])  # fmt: skip
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        critical.measure(task(), **{"marks": 2, "samples": 16, **change})
