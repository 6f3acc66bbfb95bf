"""Plans: a recipe at another batch, every number beside the rule that moves it."""

from isobatch.plan.plan import Form, Plan, PlanWarning, Remedy, Row
from isobatch.plan.recipe import Recipe
from isobatch.plan.settings import Settings, base, coupling_of, moves, of_group, row_of, scaled
from isobatch.plan.warnings import remedies
from isobatch.recipe import (
    Adaptive,
    Adversary,
    Augment,
    Average,
    Batch,
    BatchNorm,
    Critical,
    Noise,
    Optimizer,
    Rules,
    Schedule,
    Search,
)

__all__ = [
    "Adaptive",
    "Adversary",
    "Augment",
    "Average",
    "Batch",
    "BatchNorm",
    "Critical",
    "Form",
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
    "coupling_of",
    "moves",
    "of_group",
    "remedies",
    "row_of",
    "scaled",
]
