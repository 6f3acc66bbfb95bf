"""The arms of a comparison: the reference, the plan, and what goes wrong when a part of it is left out."""

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import decay_at

ABLATIONS = ("lr-only", "ema-only", "unscaled")
MEANING = {
    "reference": "the recipe as it is",
    "plan": "every number by the plan",
    "square root": "the plan with the stock optimizer",
    "lr-only": "optimizer by the plan, weight average left as it was",
    "ema-only": "weight average by the plan, optimizer left as it was",
    "unscaled": "nothing scaled but the schedule's samples",
    "naive": "a switch that moves the learning rate only",
}


def arms(
    recipe: Recipe, batch_size: int, ablate: tuple[str, ...] = ABLATIONS, optimizer: str | None = None
) -> dict[str, Recipe]:
    """Return the recipes to train, by name; all see the same samples.

    Args:
        recipe: the reference.
        batch_size: the batch of every other arm.
        ablate: which ablations to train besides the plan.
        optimizer: "invariant" plans for that form, and adds the square-root plan beside it.

    Returns:
        reference, plan and the ablations that differ from the plan. Where the recipe's batch switches, the reference is
        the run that does not, and the one ablation is the naive switch.

    Raises:
        InputError: an unknown ablation, or a batch that the plan refuses.
    """
    unknown = [name for name in ablate if name not in ABLATIONS]
    if unknown:
        raise InputError(f"ablate={unknown[0]!r} must be among {', '.join(ABLATIONS)}")
    plan = recipe.at(batch_size, optimizer=optimizer).recipe
    if recipe.batch.schedule is not None:
        still = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"schedule": None})})
        rules = plan.rules.model_copy(update={"average": "keep", "betas": "keep"})
        naive = {"naive": plan.model_copy(update={"rules": rules})} if "lr-only" in ablate else {}
        return {"reference": still, "plan": plan, **naive}
    made = {
        "lr-only": _without(recipe, plan, average=True),
        "ema-only": _without(recipe, plan, optimizer=True),
        "unscaled": _without(recipe, plan, average=True, optimizer=True),
    }
    wanted = {name: made[name] for name in ABLATIONS if name in ablate}
    if recipe.ema is None:
        wanted = {name: arm for name, arm in wanted.items() if name == "unscaled"}
    beside = {"square root": recipe.at(batch_size).recipe} if optimizer else {}
    return {"reference": recipe, "plan": plan, **beside, **wanted}


def sizes(recipe: Recipe) -> set[int]:
    """Return the batches that a run of a recipe takes.

    Args:
        recipe: an arm.

    Returns:
        Its batch, or those of its schedule.
    """
    stages = recipe.batch.schedule
    return {recipe.batch.size} if stages is None else {size for _, size in stages}


def _without(recipe: Recipe, plan: Recipe, *, average: bool = False, optimizer: bool = False) -> Recipe:
    parts: dict[str, object] = {}
    if optimizer:
        parts["optimizer"] = recipe.optimizer
    if average and recipe.ema is not None:
        kept = recipe.ema.decay
        if kept is None:
            kept = decay_at(recipe.half_life, recipe.batch.size * recipe.ema.every)
        parts["ema"] = recipe.ema.model_copy(update={"decay": kept, "half_life": None})
    return plan.model_copy(update=parts)
