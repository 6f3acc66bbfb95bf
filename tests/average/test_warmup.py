"""Warm-ups and momentum schedules: exact over a step whatever the batches; those of other libraries by number."""

import json
import math

import numpy as np
import pytest
import torch
from tests.reference import averages as truth
from torch import nn

from isobatch.average import (
    CopyUntil,
    Debias,
    LinearRamp,
    ModelEMA,
    MomentumSchedule,
    Ramp,
    StepWarmup,
    cosine_momentum,
    crowson_warmup,
    diffusers_warmup,
    ema_pytorch_warmup,
    mmengine_warmup,
    tensorflow_warmup,
    timm_warmup,
    ultralytics_warmup,
)
from isobatch.curves import NoWarmup, warmup_from
from isobatch.curves.warmups import overlaps
from isobatch.errors import InputError

SAMPLE_CLOCK = [
    NoWarmup(),
    Ramp(0.09),
    LinearRamp(700),
    CopyUntil(300),
    Debias(),
    tensorflow_warmup(batch_size=8),
    crowson_warmup(power=0.75, batch_size=8),
    ultralytics_warmup(20, batch_size=8),
    mmengine_warmup(30, batch_size=8),
    diffusers_warmup(update_after_step=3, batch_size=8),
]


@pytest.mark.parametrize("warmup", SAMPLE_CLOCK, ids=str)
@pytest.mark.parametrize("half_life", [50.0, 5000.0])
def test_the_span_of_a_stretch_does_not_depend_on_its_batches(warmup, half_life):
    def total(batches, seen=400):
        found = 0.0
        for call, batch in enumerate(batches):
            found += warmup.spans(seen, batch, half_life, call)
            seen += batch
        return found

    whole = total([512])
    for batches in ([8] * 64, [1, 7, 13, 491], [256, 256]):
        assert total(batches) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(
    ("warmup", "H"),
    [
        (Ramp(0.09), lambda n: min(500.0, 0.09 * n)),
        (LinearRamp(3000), lambda n: 500.0 * min(1, n / 3000)),
        (Ramp(0.5), lambda n: min(500.0, 0.5 * n)),
    ],
    ids=["ramp", "linear", "steep"],
)
def test_spans_are_integrals_of_one_over_the_half_life(warmup, H):
    for seen, samples in ((10, 7), (900, 500), (2900, 400), (5500, 300), (8000, 10)):
        expected = truth.half_lives_by_riemann(H, seen, samples)
        assert warmup.spans(seen, samples, 500.0, 0) == pytest.approx(expected, rel=1e-6)


def test_the_first_update_of_a_ramp_copies():
    for warmup in (Ramp(), LinearRamp(100), CopyUntil(1)):
        assert warmup.spans(0, 8, 500.0, 0) == math.inf


@pytest.mark.parametrize("half_life", [30.0, 1e9, math.inf])
def test_a_debiased_average_forgets_the_weights_at_the_start(half_life):
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 1e6)
    ema = ModelEMA(module, half_life=half_life, warmup=Debias())
    seen, numerator, denominator = 0, 0.0, 0.0
    for j, batch in enumerate([8, 3, 21, 8, 40]):
        nn.init.constant_(module.weight, float(j))
        ema.update(samples=batch)
        rho, rest = (1.0, float(batch)) if half_life == math.inf else (0.5 ** (batch / half_life), None)
        share = rest if rest is not None else -math.expm1(-batch / half_life * math.log(2))
        numerator, denominator = rho * numerator + share * j, rho * denominator + share
        seen += batch
    assert ema.average()["weight"].item() == pytest.approx(numerator / denominator, rel=1e-9)


def test_a_ramp_without_end_is_a_share_of_the_progress():
    module = nn.Linear(1, 1, bias=False).double()
    ema = ModelEMA(module, half_life=math.inf, warmup=Ramp(0.05))
    for _ in range(400):
        ema.update(samples=8)
    tau = 0.05 / math.log(2)
    assert (ema.report().mean_age + 8 / 2) / ema.seen == pytest.approx(tau / (1 + tau), rel=0.002)


