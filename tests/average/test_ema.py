"""ModelEMA: the sample clock, the interface, and the same average at any batch size."""

import math

import pytest
import torch
from torch import nn

from isobatch.average import ModelEMA
from isobatch.errors import InputError, NonFiniteError


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def drift(model, rate, steps=1):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(rate[name], alpha=steps)


def rates(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}


def test_hold_follows_small_steps_exactly_at_a_constant_rate():
    model = small()
    rate, ema = rates(model), ModelEMA(model, decay=0.9, batch_size=4, kind="hold")
    truth = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        for _ in range(8):
            drift(model, rate)
            for name, tensor in model.named_parameters():
                truth[name] = 0.9 * truth[name] + 0.1 * tensor.detach()
        ema.update(samples=32)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(tensor, truth[name], rtol=0, atol=1e-12)


def test_plain_is_rho_to_the_kappa():
    model = small()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ema = ModelEMA(model, decay=0.99, batch_size=8)
    drift(model, rates(model))
    ema.update(samples=100)
    rho = 0.99 ** (100 / 8)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(ema.average()[name], rho * before[name] + (1 - rho) * tensor.detach())


@pytest.mark.parametrize("kind", ["plain", "hold"])
def test_resume_is_bit_exact_in_the_middle_of_a_cadence(kind):
    def run(cut):
        model = small()
        rate = rates(model)
        ema = ModelEMA(model, half_life=100, kind=kind, cadence=3)
        for step in range(10):
            drift(model, rate)
            ema.update(samples=7 + step)
            if step == cut:
                state = ema.state_dict()
                ema = ModelEMA(model, half_life=100, kind=kind, cadence=3)
                ema.load_state_dict(state)
        return ema.average()

    for cut in (0, 1, 4):
        for name, tensor in run(None).items():
            assert torch.equal(tensor, run(cut)[name])


def test_non_finite_weights_are_refused_and_change_nothing():
    model = small()
    ema = ModelEMA(model, half_life=10)
    kept = {n: t.clone() for n, t in ema.average().items()}
    with torch.no_grad():
        model[2].bias[1] = math.nan
    with pytest.raises(NonFiniteError, match=r"2\.bias"):
        ema.update(samples=5)
    assert ema.seen == 0
    assert all(torch.equal(kept[n], t) for n, t in ema.average().items())


@pytest.mark.parametrize("bad", [{}, {"half_life": 1, "decay": 0.9}, {"decay": 0.9}, {"half_life": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError):
        ModelEMA(small(), **bad)
