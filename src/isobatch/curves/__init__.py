"""Curves: functions of the samples seen, used through their mean over the samples of a step."""

from isobatch.curves.autowu import AutoWU, Growth, Look, interval_for
from isobatch.curves.pieces import WAYS, Piece, Pieces, ways
from isobatch.curves.ramps import RAMPS, exponent
from isobatch.curves.shapes import SHAPES, mean_over, shape, shape_of
from isobatch.curves.staircase import DecayCurve, DecaySchedule, Staircase, half_life_over
from isobatch.curves.warmups import CopyUntil, Debias, LinearRamp, NoWarmup, Ramp, StepWarmup, Warmup, warmup_from

__all__ = [
    "RAMPS",
    "SHAPES",
    "WAYS",
    "AutoWU",
    "CopyUntil",
    "Debias",
    "DecayCurve",
    "DecaySchedule",
    "Growth",
    "LinearRamp",
    "Look",
    "NoWarmup",
    "Piece",
    "Pieces",
    "Ramp",
    "Staircase",
    "StepWarmup",
    "Warmup",
    "exponent",
    "half_life_over",
    "interval_for",
    "mean_over",
    "shape",
    "shape_of",
    "warmup_from",
    "ways",
]
