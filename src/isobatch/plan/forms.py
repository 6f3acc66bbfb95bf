"""Other forms of the same recipe: the invariant optimizer, LEGW, the learning rate of a measured noise scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isobatch import rules
from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.plan.recipe import Recipe


def invariant(recipe: Recipe, optimizer: str) -> Recipe:
    """Return the recipe with the batch-size invariant form of its optimizer, its reference batch stamped.

    Args:
        recipe: a recipe for Adam, AdamW or RMSProp.
        optimizer: "invariant" is the only form.

    Returns:
        The recipe; at its own batch it is the same run.

    Raises:
        InputError: another form, or an optimizer that has none.
    """
    name = recipe.optimizer.name
    wanted = name if rules.family(name).invariant else f"invariant-{name}"
    if optimizer != "invariant":
        raise InputError(f'optimizer={optimizer!r} must be "invariant"; other optimizers are other runs')
    if wanted not in rules.FAMILIES:
        raise InputError(f"optimizer.name={name!r} has no invariant form; adam, adamw and rmsprop have one")
    reference = recipe.optimizer.reference_batch or recipe.batch.size
    return recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"name": wanted, "reference_batch": reference})}
    )


def by_rule(recipe: Recipe, rule: str) -> Recipe:
    """Return the recipe with another published rule in place of its own.

    Args:
        recipe: the recipe.
        rule: "legw" is the only one.

    Returns:
        The recipe; at its own batch it is the same run.

    Raises:
        InputError: another rule, or one beside a noise scale's learning rate.
    """
    if rule != "legw":
        raise InputError(f'rule={rule!r} must be "legw"; other forms are chosen under [rules] in the recipe')
    if recipe.schedule is not None and recipe.schedule.shape == "autowu":
        raise InputError("AutoWU finds its own rate and warm-up, so that LEGW has nothing to move; drop --rule legw")
    if rules.FAMILIES[recipe.optimizer.name].invariant:
        raise InputError(f"{recipe.optimizer.name} has a learning-rate rule of its own; drop --rule legw")
    moved = {"lr": "legw", "momentum": "keep", "betas": "keep", "noise_share": None}
    return recipe.model_copy(update={"rules": recipe.rules.model_copy(update=moved)})


def with_noise(recipe: Recipe, noise_scale: float) -> Recipe:
    """Return the recipe with the noise share that a noise scale gives at its batch.

    Args:
        recipe: the recipe; only an Adam-like one with rules.lr = "auto" or "noise-aware" changes.
        noise_scale: in samples, not negative.

    Returns:
        The recipe with the noise-aware learning rate.
    """
    family, kinds = rules.FAMILIES[recipe.optimizer.name], recipe.rules
    share = rules.noise_share(recipe.batch.size, noise_scale)
    if not family.adaptive or family.invariant or kinds.lr not in ("auto", "noise-aware"):
        return recipe
    return recipe.model_copy(update={"rules": kinds.model_copy(update={"lr": "noise-aware", "noise_share": share})})
