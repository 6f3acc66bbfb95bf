"""Recipes and plans."""

from isobatch.plan.parts import Average, Batch, BatchNorm, Optimizer, Rules, Schedule
from isobatch.plan.plan import Plan, PlanWarning, Row
from isobatch.plan.recipe import Recipe
from isobatch.plan.settings import Settings, base, scaled

__all__ = [
    "Average",
    "Batch",
    "BatchNorm",
    "Optimizer",
    "Plan",
    "PlanWarning",
    "Recipe",
    "Row",
    "Rules",
    "Schedule",
    "Settings",
    "base",
    "scaled",
]
