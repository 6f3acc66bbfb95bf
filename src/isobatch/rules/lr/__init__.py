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


def lr_rule(row: OptimizerRow, word: str = "auto", *, kept: bool = False) -> Rule:
    """Return the learning-rate rule of an optimizer.

    Args:
        row: the optimizer's row.
        word: of a recipe's rules.lr.
        kept: whether its averages of the gradient are kept per step.

    Returns:
        The rule; of no confidence where the averages move in a way that it does not expect.

    Example:
        >>> lr_rule(OPTIMIZERS["adamw"]).formula
        'sqrt(kappa)*eta'
    """
    own = row.lr_kept if kept and row.lr_kept else row.lr
    rule = LEARNING_RATES[own if word == "auto" else word].rule(row)
    if not row.normalises_after or word == "auto" or word not in (row.lr, row.lr_kept) or word == own:
        return rule
    how, right = ("kept per step", "a square root") if kept else ("moved with the batch", "a linear one")
    because = f"the averages are {how}, beside which {right} keeps the run; this rate is another run"
    return rule.but(because=because, source="derived", confidence=Confidence.UNKNOWN)
