"""Schedules: functions of the samples seen."""

from isobatch.schedules.staircase import SHAPES, DecaySchedule, Staircase

__all__ = ["SHAPES", "DecaySchedule", "Staircase"]
