"""The arms of the study: controls, the rule, the rule without its average, and progressive scaling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isobatch.plan import Recipe
from isobatch.units import decay_at
from isobatch.verify.workers import Curve, Job

REFERENCE, AGAIN, SUPERVISED = "reference", "reference again", "supervised only"
FORMS = {"square root": None, "invariant": "invariant"}
MARKS = 10
FIXED_START_UP_TO = 2
"""Largest kappa whose pseudo-labelling starts after a fixed number of samples; beyond it, at the reference's error."""


@dataclass(frozen=True)
class Arm:
    """One arm beside the reference.

    Args:
        kind: control, rule, unscaled or progressive.
        name: what it does; also the name of its curves.
        recipe: its numbers.
        kappa: its (last) batch over the reference's.
        form: of Adam's rule.
    """

    kind: str
    name: str
    recipe: Recipe
    kappa: float = 1.0
    form: str = "square root"


def reference(part: dict[str, Any]) -> Recipe:
    """Return the reference recipe of the study.

    Args:
        part: grid or quick of the criteria.

    Returns:
        The recipe.
    """
    return Recipe.parse(part["recipe"])


def stops(part: dict[str, Any]) -> tuple[int, ...]:
    """Return where every run is evaluated: 0 and ten marks, on whole steps of every batch.

    Args:
        part: grid or quick of the criteria.

    Returns:
        Eleven stops in samples.
    """
    base = reference(part)
    length, grid = int(base.staircase().length), round(base.batch.size * max(part["kappas"]))
    return tuple(length * i // MARKS // grid * grid for i in range(MARKS + 1))


def start_error(part: dict[str, Any], runs: Sequence[Curve]) -> float:
    """Return the reference's error at its start: the averaged model's word error rate on dev, mean over seeds.

    Args:
        part: grid or quick of the criteria.
        runs: the reference's curves.

    Returns:
        Percent, to a tenth.
    """
    mark = stops(part).index(int(part["recipe"]["options"]["start"]))
    return round(sum(curve.values["average"]["dev"][mark] for curve in runs) / len(runs), 1)


def arms(part: dict[str, Any], error: float) -> list[Arm]:
    """Return the arms in the order in which a budget is spent.

    Args:
        part: grid or quick of the criteria.
        error: word error rate on dev at which arms beyond kappa 2 start.

    Returns:
        Arms.
    """
    base, found, most = reference(part), [], max(part["kappas"])
    for kappa in sorted(part["kappas"], reverse=True):
        for form in part["forms"]:
            plan = _at(base, kappa, form, error)
            found.append(Arm("rule", f"rule, {form}, x{kappa:g}", plan, kappa, form))
            if form in part["unscaled"]:
                found.append(Arm("unscaled", f"EMA unscaled, {form}, x{kappa:g}", _kept(base, plan), kappa, form))
        if kappa == most:
            never = _options(base, start=2 * int(base.staircase().length))
            found += [Arm("control", SUPERVISED, never), Arm("control", AGAIN, base)] if part["controls"] else []
            found += _later(part)
    return found


def _later(part: dict[str, Any]) -> list[Arm]:
    """Return the arms that begin at the reference's batch and switch."""
    base, places = reference(part), stops(part)
    return [
        Arm("progressive", f"x{k:g} from {moment:.0%} on, {form}", _switched(base, k, form, place), k, form)
        for k, moment in part["progressive"]
        for place in [places[round(moment * MARKS)]]
        for form in part["forms"]
    ]


def groups(part: dict[str, Any], seeds: int, chosen: Sequence[Arm], device: str) -> list[list[Job]]:
    """Return the runs: one group an arm.

    Args:
        part: grid or quick of the criteria.
        seeds: seeds per arm.
        chosen: arms.
        device: where they run.

    Returns:
        Groups of jobs; a stream of the sample order belongs to an arm's name, whatever the other arms are.
    """
    places = stops(part)
    return [
        [Job(arm.name, arm.recipe, seed, _stream(arm.name), places, device=device) for seed in range(seeds)]
        for arm in chosen
    ]


def _stream(name: str) -> int:
    return 0 if name == REFERENCE else 1 + sum(name.encode())


def _at(base: Recipe, kappa: float, form: str, error: float) -> Recipe:
    plan = base.at(round(base.batch.size * kappa), optimizer=FORMS[form]).recipe
    return plan if kappa <= FIXED_START_UP_TO else _options(plan, start_error=error)


def _kept(base: Recipe, plan: Recipe) -> Recipe:
    """Return the plan with the reference's decay per update."""
    kept = decay_at(base.half_life, base.batch.size)
    average = plan.ema and plan.ema.model_copy(update={"decay": kept, "half_life": None})
    return plan.model_copy(update={"ema": average})


def _switched(base: Recipe, kappa: float, form: str, moment: int) -> Recipe:
    same = base.at(base.batch.size, optimizer=FORMS[form]).recipe
    stages = (("0 samples", base.batch.size), (f"{moment} samples", round(base.batch.size * kappa)))
    return same.model_copy(update={"batch": same.batch.model_copy(update={"schedule": stages})})


def _options(recipe: Recipe, **more: float) -> Recipe:
    return recipe.model_copy(update={"options": {**recipe.options, **more}})
