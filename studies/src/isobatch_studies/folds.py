"""Digits in studies: each seed holds out one fold of all 1797 images, and settings are chosen on a validation part."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from isobatch.verify.workers import Curve
from isobatch_studies.paired import choose, last

FOLDS = 5
SELECTION_SEED = 1000
"""First seed of the runs that choose a setting; reported runs use 0, 1, ..."""


def fold_options(seed: int, train: int) -> dict[str, int]:
    """Return the options of the digits tasks under which seed s holds out fold s mod 5.

    Args:
        seed: of the run.
        train: images to train on; the rest of the training part is the validation part.

    Returns:
        Options "fold" and "validation".

    Example:
        >>> fold_options(7, 400)
        {'fold': 2, 'validation': 1038}
    """
    fold = seed % FOLDS
    return {"fold": fold, "validation": (1437 if fold < 2 else 1438) - train}


def selection_seeds(repeats: int) -> list[int]:
    """Return the seeds of the runs that choose a setting: `repeats` for every fold.

    Args:
        repeats: runs a fold and setting.

    Returns:
        Seeds; their remainder by five is the fold.
    """
    return [SELECTION_SEED + place for place in range(FOLDS * repeats)]


def chosen(
    curves: Mapping[str, Sequence[Curve]], settings: Iterable[float], arm: Callable[[float], str]
) -> dict[int, float]:
    """Return fold -> the setting of best mean validation accuracy; of equals the smallest.

    Args:
        curves: arm -> runs of the selection seeds.
        settings: that were tried.
        arm: name of a setting's arm.

    Returns:
        A setting for every fold.
    """
    scores: dict[int, dict[float, list[float]]] = {}
    for setting in settings:
        for curve in curves[arm(setting)]:
            found = scores.setdefault(curve.seed % FOLDS, {})
            found.setdefault(setting, []).append(last(curve, "validation_accuracy", 10.0))
    return {fold: choose(found) for fold, found in sorted(scores.items())}
