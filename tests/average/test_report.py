"""What an average says about itself."""

import math

import pytest
import torch
from tests.average.kinds import model, step
from torch import nn

from isobatch.average import LAWA, SWA, Debias, ModelEMA, MultiEMA, PowerEMA, Ramp, SwitchEMA


def test_the_report_before_the_first_update():
    ema = ModelEMA(model(), half_life=10)
    report = ema.report()
    assert (report.half_life, report.share, report.distance, report.frozen_share) == (None, None, 0.0, 0.0)
    assert report.warnings == ()


@pytest.mark.parametrize("kind", ["plain", "hold"])
@pytest.mark.parametrize("cadence", [1, 3])
def test_mean_age_is_the_age_of_the_profile(kind, cadence):
    module = nn.Linear(1, 1, bias=False).double()
    ema = ModelEMA(module, half_life=100, kind=kind, cadence=cadence)
    nn.init.zeros_(module.weight)
    ema.reset()
    seen = 0
    for batch in (8, 3, 40, 8, 8, 21, 5):
        seen += batch
        with torch.no_grad():
            module.weight.fill_(float(seen))  # weights that tell their own time
        ema.update(samples=batch)
    report = ema.report()
    assert report.mean_age == pytest.approx(seen - ema.average()["weight"].item())
    assert report.pending == (5 if cadence == 3 else 0)


def test_effective_half_life_and_distance():
    module = model()
    ema = ModelEMA(module, half_life=777, cadence=2)
    for j in range(4):
        step(module, j)
        ema.update(samples=8)
    report = ema.report()
    live = dict(module.named_parameters())
    gap = math.sqrt(sum(float((t - live[n]).detach().square().sum()) for n, t in ema.average().items()))
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in live.values()))
    assert report.half_life == pytest.approx(777)
    assert report.distance == pytest.approx(gap)
    assert report.relative_distance == pytest.approx(gap / size)
    assert report.share == pytest.approx(1 - 0.5 ** (16 / 777))


def test_a_coarse_update_is_told():
    module = model()
    coarse, hold = ModelEMA(module, half_life=16), ModelEMA(module, half_life=16, kind="hold")
    for ema in (coarse, hold):
        ema.update(samples=16)
    assert "50% of the average" in coarse.report().warnings[0]
    assert hold.report().warnings == ()


def test_uniform_averages_tell_their_ages():
    module = model()
    tail, recent = SWA(module), LAWA(module, last=2, every=8)
    for j in range(4):
        step(module, j)
        tail.update(samples=8)
        recent.update(samples=8)
    assert tail.report().mean_age == pytest.approx((0 + 8 + 16 + 24) / 4)
    assert recent.report().mean_age == pytest.approx((0 + 8) / 2)


def test_a_watched_optimizer_is_counted():
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ema = ModelEMA(module, half_life=100)
    handle = ema.watch(optimizer)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(6):
        optimizer.step()
        ema.update(samples=8)
    assert ema.report().warnings == ()

    def twice():
        for _ in range(30):
            optimizer.step()
            ema.update(samples=4)
            ema.update(samples=4)

    with pytest.warns(UserWarning, match="exactly one optimizer step"):
        twice()
    assert "36 steps" in ema.report().warnings[0]
    handle.remove()


def test_steps_without_weights_that_change_at_all_are_not_reported():
    module = model()
    ema = ModelEMA(module, half_life=100)
    for _ in range(50):
        ema.update(samples=8)
    assert ema.report().warnings == ()


QUIET = {  # kinds whose early updates replace much of the average, as they should
    "mean of the tail": lambda m: SWA(m, start=16),
    "window": lambda m: LAWA(m, last=3, every=16),
    "power": lambda m: PowerEMA(m, sigma_rels=[0.1]),
    "ramp": lambda m: ModelEMA(m, half_life=10_000, warmup=Ramp(0.09)),
    "ramp for ever": lambda m: ModelEMA(m, half_life=math.inf, warmup=Ramp(0.05)),
    "debias": lambda m: ModelEMA(m, half_life=10_000, warmup=Debias()),
    "several in a ramp": lambda m: MultiEMA(m, half_lives=[10_000], warmup=Ramp(0.09)),
}
TOLD = {
    "one": lambda m: ModelEMA(m, half_life=16),
    "several": lambda m: MultiEMA(m, half_lives=[16]),
    "switched": lambda m: SwitchEMA(ModelEMA(m, half_life=16), every=32),
    "after its ramp": lambda m: ModelEMA(m, half_life=16, warmup=Ramp(0.9)),
}


@pytest.mark.parametrize("name", [*QUIET, *TOLD])
def test_only_a_half_life_that_stays_is_called_coarse(name):
    module = model()
    average = (QUIET | TOLD)[name](module)
    for j in range(4):
        step(module, j)
        average.update(samples=16)
    report = average.report()
    assert report.share > 0.1
    assert any("half-life spans only a few updates" in said for said in report.warnings) is (name in TOLD)
