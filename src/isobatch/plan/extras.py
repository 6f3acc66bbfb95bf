"""The parts of a recipe for what lies past the useful batch: many views a sample, adversaries made ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from isobatch.plan.optimizer_rows import make_row
from isobatch.plan.parts import Part
from isobatch.rules import Confidence, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.plan import Row
    from isobatch.plan.recipe import Recipe


_VIEWS = Rule(
    "views kept", "the clock counts samples, so learning rate and views stay", "1901.09335", Confidence.CONVENTION
)
_AGE = Rule("steps kept", "how old directions may become in samples is not known", "unknown", Confidence.UNKNOWN)


class Augment(Part):
    """Batch augmentation: M views of each sample in one update; the clock counts samples, the learning rate stays.

    Args:
        view: identity, shift, cutout, shift-cutout, or "my_pkg.mod:function".
        views: M.
        passes: one (M*B rows together) or copies (one pass a view, its own batch-norm chunk).
        seed: of the views.
        evaluate: also evaluate predictions averaged over this many views; 0 does not.
        adjust_norm: samples between two measurements of mean |g(copy)| / |g(all)|, by which the gradient is then
            multiplied, such as "2 epochs"; never unless given.
    """

    view: str
    views: StrictInt = Field(default=1, ge=1)
    passes: Literal["one", "copies"] = "one"
    seed: StrictInt = Field(default=0, ge=0)
    evaluate: StrictInt = Field(default=0, ge=0)
    adjust_norm: str | None = None


class Adversary(Part):
    """An adversarial loss beside the clean one, on inputs moved one step by weights tau steps old.

    Args:
        eps: largest change of an input (sign), or length of a row's change (l2).
        weights: of the clean and of the adversarial loss; (0.5, 0.5) is their mean and (1, 1) their sum.
        tau: steps between making a direction and using it.
        form: sign, l2, or random-sign (a control without an adversary).
        norms: shared, or two (main and adversarial batch norm).
        bounds: smallest and largest input.
        warmup: span over which eps rises from 0, such as "2 epochs".
        shape: of eps afterwards, as a schedule's: constant, linear or cosine down to `final`.
        final: share of eps at the end of the run.
        seed: of random signs.
    """

    eps: StrictFloat = Field(ge=0)
    weights: tuple[StrictFloat, StrictFloat]
    tau: StrictInt = Field(default=1, ge=0)
    form: Literal["sign", "l2", "random-sign"] = "sign"
    norms: Literal["shared", "two"] = "shared"
    bounds: tuple[StrictFloat, StrictFloat] | None = None
    warmup: str = "0 samples"
    shape: Literal["constant", "linear", "cosine"] = "constant"
    final: StrictFloat = Field(default=0.0, ge=0, le=1)
    seed: StrictInt = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"adversary.weights={list(self.weights)} must not be negative, and not both 0")
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"adversary.bounds={list(self.bounds)} must rise")
        return self


def extras_in_samples(recipe: Recipe) -> dict[str, object]:
    """Return [augment] and [adversary] with their spans in samples, so that they survive another batch.

    Args:
        recipe: the reference recipe.

    Returns:
        The parts to replace; empty for a recipe with neither.
    """
    found: dict[str, object] = {}
    augment, adversary, unit = recipe.augment, recipe.adversary, recipe.batch.unit
    if augment is not None and augment.adjust_norm is not None:
        span = recipe.samples(augment.adjust_norm, "augment.adjust_norm")
        found["augment"] = augment.model_copy(update={"adjust_norm": f"{span:.12g} {unit}"})
    if adversary is not None:
        span = recipe.samples(adversary.warmup, "adversary.warmup")
        found["adversary"] = adversary.model_copy(update={"warmup": f"{span:.12g} {unit}"})
    return found


def extras_rows(recipe: Recipe, size: int) -> Iterator[Row]:
    """Yield the rows of a plan for [augment] and [adversary].

    Args:
        recipe: the reference recipe.
        size: the new batch.

    Yields:
        Rows.
    """
    augment, adversary, unit, old = recipe.augment, recipe.adversary, recipe.batch.unit, recipe.batch.size
    if augment is not None:
        note = f"{augment.views * old:,} rows a step become {augment.views * size:,}"
        yield make_row("augment.views", augment.views, augment.views, _VIEWS, note)
    if adversary is not None:
        note = f"{adversary.tau * old:,} {unit} old become {adversary.tau * size:,}"
        yield make_row("adversary.tau", adversary.tau, adversary.tau, _AGE, note)
