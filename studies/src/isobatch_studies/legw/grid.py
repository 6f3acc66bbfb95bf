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
_FRAMES: dict[str, Any] = {
    "batch": {"size": 16},
    "schedule": {"length": "153600 samples", "warmup": "384 samples"},
    "options": {"data": "atari", "side": 16},
}
for _kappa in (16, 64):
    _BASES[f"frames-lstm-{_kappa}x"] = _FRAMES | {
        "task": "isobatch_studies.tasks.frames:make_lstm",
        "optimizer": _BASES["lstm"]["optimizer"],
    }
    _BASES[f"frames-cnn-lars-{_kappa}x"] = _FRAMES | {
        "task": "isobatch_studies.tasks.frames:make_cnn",
        "optimizer": _BASES["cnn-lars"]["optimizer"],
        "batch_norm": {"momentum": 0.1},
    }
for _kappa in (16, 32):
    _BASES[f"lm-{_kappa}x"] = _BASES["lstm-lm"] | {
        "schedule": {"length": "131072 samples", "warmup": "656 samples"},
        "options": {"width": 64, "windows": 131072},
    }


def base(task: str, rate: float, seed: int) -> Recipe:
    """Return the recipe at the base batch.

    Args:
        task: a key of the criteria's tasks.
        rate: its learning rate.
        seed: decides which fold is held out.

    Returns:
        The recipe.
    """
    values = _BASES[task]
    fold = seed % folds(task)
    data: dict[str, Any] = {"fold": fold, "validation": 157 if fold < 2 else 158}
    if values["task"] == "text-lstm":
        data = {"validation": True}
    elif values["task"].partition(":")[0] == "isobatch_studies.tasks.frames":
        data = {"fold": fold}
    options = values["options"] | data
    return Recipe.parse(values | {"optimizer": values["optimizer"] | {"lr": rate}, "options": options})


def folds(task: str) -> int:
    """Return in how many folds a task chooses its rate.

    Args:
        task: a key of the criteria's tasks.

    Returns:
        1 for text, whose rate is chosen on half of the held-out windows.
    """
    return 1 if _BASES[task]["task"] == "text-lstm" else FOLDS


def arm(task: str, name: str, rate: float, kappa: int, seed: int) -> Recipe:
    """Return the recipe of an arm; nothing but the batch and the named rule differs from the base.

    Args:
        task: a key of the criteria's tasks.
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
        task: a key of the criteria's tasks.
        part: the task's part of the criteria.
        seeds: runs per fold and rate.

    Returns:
        Jobs; the arm is "select TASK RATE", and the seed tells the fold.
    """
    found = []
    for repeat in range(seeds):
        for fold in range(folds(task)):
            seed = SELECTION_SEED + FOLDS * repeat + fold
            for rate in part["rates"]:
                found.append(_job(f"select {task} {rate:g}", base(task, rate, seed), seed, len(ARMS)))
    return found


def reported(task: str, part: dict[str, Any], rates: dict[int, float], seeds: int) -> list[list[Job]]:
    """Return the runs of a task in groups of one seed, so that a budget leaves whole pairs.

    Args:
        task: a key of the criteria's tasks.
        part: the task's part of the criteria.
        rates: fold -> the rate that validation chose.
        seeds: how many.

    Returns:
        Groups of jobs.
    """
    return [
        [
            _job(f"{task} {name}", arm(task, name, rates[seed % len(rates)], part["kappa"], seed), seed, stream)
            for stream, name in enumerate(ARMS)
        ]
        for seed in range(seeds)
    ]


def _job(name: str, recipe: Recipe, seed: int, stream: int) -> Job:
    return Job(name, recipe, seed, stream, (int(recipe.staircase().length),))
