"""The grid of the study: reference recipes, rules, and the runs of every cell."""

import math
from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.design import stops_for
from isobatch.verify.workers import Job

RULES = ("square root", "linear", "noise-aware", "invariant", "invariant, EMA unscaled")
ORDER = ("invariant", "square root", "invariant, EMA unscaled", "noise-aware", "linear")
"""In which order a budget is spent."""
HOLD = "invariant, first-order hold"
"""In grids that name it."""
_FAR = 1000
"""Streams of an arm that not every grid has: no others change."""
_BASE: dict[str, dict[str, Any]] = {
    "digits": {
        "task": "digits",
        "data_size": 1437,
        "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.01},
        "schedule": {"length": "15 epochs", "warmup": "1 epoch", "shape": "cosine"},
        "ema": {"half_life": "5542 samples"},
    },
    "text": {
        "task": "text",
        "data_size": 8192,
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "schedule": {"length": "2 epochs", "warmup": "360 samples", "shape": "cosine"},
        "ema": {"decay": 0.998},
    },
}
_BASE["text-short"] = {
    **_BASE["text"],
    "task": "text",
    "batch": {"size": 4},
    "schedule": {**_BASE["text"]["schedule"], "length": "4096 samples"},
}
"""The process of the text recipe, a quarter as long; at other reference batches the same process, in finer steps."""


@dataclass(frozen=True)
class Cell:
    """One reference batch and one kappa of a task.

    Args:
        task: digits, text or text-short.
        batch: reference batch.
        kappa: new batch / reference batch.
    """

    task: str
    batch: int
    kappa: float

    @property
    def target(self) -> int:
        """The new batch."""
        return round(self.batch * self.kappa)

    def label(self, rule: str) -> str:
        """Return the name of an arm of this cell."""
        return f"{self.task} B={self.batch} x{self.kappa:g} {rule}"


def reference(task: str, batch: int, grid: dict[str, Any]) -> Recipe:
    """Return the reference recipe of a task at a batch.

    With "same_process" every reference is the task's own run in steps of `batch` samples, by the plan's square root
    (near exact there: noise dominates), so that kappa and the size of the large step come apart.

    Args:
        task: digits, text or text-short.
        batch: its reference batch.
        grid: the task's part of the criteria.

    Returns:
        The recipe.
    """
    if grid.get("same_process"):
        base = Recipe.parse(_BASE[task])
        return base if batch == base.batch.size else base.at(batch).recipe
    values = dict(_BASE[task], batch={"size": batch})
    if "lr_at_8" in grid:
        lr = grid["lr_at_8"] * (batch / 8) ** grid["lr_power"]
        values["optimizer"] = dict(values["optimizer"], lr=lr)
    return Recipe.parse(values)


def cells(task: str, grid: dict[str, Any]) -> list[Cell]:
    """Return the cells of a task whose batch is whole, within "largest", and leaves at least 20 steps.

    Args:
        task: digits or text.
        grid: the task's part of the criteria.

    Returns:
        Cells in order.
    """
    found = []
    for batch in grid["batches"]:
        length = reference(task, batch, grid).staircase().length
        for kappa in grid["kappas"]:
            target = batch * kappa
            whole = target >= 1 and math.isclose(target, round(target))
            if whole and length / target >= 20 and target <= grid.get("largest", math.inf):
                found.append(Cell(task, batch, kappa))
    return found


def arm(cell: Cell, rule: str, recipe: Recipe, noise_scale: float) -> Recipe:
    """Return the recipe of one rule in a cell.

    Args:
        cell: reference batch and kappa.
        rule: one of RULES, or HOLD.
        recipe: the reference.
        noise_scale: measured on the reference.

    Returns:
        The recipe at the new batch.
    """
    if rule.startswith("invariant"):
        plan = recipe.at(cell.target, optimizer="invariant").recipe
        if rule == "invariant" or plan.ema is None:
            return plan
        if rule == HOLD:
            return plan.model_copy(update={"ema": plan.ema.model_copy(update={"kind": "hold"})})
        kept = 0.5 ** (cell.batch / recipe.half_life)
        return plan.model_copy(update={"ema": plan.ema.model_copy(update={"decay": kept, "half_life": None})})
    if rule == "noise-aware":
        return recipe.at(cell.target, noise_scale=noise_scale).recipe
    kind = "sqrt" if rule == "square root" else "linear"
    chosen = recipe.model_copy(update={"rules": recipe.rules.model_copy(update={"lr": kind})})
    return chosen.at(cell.target).recipe


def groups(task: str, batch: int, grid: dict[str, Any], seeds: int, noise_scale: float) -> list[list[Job]]:
    """Return the runs of one reference batch: a group of references, then one group an arm.

    Args:
        task: digits or text.
        batch: the reference batch.
        grid: the task's part of the criteria.
        seeds: seeds per arm.
        noise_scale: measured on the reference.

    Returns:
        Groups; an arm is judged once its group and its reference's are complete.
    """
    recipe = reference(task, batch, grid)
    mine = [cell for cell in cells(task, grid) if cell.batch == batch]
    stops, _ = stops_for(math.floor(recipe.staircase().length), batch, *(cell.target for cell in mine))
    found = [[Job(f"{task} B={batch} reference", recipe, seed, 0, stops) for seed in range(seeds)]]
    for index, cell in enumerate(mine):
        for rule in (rule for rule in (*ORDER, HOLD) if rule in grid.get("rules", ORDER)):
            place = RULES.index(rule) if rule in RULES else _FAR
            name, stream = cell.label(rule), 1 + index * len(RULES) + place
            made = arm(cell, rule, recipe, noise_scale)
            found.append([Job(name, made, seed, stream, stops) for seed in range(seeds)])
    return found
