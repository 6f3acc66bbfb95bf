"""The gradient noise scale with error bars: how large a batch is worth it."""

from isobatch.installed import need

need("torch")

from isobatch.noise.coupling import CoupledSamplesWarning
from isobatch.noise.estimate import NoiseEstimate, Verdict, judge, undefined
from isobatch.noise.hessian import local_lipschitz, measure_hessian
from isobatch.noise.interval import Spread, block_spread, blocked_spread, jackknife_spread, ratio_interval
from isobatch.noise.probe import measure
from isobatch.noise.scale import NoiseScale
from isobatch.noise.statistic import Moments, finite_data, moments, noise_scale, part_moments

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
