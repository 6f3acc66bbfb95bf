"""Learning-rate rules: every file of this folder that holds a `CHOICE` is one word of a recipe's rules.lr."""

from importlib import import_module
from pathlib import Path

from isobatch.rules.optimizers import OPTIMIZERS
from isobatch.rules.rule import Confidence, LearningRate, OptimizerRow, Rule

__all__ = ["LEARNING_RATES", "lr_rule"]

_FILES = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
_FOUND = [import_module(f"{__name__}.{name}") for name in _FILES]
_SURE = list(Confidence)


def _best(choice: LearningRate) -> int:
    """Rank a choice by the best that it can promise."""
    return min(_SURE.index(choice.rule(row).confidence) for row in OPTIMIZERS.values())


LEARNING_RATES: dict[str, LearningRate] = {
    choice.word: choice for choice in sorted((module.CHOICE for module in _FOUND), key=_best)
}
"""Word -> choice, the surest first. "auto" is the optimizer's own."""


def lr_rule(row: OptimizerRow, word: str = "auto") -> Rule:
    """Return the learning-rate rule of an optimizer.

    Args:
        row: the optimizer's row.
        word: of a recipe's rules.lr.

    Returns:
        The rule.

    Example:
        >>> lr_rule(OPTIMIZERS["adamw"]).formula
        'sqrt(kappa)*eta'
    """
    return LEARNING_RATES[row.lr if word == "auto" else word].rule(row)
