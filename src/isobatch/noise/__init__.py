"""The gradient noise scale with error bars: how large a batch is worth it."""

from isobatch.installed import need
from isobatch.renamed import old_names

need("torch")

from isobatch.noise.estimate import Identification, NoiseEstimate, judge, undefined
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
    "Identification",
    "Moments",
    "NoiseEstimate",
    "NoiseScale",
    "Spread",
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

__getattr__ = old_names("isobatch.noise", {"Verdict": "isobatch.noise.estimate.Identification"})
