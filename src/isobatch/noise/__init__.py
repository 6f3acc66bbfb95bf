"""The gradient noise scale with error bars: how large a batch is worth it."""

from isobatch.installed import need

need("torch")

from isobatch.noise.estimate import NoiseEstimate, Verdict, judge, undefined
from isobatch.noise.half_batches import CoupledSamplesWarning
from isobatch.noise.probe import local_lipschitz, measure, measure_hessian
from isobatch.noise.scale import NoiseScale
from isobatch.noise.statistic import (
    Moments,
    Spread,
    block_spread,
    blocked_spread,
    finite_data,
    jackknife_spread,
    moments,
    noise_scale,
    part_moments,
    ratio_interval,
)

__all__ = [
    "CoupledSamplesWarning",
    "Moments",
    "NoiseEstimate",
    "NoiseScale",
    "Spread",
    "Verdict",
    "block_spread",
    "blocked_spread",
    "finite_data",
    "jackknife_spread",
    "judge",
    "local_lipschitz",
    "measure",
    "measure_hessian",
    "moments",
    "noise_scale",
    "part_moments",
    "ratio_interval",
    "undefined",
]
