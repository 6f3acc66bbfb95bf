"""Recipes as data: what a file says, checked by itself, with every span in samples."""

from isobatch.recipe.augmentation import Adversary, Augment
from isobatch.recipe.autowu import Search
from isobatch.recipe.averages import LAWS, Average, EmaRamp
from isobatch.recipe.critical import Critical
from isobatch.recipe.curves import MOVED, Curve, Segment, in_samples
from isobatch.recipe.data import RecipeData
from isobatch.recipe.groups import Group
from isobatch.recipe.loading import read_toml, validate
from isobatch.recipe.parts import (
    Adaptive,
    Batch,
    BatchNorm,
    Noise,
    Optimizer,
    Part,
    Rules,
    Schedule,
)
from isobatch.recipe.split import Split, asked_size, split_kept
from isobatch.recipe.stamp import Planned
from isobatch.recipe.writing import toml_text

__all__ = [
    "LAWS",
    "MOVED",
    "Adaptive",
    "Adversary",
    "Augment",
    "Average",
    "Batch",
    "BatchNorm",
    "Critical",
    "Curve",
    "EmaRamp",
    "Group",
    "Noise",
    "Optimizer",
    "Part",
    "Planned",
    "RecipeData",
    "Rules",
    "Schedule",
    "Search",
    "Segment",
    "Split",
    "asked_size",
    "in_samples",
    "read_toml",
    "split_kept",
    "toml_text",
    "validate",
]
