"""One row per kind of average: a row earns the whole battery of test_kinds.py."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tests.reference import averages as truth
from torch import nn

from isobatch.average import (
    LAWA,
    SWA,
    LinearRamp,
    ModelEMA,
    MultiEMA,
    PowerEMA,
    SwitchEMA,
)

BATCHES = [8, 8, 24, 7, 1, 16, 64, 8, 13, 3, 8, 8]


@dataclass(frozen=True)
class Kind:
    name: str
    make: Any  # (model, **storage options) -> average
    which: float | None
    reference: Any  # (theta, B) -> zeta


KINDS = [
    Kind("ema", lambda m, **k: ModelEMA(m, half_life=50, **k), None, lambda t, B: truth.ema(t, B, 50)),
    Kind(
        "ema decay",
        lambda m, **k: ModelEMA(m, decay=0.9, batch_size=8, **k),
        None,
        lambda t, B: truth.ema(t, B, 8 * np.log(0.5) / np.log(0.9)),
    ),
    Kind(
        "ema cadence",
        lambda m, **k: ModelEMA(m, half_life=50, cadence=3, **k),
        None,
        lambda t, B: truth.ema_every(t, B, 50, 3),
    ),
    Kind(
        "hold",
        lambda m, **k: ModelEMA(m, decay=0.9, batch_size=4, kind="hold", **k),
        None,
        lambda t, B: truth.hold(t, B, 0.9, 4),
    ),
    Kind(
        "ramp",
        lambda m, **k: ModelEMA(m, half_life=50, warmup=LinearRamp(60), **k),
        None,
        lambda t, B: truth.ema(t, B, _ramped(B, 50, 60)),
    ),
    Kind("horizon 1", lambda m, **k: MultiEMA(m, half_lives=[20, 50, 300], **k), 20, lambda t, B: truth.ema(t, B, 20)),
    Kind(
        "horizon 3", lambda m, **k: MultiEMA(m, half_lives=[20, 50, 300], **k), 300, lambda t, B: truth.ema(t, B, 300)
    ),
    Kind(
        "horizon hold",
        lambda m, **k: MultiEMA(m, decays=[0.9, 0.99], batch_size=4, kind="hold", **k),
        4 * np.log(0.5) / np.log(0.99),
        lambda t, B: truth.hold(t, B, 0.99, 4),
    ),
    Kind(
        "power",
        lambda m, **k: PowerEMA(m, sigma_rels=[0.05, 0.1], **k),
        0.1,
        lambda t, B: truth.power(t, B, truth.gamma_of(0.1)),
    ),
    Kind("tail", lambda m, **k: SWA(m, start=60, **k), None, lambda t, B: truth.uniform_tail(t, B, 60)),
    Kind(
        "recent",
        lambda m, **k: LAWA(m, last=3, every=20, **k),
        None,
        lambda t, B: truth.recent_mean(t, B, 3, 20),
    ),
]

SWITCH = Kind("switch", lambda m, **k: SwitchEMA(ModelEMA(m, half_life=50, **k), every=64, share=0.5), None, None)
ALL = [*KINDS, SWITCH]


def _ramped(B, H, W):
    """Half-life per step that has the same exponent as the ramp; the first step copies."""
    found, n = [], 0
    for b in B:
        spans = np.inf if n == 0 else truth.half_lives_by_riemann(lambda x: H * min(1, x / W), n, b, 20_000)
        found.append(b / spans)
        n += b
    return found


def model(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def step(module, seed):
    """Stand for an optimizer step: weights move by noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype), alpha=0.1)


def snapshot(module):
    return {name: t.detach().to(torch.float64).numpy().copy() for name, t in module.named_parameters()}
