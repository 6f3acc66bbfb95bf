"""Curves: functions of the samples seen, used through their mean over the samples of a step."""

from isobatch.curves.autowu import AutoWU, Growth, Look, interval_for
from isobatch.curves.shapes import SHAPES, mean_over, shape, shape_of
from isobatch.curves.staircase import DecaySchedule, Staircase

__all__ = [
    "SHAPES",
    "AutoWU",
    "DecaySchedule",
    "Growth",
    "Look",
    "Staircase",
    "interval_for",
    "mean_over",
    "shape",
    "shape_of",
]
