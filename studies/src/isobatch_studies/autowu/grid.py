"""The cells of the AutoWU study: optimizer and batch, each with its arms and the runs that choose its fixed peak."""

from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.workers import Job

FOLDS, TRAIN = 5, 1280
SELECTION_SEED = 1000
_DECAY = {"adamp": 0.1, "lamb": 0.01, "adamw": 0.01}
ARMS: dict[str, dict[str, Any]] = {
    "chosen peak": {},
    "AutoWU": {"search": {}},
    "AutoWU, rollback": {"search": {"rollback": True}},
    "as published": {"search": {"tests": f"{TRAIN} samples"}},
}


@dataclass(frozen=True)
class Cell:
    """One optimizer at one batch.

    Args:
        optimizer: its name.
        batch: samples per step.
        epochs: of 1280 samples.
        arms: names in ARMS, the chosen peak first.
        frames: whether the images are Atari frames instead of digits.
    """

    optimizer: str
    batch: int
    epochs: int
    arms: tuple[str, ...]
    frames: bool = False

    @property
    def label(self) -> str:
        """What it is called in results."""
        return f"{'frames ' if self.frames else ''}{self.optimizer} {self.batch} {self.epochs} epochs"


def cells(rules: dict[str, Any], *, quick: bool) -> list[Cell]:
    """Return the study's cells, the short budget first.

    Args:
        rules: the criteria.
        quick: the small grid.

    Returns:
        Cells in the order in which they are trained.
    """
    short, part = rules["short"], (rules["quick"] if quick else rules)["untuned"]
    found = [Cell(short["optimizer"], short["batch"], short["epochs"], tuple(ARMS))] if short is not None else []
    frames = part.get("frames", False)
    for batch in part["batches"]:
        for optimizer in part["optimizers"]:
            found.append(Cell(optimizer, batch, part["epochs"], ("chosen peak", "AutoWU", "AutoWU, rollback"), frames))
    return found


def recipe(cell: Cell, arm: str, peak: float, seed: int) -> Recipe:
    """Return the recipe of an arm.

    Args:
        cell: optimizer, batch and length.
        arm: one of ARMS.
        peak: of the arm with a fixed one; AutoWU searches up to 1.
        seed: decides which fold is held out.

    Returns:
        The recipe.
    """
    length, fold, norm = TRAIN * cell.epochs, seed % FOLDS, cell.optimizer != "adamw"
    search = ARMS[arm].get("search")
    schedule: dict[str, Any] = {"length": f"{length} samples", "shape": "cosine", "warmup": f"{length // 20} samples"}
    if search is not None:
        schedule = {"length": f"{length} samples", "shape": "autowu", "search": search}
    return Recipe.parse({
        "task": "isobatch_studies.tasks.frames:make_mlp" if cell.frames else "digits",
        "batch": {"size": cell.batch},
        "optimizer": {
            "name": cell.optimizer,
            "lr": peak if search is None else 1.0,
            "weight_decay": _DECAY[cell.optimizer],
        },
        "schedule": schedule,
        **({"batch_norm": {"momentum": 0.1}} if norm else {}),
        "options": {"data": "atari", "side": 16, "fold": fold}
        if cell.frames
        else {"norm": norm, "fold": fold, "validation": 157 if fold < 2 else 158},
    })  # fmt: skip


def selection(cell: Cell, peaks: list[float], seeds: int) -> list[Job]:
    """Return the runs that choose the peak of every fold.

    Args:
        cell: optimizer, batch and length.
        peaks: the grid.
        seeds: runs per fold and peak.

    Returns:
        Jobs; the arm is "select CELL PEAK".
    """
    stops = (TRAIN * cell.epochs,)
    return [
        Job(f"select {cell.label} {peak:g}", recipe(cell, "chosen peak", peak, seed), seed, len(ARMS), stops)
        for seed in range(SELECTION_SEED, SELECTION_SEED + FOLDS * seeds)
        for peak in peaks
    ]


def reported(cell: Cell, peaks: dict[int, float], seeds: int) -> list[list[Job]]:
    """Return the runs of a cell in groups of one seed: the chosen peak and AutoWU first, then the rest.

    Args:
        cell: optimizer, batch and length.
        peaks: fold -> the peak that validation chose.
        seeds: how many.

    Returns:
        Groups of jobs.
    """
    stops = (TRAIN * cell.epochs,)
    arms = list(enumerate(cell.arms))
    parts = (arms[:2], arms[2:])
    return [
        [
            Job(f"{cell.label} {arm}", recipe(cell, arm, peaks[seed % FOLDS], seed), seed, stream, stops)
            for stream, arm in part
        ]
        for part in parts
        for seed in range(seeds)
    ]
