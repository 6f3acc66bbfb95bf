"""The arms of the batch augmentation study: M views, and the same images or rows spent otherwise."""

from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.workers import Job
from isobatch_studies.folds import fold_options, selection_seeds

CONTROLS = ("4x the updates", "8x the updates", "4x the batch", "4x the batch, 4x the rate")


def controls(rules: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the arms that spend the images otherwise.

    Args:
        rules: the study's criteria.

    Returns:
        Names, all unless the grid lists some.
    """
    return tuple(rules.get("controls", CONTROLS))


def views_arm(views: int) -> str:
    """Return the name of the arm with M views.

    Args:
        views: M.

    Returns:
        A name.
    """
    return f"M = {views}"


def recipe(
    rules: dict[str, Any], rate: float, seed: int, *, views: int = 1, updates: int = 1, batch: int = 1
) -> Recipe:
    """Return the recipe of an arm.

    Args:
        rules: the study's criteria.
        rate: learning rate.
        seed: decides which fold is held out.
        views: M.
        updates: times the updates.
        batch: times the batch.

    Returns:
        The recipe.
    """
    size = rules["batch"] * batch
    return Recipe.parse(
        {
            "task": "digits-cnn",
            "batch": {"size": size},
            "optimizer": {"name": "sgd", "lr": rate, "momentum": 0.9},
            "schedule": {"length": f"{rules['updates'] * updates * size} samples", "shape": "cosine"},
            "augment": {"view": "shift-cutout", "views": views},
            "options": {"width": 8, **fold_options(seed, rules["train"])},
        }
    )


def selection(rules: dict[str, Any], repeats: int) -> list[Job]:
    """Return the runs with one view that choose the rate of every fold.

    Args:
        rules: the study's criteria.
        repeats: runs a fold and rate.

    Returns:
        Jobs.
    """
    return [
        _job(f"select {rate:g}", recipe(rules, rate, seed), seed, 20)
        for seed in selection_seeds(repeats)
        for rate in rules["rates"]
    ]


def reported(rules: dict[str, Any], rates: dict[int, float], seeds: int) -> list[list[Job]]:
    """Return the runs of the study in groups of one seed.

    Args:
        rules: the study's criteria.
        rates: fold -> the rate that validation chose.
        seeds: how many.

    Returns:
        Groups of jobs.
    """
    groups = []
    for seed in range(seeds):
        rate = rates[seed % len(rates)]
        every = 10 * rules["batch"]
        jobs = [
            _job(views_arm(m), recipe(rules, rate, seed, views=m), seed, stream, every)
            for stream, m in enumerate(rules["views"])
        ]
        others = (
            recipe(rules, rate, seed, updates=4),
            recipe(rules, rate, seed, updates=8),
            recipe(rules, rate, seed, batch=4),
            recipe(rules, 4 * rate, seed, batch=4),
        )
        jobs += [
            _job(name, made, seed, 10 + place)
            for place, (name, made) in enumerate(zip(CONTROLS, others, strict=True))
            if name in controls(rules)
        ]
        groups.append(jobs)
    return groups


def _job(name: str, made: Recipe, seed: int, stream: int, every: int | None = None) -> Job:
    length = int(made.staircase().length)
    stops = (length,) if every is None else tuple(range(every, length + 1, every))
    return Job(name, made, seed, stream, stops)
