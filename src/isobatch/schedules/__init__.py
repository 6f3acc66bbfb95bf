"""Schedules: functions of the samples seen."""

from isobatch.schedules.legw import Legw
from isobatch.schedules.staircase import SHAPES, DecaySchedule, Staircase

__all__ = ["SHAPES", "DecaySchedule", "Legw", "Staircase"]
