"""Arms of a study where the average is part of the run: with the rule, without it, progressive, first-order hold."""

from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.design import BETWEEN, stops_for
from isobatch.verify.workers import Job

MEANING = {
    "rule": "every number by the plan",
    "no EMA rule": "the same, decays per update of the average left as they were",
    "progressive": "the reference batch first, the large one afterwards",
    "hold": "the plan, the average by a first-order hold",
}


PIECE = 64
"""Samples of a micro-batch where no batch norm needs the reference's own."""


@dataclass(frozen=True)
class Arm:
    """One arm beside the reference.

    Args:
        variant: which reference recipe.
        kind: rule, no EMA rule, progressive or hold.
        kappa: its batch over the reference's.
        recipe: its numbers.
    """

    variant: str
    kind: str
    kappa: float
    recipe: Recipe

    @property
    def label(self) -> str:
        """Name of its curves."""
        return f"{self.variant} {self.kind} x{self.kappa:g}"


def reference(part: dict[str, Any], variant: str) -> Recipe:
    """Return a variant's reference recipe.

    Args:
        part: a grid of criteria.json.
        variant: its name.

    Returns:
        The recipe.
    """
    shared = part["recipe"]
    options = shared["options"] | part["variants"][variant]
    values = {**shared, "options": options}
    if options.get("norm") == "group":
        values.pop("batch_norm", None)
    return Recipe.parse(values)


def stops(part: dict[str, Any], variant: str) -> tuple[int, ...]:
    """Return where every run is evaluated: the start and ten marks, on whole steps of the largest batch.

    Args:
        part: a grid of criteria.json.
        variant: which reference recipe.

    Returns:
        Eleven stops in samples.
    """
    base = reference(part, variant)
    largest = round(base.batch.size * max(part["kappas"]))
    return stops_for(int(base.staircase().length), base.batch.size, largest)[0][::BETWEEN]


def arms(part: dict[str, Any], variant: str) -> list[Arm]:
    """Return the arms of a variant, kappa by kappa in the order of the criteria.

    Args:
        part: a grid of criteria.json: kappas; those of them without the EMA rule, progressive, by hold; switch.
        variant: which reference recipe.

    Returns:
        Arms in order.
    """
    base, found = reference(part, variant), []
    for kappa in part["kappas"]:
        found.append(Arm(variant, "rule", kappa, _at(base, kappa)))
        if kappa in part["unruled"]:
            found.append(Arm(variant, "no EMA rule", kappa, _unruled(base, kappa)))
        if kappa in part["progressive"]:
            found.append(Arm(variant, "progressive", kappa, _progressive(base, kappa, part)))
        if kappa in part["hold"]:
            found.append(Arm(variant, "hold", kappa, _held(base, kappa)))
    return found


def groups(part: dict[str, Any], variant: str, seeds: int, device: str) -> list[list[Job]]:
    """Return the runs of a variant: the references, then one group an arm.

    Args:
        part: a grid of criteria.json.
        variant: which reference recipe.
        seeds: seeds per arm.
        device: where they run.

    Returns:
        Groups of jobs.
    """
    places, base = stops(part, variant), reference(part, variant)
    named = [(f"{variant} reference", base), *((arm.label, arm.recipe) for arm in arms(part, variant))]
    return [
        [Job(label, recipe, seed, stream, places, device=device) for seed in range(seeds)]
        for stream, (label, recipe) in enumerate(named)
    ]


def _at(base: Recipe, kappa: float) -> Recipe:
    size = round(base.batch.size * kappa)
    largest = base.batch.per_device if base.batch_norm is not None else PIECE
    return base.at(size, micro=min(size, largest)).recipe


def _unruled(base: Recipe, kappa: float) -> Recipe:
    """Return the plan with every decay per update left alone: the average's, and a centre's half-life with it."""
    scaled = _at(base, kappa)
    parts: dict[str, object] = {"ema": base.ema}
    span = base.options.get("centre_half_life")
    if isinstance(span, int | float):
        parts["options"] = base.options | {"centre_half_life": span * kappa}
    return scaled.model_copy(update=parts)


def _held(base: Recipe, kappa: float) -> Recipe:
    scaled = _at(base, kappa)
    average = {"ema": scaled.ema.model_copy(update={"kind": "hold"})} if scaled.ema is not None else {}
    return scaled.model_copy(update=average)


def _progressive(base: Recipe, kappa: float, part: dict[str, Any]) -> Recipe:
    large = round(base.batch.size * kappa)
    start = round(base.staircase().length * part["switch"] / large) * large
    stages = (("0 samples", base.batch.size), (f"{start} samples", large))
    return base.model_copy(update={"batch": base.batch.model_copy(update={"schedule": stages})})
