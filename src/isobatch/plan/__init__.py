"""Recipes and plans."""

from isobatch.plan.calibration import Critical
from isobatch.plan.extras import Adversary, Augment
from isobatch.plan.parts import Adaptive, Average, Batch, BatchNorm, Noise, Optimizer, Rules, Schedule
from isobatch.plan.plan import Plan, PlanWarning, Row
from isobatch.plan.recipe import Recipe
from isobatch.plan.remedies import Remedy, remedies
from isobatch.plan.search import Search
from isobatch.plan.settings import Settings, base, scaled

__all__ = [
    "Adaptive",
    "Adversary",
    "Augment",
    "Average",
    "Batch",
    "BatchNorm",
    "Critical",
    "Noise",
    "Optimizer",
    "Plan",
    "PlanWarning",
    "Recipe",
    "Remedy",
    "Row",
    "Rules",
    "Schedule",
    "Search",
    "Settings",
    "base",
    "remedies",
    "scaled",
]
