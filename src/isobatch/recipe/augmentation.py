"""The parts of a recipe for what lies past the useful batch: many views a sample, adversaries made ahead."""

from typing import Literal, Self

from pydantic import Field, StrictFloat, StrictInt, field_validator, model_validator

from isobatch.curves import shape_of
from isobatch.recipe.parts import Part


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
    shape: str = "constant"
    final: StrictFloat = Field(default=0.0, ge=0, le=1)
    seed: StrictInt = Field(default=0, ge=0)

    @field_validator("shape")
    @classmethod
    def _known(cls, name: str) -> str:
        return shape_of(name, "adversary.shape")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"adversary.weights={list(self.weights)} must not be negative, and not both 0")
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"adversary.bounds={list(self.bounds)} must rise")
        return self
