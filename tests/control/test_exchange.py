import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.control import seesaw, smith
from isobatch.errors import InputError
from isobatch.plan import Recipe, scaled
from isobatch.rules import Confidence


def recipe(name="sgd", shape="cosine", warmup="0 samples", length="8000 samples", size=8, **more):
    return Recipe.parse(
        {
            "batch": {"size": size},
            "optimizer": {"name": name, "lr": 0.1},
            "schedule": {"length": length, "warmup": warmup, "shape": shape},
        }
        | more
    )


def steps(exchange, length):
    return [exchange.batches.step_range(k, length) for k in range(exchange.batches.steps(length))]


def test_smith_raises_the_batch_at_milestones_and_keeps_the_learning_rate():
    own = recipe(shape="constant", size=128, length="200 epochs", data_size=50_000)
    exchange = smith(own, most=20_000, milestones=[("60 epochs", 0.2), ("120 epochs", 0.2), ("160 epochs", 0.2)])
    assert [batch for _, batch in exchange.batches.stages] == [128, 640, 3200, 16000]
    for samples in steps(exchange, 200 * 50_000)[:-1]:
        crosses = any(samples.start < cut * 50_000 < samples.stop for cut in (60, 120, 160))
        assert crosses or exchange.lr_factor(samples.start, samples.stop) == pytest.approx(1.0, rel=1e-9)
    small, large = exchange.batches.steps(10**7), math.ceil(10**7 / 128)
    assert small / large == pytest.approx(0.3 + 0.3 / 5 + 0.2 / 25 + 0.2 / 125, rel=1e-3)
    assert exchange.rule.confidence is Confidence.DERIVED


def test_seesaw_halves_its_learning_rate_by_the_root_and_doubles_the_batch():
    own = recipe("adamw", shape="constant")
    exchange = seesaw(own, most=64, milestones=[("4000 samples", 0.5), ("6000 samples", 0.5)])
    assert exchange.batches.stages == ((0, 8), (4000, 16), (6000, 32))
    factors = [exchange.lr_factor(start, start + exchange.batches.at(start)) for start in (0, 4000, 6016)]
    assert factors == pytest.approx([1.0, 0.5**0.5, 0.5], rel=1e-9)
    assert exchange.rule.confidence is Confidence.CONVENTION
    assert not exchange.by_plan  # the recipe's own schedule knows nothing of the milestones


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", ["0 samples", "800 samples"])
def test_smith_keeps_the_sum_of_lr_and_stays_near_the_peak(shape, warmup):
    own = recipe(shape=shape, warmup=warmup, length="80_000 samples")
    exchange, stairs, total = smith(own, most=64, cut=0.8), own.staircase(), 0.0
    lr_sum = [0.0, *np.cumsum([stairs.at(sample) / 8 for sample in range(80_000)])]
    at_most = exchange.batches.stages[-1]
    assert at_most[1] == 64
    for samples in steps(exchange, 80_000):
        factor = exchange.lr_factor(samples.start, samples.stop)
        total += factor
        assert total == pytest.approx(lr_sum[samples.stop], rel=1e-9)
        if stairs.warmup <= samples.start and samples.stop <= at_most[0]:
            assert 0.75 < factor < 1.1
    assert exchange.batches.at(int(stairs.warmup)) == 8


@settings(max_examples=100, deadline=None)
@given(
    cut=st.floats(0.05, 0.95),
    most=st.integers(8, 2000),
    grain=st.sampled_from([1, 2, 4, 8]),
    shape=st.sampled_from(["linear", "cosine"]),
    final=st.sampled_from([0.0, 0.1, 0.5]),
    warmup=st.sampled_from([400, 7000]),
)
def test_batches_rise_on_the_grain_up_to_the_limit(cut, most, grain, shape, final, warmup):
    own = recipe(shape=shape, warmup=f"{warmup} samples")
    own = own.model_copy(update={"schedule": own.schedule.model_copy(update={"final": final})})
    exchange, stairs = smith(own, most=most, cut=cut, grain=grain), own.staircase()
    batches = [batch for _, batch in exchange.batches.stages]
    assert batches == sorted(batches)
    assert batches[0] == 8
    assert all(batch % grain == 0 and batch <= most for batch in batches)
    for start, batch in exchange.batches.stages[1:]:
        assert stairs.at(start) <= 8 / batch * (1 + grain / batch) + 1e-9
        assert start >= warmup


@pytest.mark.parametrize(("make", "name"), [(smith, "sgd"), (seesaw, "adamw"), (smith, "invariant-adamw")])
def test_beside_the_rule_of_its_optimizer_each_is_what_the_plan_does(make, name):
    own = recipe(name, rules={"betas": "keep"})
    exchange = make(own, most=256)
    assert exchange.by_plan
    for samples in steps(exchange, 8000):
        planned = scaled(own, len(samples)).lr * own.staircase().mean(samples.start, samples.stop)
        assert 0.1 * exchange.lr_factor(samples.start, samples.stop) == pytest.approx(planned, rel=1e-12)


@pytest.mark.parametrize(("make", "name"), [(smith, "adamw"), (seesaw, "sgd")])
def test_beside_another_rule_the_confidence_is_unknown(make, name):
    exchange = make(recipe(name), most=256)
    assert exchange.rule.confidence is Confidence.UNKNOWN
    assert not exchange.by_plan
    kept = make(recipe(name, rules={"lr": "keep"}), most=256)
    assert kept.rule.confidence is Confidence.UNKNOWN


def test_a_rule_chosen_in_the_recipe_counts():
    assert smith(recipe("adamw", rules={"lr": "linear"}), most=64).by_plan
    assert seesaw(recipe("sgd", rules={"lr": "sqrt"}), most=64).by_plan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smith(recipe(), most=4), "most=4 must be at least batch.size=8"),
        (lambda: smith(recipe(), most=0), "most=0 must be at least 1"),
        (lambda: smith(recipe(), most=64, cut=1.0), r"cut=1 must be in \(0, 0.999\]"),
        (lambda: smith(recipe(), most=64, cut=float("nan")), "cut=nan must be finite"),
        (lambda: smith(recipe(), most=64, grain=3), "batch.size=8 must be a multiple of grain=3; nearest: 6 or 9"),
        (lambda: smith(recipe(shape="constant"), most=64), 'schedule.shape="constant" never falls'),
        (lambda: smith(recipe(), most=64, milestones=[("10 samples", 0.5)]), 'shape="cosine" falls already'),
        (
            lambda: seesaw(recipe(shape="constant", warmup="80 samples"), most=64, milestones=[("79 samples", 0.5)]),
            r"must rise, after the warm-up \(80 samples\) and before the end \(8000\)",
        ),
        (lambda: seesaw(recipe(shape="constant"), most=64, milestones=[("0 samples", 0.5)]), "must rise"),
        (lambda: seesaw(recipe(shape="constant"), most=64, milestones=[("9 samples", 1.5)]), "milestone factor=1.5"),
        (
            lambda: smith(recipe(batch={"size": 8, "schedule": [["0 samples", 8]]}), most=64),
            "the recipe has a batch.schedule of its own",
        ),
        (
            lambda: smith(Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}}), most=64),
            r"the recipe has no \[schedule\]",
        ),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call()
