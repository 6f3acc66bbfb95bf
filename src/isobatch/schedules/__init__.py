"""Schedules: functions of the samples seen."""

from isobatch.schedules.adascale import AdaScale
from isobatch.schedules.autowu import AutoWU, Growth, Look, interval_for
from isobatch.schedules.legw import Legw
from isobatch.schedules.staircase import SHAPES, DecaySchedule, Staircase

__all__ = ["SHAPES", "AdaScale", "AutoWU", "DecaySchedule", "Growth", "Legw", "Look", "Staircase", "interval_for"]