# Decays of each library's own formula, per call.
@pytest.mark.parametrize(
    ("warmup", "formula"),
    [
        (tensorflow_warmup(), lambda n: min(0.99, (2 + n) / (11 + n))),
        (crowson_warmup(power=0.7), lambda n: min(0.99, 1 - (1 + n) ** -0.7)),
        (crowson_warmup(inv_gamma=5, min_decay=0.3), lambda n: max(min(0.99, 1 - (1 + n / 5) ** (-2 / 3)), 0.3)),
        (ema_pytorch_warmup(update_after_step=0), lambda n: 0.0 if n == 0 else min(0.99, 1 - (1 + n) ** (-2 / 3))),
        (ema_pytorch_warmup(), lambda n: 0.0 if n <= 100 else min(0.99, 1 - (n - 99) ** (-2 / 3))),
        (timm_warmup(warmup_power=0.7), lambda n: 0.0 if n < 2 else min(0.99, 1 - n**-0.7)),
        (ultralytics_warmup(10), lambda n: 0.99 * (1 - math.exp(-(n + 1) / 10))),
        (mmengine_warmup(30), lambda n: 1 - max(0.01, 30 / (30 + n))),
        (diffusers_warmup(), lambda n: 0.0 if n == 0 else min(0.99, (1 + n) / (10 + n))),
        (diffusers_warmup(use_ema_warmup=True), lambda n: 0.0 if n == 0 else min(0.99, 1 - (1 + n) ** (-2 / 3))),
    ],
    ids=lambda v: str(v) if isinstance(v, StepWarmup) else "",
)
def test_step_warmups_have_the_numbers_of_their_libraries(warmup, formula):
    half_life = 8 * math.log(0.5) / math.log(0.99)
    for n in range(200):
        assert 2 ** -warmup.spans(n * 8, 8, half_life, n) == pytest.approx(formula(n), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "make", [tensorflow_warmup, crowson_warmup, timm_warmup, ultralytics_warmup, mmengine_warmup, diffusers_warmup]
)
def test_reference_steps_at_the_reference_batch_are_the_calls(make):
    for n in range(50):
        spans = make().spans(n * 8, 8, 5000.0, n), make(batch_size=8).spans(n * 8, 8, 5000.0, 999)
        assert spans[0] == pytest.approx(spans[1], rel=1e-12)


@pytest.mark.parametrize("warmup", [*SAMPLE_CLOCK, StepWarmup("crowson", 2.0, 0.5, 1, 2, 0.1, 16)], ids=str)
def test_settings_go_through_json(warmup):
    assert warmup_from(json.loads(json.dumps(warmup.settings()))) == warmup


def test_an_unknown_warmup_is_refused():
    with pytest.raises(InputError, match="unknown"):
        warmup_from({"name": "Slow"})


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Ramp(0),
        lambda: LinearRamp(-1),
        lambda: CopyUntil(math.nan),
        lambda: StepWarmup("straight"),
        lambda: StepWarmup("crowson", power=0),
        lambda: StepWarmup("crowson", min_decay=2),
        lambda: StepWarmup("crowson", batch_size=0),
        lambda: cosine_momentum(1.1, 1.0, length=10, batch_size=1),
        lambda: cosine_momentum(0.9, 1.0, length=0, batch_size=1),
        lambda: MomentumSchedule(lambda j: 0.9, batch_size=-1),
        lambda: MomentumSchedule(lambda j: 1.5, batch_size=1).half_life(0, 1),
        lambda: MomentumSchedule(lambda j: math.nan, batch_size=1).half_life(0, 1),
        lambda: MomentumSchedule(lambda j: 0.9, batch_size=1).half_life(-1, 1),
    ],
)
def test_bad_values_are_refused(bad):
    with pytest.raises(InputError):
        bad()


@pytest.mark.parametrize(("seen", "samples"), [(0, 8), (0, 128), (5, 3), (5, 60), (795, 30), (2000, 64)])
def test_cosine_momentum_is_the_mean_log_decay_over_the_step(seen, samples):
    schedule = cosine_momentum(0.996, 1.0, length=800, batch_size=8)
    found = -math.log(2) / schedule.half_life(seen, samples) * 8
    expected = truth.mean_log_decay(
        lambda j: 1 - 0.004 * (math.cos(math.pi * min(1, j / 100)) + 1) / 2, 8, seen, samples
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-15)


def test_momentum_at_the_reference_batch_is_the_schedule():
    schedule = cosine_momentum(0.9, 1.0, length=80, batch_size=8)
    for j in range(12):
        tau = 1 - 0.1 * (math.cos(math.pi * min(1, j / 10)) + 1) / 2
        assert 0.5 ** (8 / schedule.half_life(8 * j, 8)) == pytest.approx(tau, rel=1e-12)
    assert schedule.half_life(80, 8) == math.inf
    assert MomentumSchedule(lambda j: 0.0, batch_size=8).half_life(0, 8) == 0.0


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (3, 5), (5, 29), (8, 16), (0.5, 100.25)])
def test_overlaps_cover_the_interval_once(start, stop):
    steps = overlaps(start, stop, 8)
    assert sum(share for _, share in steps) == pytest.approx((stop - start) / 8)
    assert all(0 < share <= 1 for _, share in steps)
    assert np.all(np.diff([j for j, _ in steps]) == 1)


def test_a_momentum_of_one_leaves_the_average_alone():
    module = nn.Linear(2, 2)
    ema = ModelEMA(module, half_life=10)
    kept = ema.average()["weight"].clone()
    nn.init.zeros_(module.weight)
    ema.update(samples=8, half_life=math.inf)
    assert torch.equal(ema.average()["weight"], kept)
    ema.update(samples=8, half_life=0)
    assert torch.equal(ema.average()["weight"], module.weight)
