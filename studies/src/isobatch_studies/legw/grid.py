"""The arms of the LEGW study: the base batch, LEGW, linear scaling, and the square root without the longer warm-up."""

from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.workers import Job

FOLDS, TRAIN = 5, 1280
SELECTION_SEED = 1000
"""First seed of the runs that choose a rate; reported runs use 0, 1, ..."""
ARMS = ("base", "LEGW", "linear", "square root, base warm-up")
_EPOCHS = {"length": "38400 samples", "warmup": "384 samples"}
_BASES: dict[str, dict[str, Any]] = {
    "lstm": {
        "task": "digits-lstm",
        "batch": {"size": 16},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": _EPOCHS,
    },
    "cnn-lars": {
        "task": "digits-cnn",
        "batch": {"size": 16},
        "optimizer": {"name": "lars", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": _EPOCHS,
        "batch_norm": {"momentum": 0.1},
        "options": {"width": 8},
    },
    "lstm-lm": {
        "task": "text-lstm",
        "batch": {"size": 4},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.9, "clip": 1.0},
        "schedule": {"length": "4096 samples", "warmup": "41 samples"},
        "options": {"width": 64},
    },
}
_BASES["lstm"]["options"] = {}


def base(task: str, rate: float, seed: int) -> Recipe:
    """Return the recipe at the base batch.

    Args:
        task: lstm, cnn-lars or lstm-lm.
        rate: its learning rate.
        seed: decides which fold is held out.

    Returns:
        The recipe.
    """
    values = _BASES[task]
    fold = seed % FOLDS
    data: dict[str, Any] = {"fold": fold, "validation": 157 if fold < 2 else 158}
    options = values["options"] | ({"validation": True} if task == "lstm-lm" else data)
    return Recipe.parse(values | {"optimizer": values["optimizer"] | {"lr": rate}, "options": options})


def arm(task: str, name: str, rate: float, kappa: int, seed: int) -> Recipe:
    """Return the recipe of an arm; nothing but the batch and the named rule differs from the base.

    Args:
        task: lstm, cnn-lars or lstm-lm.
        name: one of ARMS.
        rate: learning rate at the base batch.
        kappa: batch of the other arms over the base batch.
        seed: decides which fold is held out.

    Returns:
        The recipe.
    """
    recipe = base(task, rate, seed)
    if name == "base":
        return recipe
    size = recipe.batch.size * kappa
    if name == "LEGW":
        return recipe.at(size, rule="legw").recipe
    kept = recipe.at(size, rule="legw").recipe
    factor = kappa if name == "linear" else kappa**0.5
    optimizer = kept.optimizer.model_copy(update={"lr": rate * factor})
    schedule = recipe.schedule.model_copy(update={"stair": float(recipe.batch.size)}) if recipe.schedule else None
    return kept.model_copy(update={"optimizer": optimizer, "schedule": schedule, "rules": recipe.rules})


def selection(task: str, part: dict[str, Any], seeds: int) -> list[Job]:
    """Return the runs that choose the base rate of every fold.

    Args:
        task: lstm, cnn-lars or lstm-lm.
        part: the task's part of the criteria.
        seeds: runs per fold and rate.

    Returns:
        Jobs; the arm is "select TASK RATE", and the seed tells the fold.
    """
    folds = 1 if task == "lstm-lm" else FOLDS
    found = []
    for repeat in range(seeds):
        for fold in range(folds):
            seed = SELECTION_SEED + FOLDS * repeat + fold
            for rate in part["rates"]:
                found.append(_job(f"select {task} {rate:g}", base(task, rate, seed), seed, len(ARMS)))
    return found


def reported(task: str, part: dict[str, Any], rates: dict[int, float], seeds: int) -> list[list[Job]]:
    """Return the runs of a task in groups of one seed, so that a budget leaves whole pairs.

    Args:
        task: lstm, cnn-lars or lstm-lm.
        part: the task's part of the criteria.
        rates: fold -> the rate that validation chose.
        seeds: how many.

    Returns:
        Groups of jobs.
    """
    folds = len(rates)
    return [
        [
            _job(f"{task} {name}", arm(task, name, rates[seed % folds], part["kappa"], seed), seed, stream)
            for stream, name in enumerate(ARMS)
        ]
        for seed in range(seeds)
    ]


def _job(name: str, recipe: Recipe, seed: int, stream: int) -> Job:
    return Job(name, recipe, seed, stream, (int(recipe.staircase().length),))
