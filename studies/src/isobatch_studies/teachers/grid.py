"""Arms of a study where the average is part of the run: with the rule, without it, progressive, first-order hold."""

from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.design import BETWEEN, stops_for
from isobatch.verify.design import arms as compared
from isobatch.verify.workers import Job

MEANING = {
    "rule": "every number by the plan",
    "no EMA rule": "the same, decays per update of the average left as they were",
    "progressive": "the reference batch first, the large one afterwards",
    "hold": "the plan, the average by a first-order hold",
    "no centre rule": "the plan, but the centre's decay of a step as it was",
    "nothing scaled": "the batch alone: every number of a step as it was",
}


PIECE = 64
"""Samples of a micro-batch where no batch norm needs the reference's own."""


@dataclass(frozen=True)
class Arm:
    """One arm beside the reference.

    Args:
        variant: which reference recipe.
        kind: rule, no EMA rule, progressive, hold, no centre rule or nothing scaled.
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
        part: a grid of criteria.json: kappas; those of them without the EMA rule, progressive, by hold, with the centre
            left alone, with nothing scaled; switch; form "invariant" where the optimizer takes its invariant form.
        variant: which reference recipe.

    Returns:
        Arms in order.
    """
    base, form, found = reference(part, variant), part.get("form"), []
    for kappa in part["kappas"]:
        scaled = _at(base, kappa, form)
        found.append(Arm(variant, "rule", kappa, scaled))
        if kappa in part["unruled"]:
            found.append(Arm(variant, "no EMA rule", kappa, _unruled(base, scaled, kappa)))
        if kappa in part.get("unscaled", ()):
            found.append(Arm(variant, "nothing scaled", kappa, _unscaled(base, kappa)))
        if kappa in part["progressive"]:
            found.append(Arm(variant, "progressive", kappa, _progressive(_at(base, 1, form), kappa, part)))
        if kappa in part["hold"]:
            found.append(Arm(variant, "hold", kappa, _held(scaled)))
        if kappa in part.get("uncentred", ()):
            kept = scaled.model_copy(update={"options": _centre_left_alone(base, kappa)})
            found.append(Arm(variant, "no centre rule", kappa, kept))
    return found


def seeds_of(part: dict[str, Any], kind: str) -> int:
    """Return how many seeds an arm is given.

    Args:
        part: a grid of criteria.json: seeds, and `fewer` by kind for arms that no claim needs.
        kind: of the arm, "reference" for the reference.

    Returns:
        Seeds.
    """
    return part.get("fewer", {}).get(kind, part["seeds"])


def groups(part: dict[str, Any], variant: str, seeds: int, device: str) -> list[list[Job]]:
    """Return the runs of a variant: the references, then one group an arm.

    Args:
        part: a grid of criteria.json.
        variant: which reference recipe.
        seeds: seeds per arm.
        device: where they run.

    Returns:
        Groups of jobs; an arm that is given fewer seeds by the grid has fewer.
    """
    places, base = stops(part, variant), reference(part, variant)
    named = [("reference", f"{variant} reference", base)]
    named += [(arm.kind, arm.label, arm.recipe) for arm in arms(part, variant)]
    return [
        [Job(label, recipe, seed, stream, places, device=device) for seed in range(min(seeds, seeds_of(part, kind)))]
        for stream, (kind, label, recipe) in enumerate(named)
    ]


def seed_by_seed(groups: list[list[Job]], size: int) -> list[list[Job]]:
    """Return the same runs in the order of their seeds, so that complete pairs come first.

    Args:
        groups: arm by arm.
        size: runs of a new group, those that are trained side by side.

    Returns:
        Groups of at most so many runs.
    """
    order = sorted((job for group in groups for job in group), key=lambda job: job.seed)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _at(base: Recipe, kappa: float, form: str | None = None) -> Recipe:
    size = round(base.batch.size * kappa)
    largest = base.batch.per_device if base.batch_norm is not None else PIECE
    return base if kappa == 1 and form is None else base.at(size, micro=min(size, largest), optimizer=form).recipe


def _unruled(base: Recipe, scaled: Recipe, kappa: float) -> Recipe:
    """Return the plan with every decay per update left alone: the average's, and a centre's half-life with it."""
    return scaled.model_copy(update={"ema": base.ema, "options": _centre_left_alone(base, kappa)})


def _centre_left_alone(base: Recipe, kappa: float) -> dict[str, Any]:
    span = base.options.get("centre_half_life")
    return dict(base.options) | ({"centre_half_life": span * kappa} if isinstance(span, int | float) else {})


def _unscaled(base: Recipe, kappa: float) -> Recipe:
    return compared(base, round(base.batch.size * kappa), ("unscaled",))["unscaled"]


def _held(scaled: Recipe) -> Recipe:
    average = {"ema": scaled.ema.model_copy(update={"kind": "hold"})} if scaled.ema is not None else {}
    return scaled.model_copy(update=average)


def _progressive(base: Recipe, kappa: float, part: dict[str, Any]) -> Recipe:
    large = round(base.batch.size * kappa)
    start = round(base.staircase().length * part["switch"] / large) * large
    stages = (("0 samples", base.batch.size), (f"{start} samples", large))
    return base.model_copy(update={"batch": base.batch.model_copy(update={"schedule": stages})})
