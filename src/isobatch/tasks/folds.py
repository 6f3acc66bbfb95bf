"""Digits in five folds: every one of the 1797 images is held out once, and selection has a part of its own."""

from dataclasses import dataclass
from functools import cache

import torch

from isobatch.errors import InputError
from isobatch.installed import need
from isobatch.plan import Recipe
from isobatch.units import whole

FOLDS = 5
HELD_OUT = 360

Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Digits:
    """The digits as images (n, 64) in [0, 1] and labels (n,).

    Args:
        train: what a run learns from.
        held: what its metrics are measured on.
        validation: what settings are chosen by, None unless asked for.
        facts: how they were split.
    """

    train: Part
    held: Part
    validation: Part | None
    facts: dict[str, str]


def digits(settings: Recipe) -> Digits:
    """Return the digits as a recipe's options split them.

    Without options the split is the fixed one: 1437 train and 360 are held out. options.fold = 0..4 holds out one of
    five stratified folds instead; options.validation = n takes n samples out of the training part, whose metrics
    "validation_loss" and "validation_accuracy" choose settings while the fold held out stays unseen.

    Args:
        settings: the recipe.

    Returns:
        The parts.

    Raises:
        InputError: a fold beyond the last one, or a validation part that leaves nothing to train on.
    """
    fold = settings.options.get("fold")
    if fold is not None:
        fold = whole("options.fold", fold, low=0)
        if fold >= FOLDS:
            raise InputError(f"options.fold={fold} must be in [0, {FOLDS - 1}]")
    size = whole("options.validation", settings.options.get("validation", 0), low=0)
    (x, y), held = _split(fold)
    if size > len(y) - 10:
        raise InputError(f"options.validation={size} must be in [0, {len(y) - 10}]: the rest of {len(y)} is trained on")
    taken = None
    if size:
        keep, out = _validation(fold, size)
        taken, x, y = (x[out], y[out]), x[keep], y[keep]
    facts = f"scikit-learn digits, {len(y)} train, {len(held[1])} held out"
    facts += "" if fold is None else f", fold {fold} of {FOLDS}"
    return Digits((x, y), held, taken, {"data": facts + (f", {size} for validation" if size else "")})


@cache
def _split(fold: int | None) -> tuple[Part, Part]:
    need("tasks")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, train_test_split

    images, labels = load_digits(return_X_y=True)
    if fold is None:
        parts = train_test_split(images / 16.0, labels, test_size=HELD_OUT, random_state=0, stratify=labels)
        x, x_held, y, y_held = (torch.as_tensor(part) for part in parts)
    else:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels)
        train, held = list(folds)[fold]
        x, x_held = (torch.as_tensor(images[part] / 16.0) for part in (train, held))
        y, y_held = (torch.as_tensor(labels[part]) for part in (train, held))
    return (x.float(), y.long()), (x_held.float(), y_held.long())


@cache
def _validation(fold: int | None, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which training samples stay and which are taken out, stratified as far as the size allows."""
    need("tasks")
    from sklearn.model_selection import train_test_split

    labels = _split(fold)[0][1].numpy()
    stratify = labels if size >= 10 else None
    keep, out = train_test_split(range(len(labels)), test_size=size, random_state=0, stratify=stratify)
    return torch.tensor(sorted(keep)), torch.tensor(sorted(out))
