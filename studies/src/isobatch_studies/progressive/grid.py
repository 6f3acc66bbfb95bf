"""The arms of the study: unswitched, switched by the plan, switched naively, large from the start."""

from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.design import stops_for
from isobatch.verify.workers import Job

_STOPS = 20
_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "task": "digits",
        "data_size": 1437,
        "batch": {"size": 8},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "schedule": {"length": "30 epochs", "warmup": "1 epoch", "shape": "cosine"},
        "ema": {"decay": 0.999},
    },
    "text": {
        "task": "text",
        "data_size": 8192,
        "batch": {"size": 4},
        "optimizer": {"name": "invariant-adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "schedule": {"length": "4096 samples", "warmup": "360 samples", "shape": "cosine"},
        "ema": {"decay": 0.998},
    },
}


@dataclass(frozen=True)
class Arm:
    """One arm beside the reference.

    Args:
        task: digits or text.
        name: what it does.
        kind: up, down, naive, large, far large or far late.
        recipe: its numbers and its batch schedule.
    """

    task: str
    name: str
    kind: str
    recipe: Recipe

    @property
    def label(self) -> str:
        """Name of its curves."""
        return f"{self.task} {self.name}"


def reference(task: str) -> Recipe:
    """Return the recipe of the unswitched run.

    Args:
        task: digits or text.

    Returns:
        The recipe.
    """
    return Recipe.parse(_RECIPES[task])


def stops(task: str, part: dict[str, Any]) -> tuple[int, ...]:
    """Return where every run of a task is evaluated: whole steps of its largest batch.

    Args:
        task: digits or text.
        part: the task's part of the criteria.

    Returns:
        21 stops in samples.
    """
    base = reference(task)
    largest = base.batch.size * (part["far_kappa"] or part["kappa"])
    return stops_for(int(base.staircase().length), base.batch.size, largest)[0]


def arms(task: str, part: dict[str, Any]) -> list[Arm]:
    """Return the arms of a task.

    Args:
        task: digits or text.
        part: the task's part of the criteria.

    Returns:
        Arms in order.
    """
    base, places = reference(task), stops(task, part)
    small, large = base.batch.size, base.batch.size * part["kappa"]
    naive = base.model_copy(update={"rules": base.rules.model_copy(update={"average": "keep", "betas": "keep"})})
    found = [Arm(task, f"large x{part['kappa']}", "large", base.at(large).recipe)]
    for moment in part["moments"]:
        start = places[round(moment * _STOPS)]
        found += [
            Arm(task, f"up at {moment:.0%}", "up", _switched(base, small, start, large)),
            Arm(task, f"down at {moment:.0%}", "down", _switched(base, large, start, small)),
            Arm(task, f"naive up at {moment:.0%}", "naive", _switched(naive, small, start, large)),
        ]
    if part["far_kappa"] is not None:
        far = small * part["far_kappa"]
        start = places[round(part["late"] * _STOPS)]
        found.append(Arm(task, f"large x{part['far_kappa']}", "far large", base.at(far).recipe))
        name = f"x{part['far_kappa']} from {part['late']:.0%} on"
        found.append(Arm(task, name, "far late", _switched(base, small, start, far)))
    return found


def groups(task: str, part: dict[str, Any], seeds: int) -> list[list[Job]]:
    """Return the runs of a task: the references, then one group an arm.

    Args:
        task: digits or text.
        part: the task's part of the criteria.
        seeds: seeds per arm.

    Returns:
        Groups of jobs.
    """
    places, base = stops(task, part), reference(task)
    found = [[Job(f"{task} reference", base, seed, 0, places) for seed in range(seeds)]]
    for stream, arm in enumerate(arms(task, part), start=1):
        found.append([Job(arm.label, arm.recipe, seed, stream, places) for seed in range(seeds)])
    return found


def _switched(base: Recipe, first: int, start: int, then: int) -> Recipe:
    unit = base.batch.unit
    stages = ((f"0 {unit}", first), (f"{start} {unit}", then))
    return base.model_copy(update={"batch": base.batch.model_copy(update={"schedule": stages})})
