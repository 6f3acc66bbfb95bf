"""[[groups]]: parameters that are trained by other numbers, or by another optimizer, than the rest."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator, model_validator

from isobatch.errors import InputError
from isobatch.recipe.parts import Optimizer, Part

FIELDS = ("momentum", "nesterov", "betas", "alpha", "eps", "eps_inside", "weight_decay", "decay")
"""Numbers of [optimizer] that a group may state for itself, beside lr."""


class Group(Part):
    """Parameters by their names, and what is different for them.

    Args:
        name: of the group, as rows and messages call it.
        match: regular expression that is found in their names, or several of which one is; any name unless given.
        dims: vectors (fewer than two dimensions: biases, norms) or matrices (two and more); any unless given.
        optimizer: another optimizer for them, such as "muon"; its numbers then start from that one's defaults.
        lr: their learning rate at batch.size.
        lr_scale: their learning rate as a multiple of optimizer.lr, instead.
        layer_decay: lr_scale per layer: layer_decay**(layers - i), with i the number that `match` captures.
        layers: of layer_decay.
        momentum: as in [optimizer]; so are the next ones.
        nesterov: Nesterov's form.
        betas: Adam's moments.
        alpha: RMSProp's moment.
        eps: beside sqrt(v).
        eps_inside: whether eps stands inside the root.
        weight_decay: lambda; 0.0 for none.
        decay: how lambda is coupled.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    match: str | tuple[str, ...] | None = None
    dims: Literal["vectors", "matrices"] | None = None
    optimizer: str | None = None
    lr: StrictFloat | None = Field(default=None, gt=0)
    lr_scale: StrictFloat | None = Field(default=None, gt=0)
    layer_decay: StrictFloat | None = Field(default=None, gt=0, le=1)
    layers: StrictInt | None = Field(default=None, ge=1)
    momentum: StrictFloat | None = Field(default=None, ge=0, lt=1)
    nesterov: StrictBool | None = None
    betas: tuple[StrictFloat, StrictFloat] | None = None
    alpha: StrictFloat | None = Field(default=None, ge=0, lt=1)
    eps: StrictFloat | None = Field(default=None, ge=0)
    eps_inside: StrictBool | None = None
    weight_decay: StrictFloat | None = Field(default=None, ge=0)
    decay: Literal["decoupled", "coupled", "independent", "trust-ratio"] | None = None

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for pattern in (match,) if isinstance(match, str) else match or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"match={pattern!r} is no regular expression: {error}") from None
        if match is not None and not match:
            raise ValueError("match is empty; give part of the parameters' names, or dims")
        return match

    @field_validator("betas")
    @classmethod
    def _in_range(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={list(betas)} of a group must each be in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _says(self) -> Self:
        if self.match is None and self.dims is None:
            raise ValueError(f"groups.{self.name} has neither match nor dims, so it would be every parameter; give one")
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError(f"groups.{self.name} has both lr={self.lr:g} and lr_scale={self.lr_scale:g}; keep one")
        if self.optimizer is not None and self.lr is None:
            raise ValueError(
                f"groups.{self.name}.lr is missing; its optimizer {self.optimizer!r} needs a rate of its own"
            )
        if (self.layer_decay is None) != (self.layers is None):
            raise ValueError(f"groups.{self.name} needs layer_decay and layers together")
        if self.layer_decay is not None and not any(re.compile(one).groups for one in self.patterns):
            raise ValueError(
                f"groups.{self.name}.layer_decay needs a match that captures the layer's number, such as "
                r"'blocks\.(\d+)\.'"
            )
        stated = ("optimizer", "lr", "lr_scale", "layer_decay", *FIELDS)
        if all(getattr(self, name) is None for name in stated):
            raise ValueError(f"groups.{self.name} changes nothing; give lr, lr_scale, weight_decay, ... or remove it")
        return self

    @property
    def own_moments(self) -> bool:
        """Whether its moments are not those of [optimizer]."""
        return (self.optimizer, self.betas, self.alpha) != (None, None, None)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The regular expressions, none for any name."""
        return (self.match,) if isinstance(self.match, str) else self.match or ()

    def takes(self, name: str, dims: int) -> bool:
        """Return whether a parameter belongs to the group.

        Args:
            name: of the parameter.
            dims: how many dimensions it has.

        Returns:
            True or False.

        Example:
            >>> norms = Group(name="norms", match="norm", dims="vectors", weight_decay=0.0)
            >>> norms.takes("block.norm.weight", 1), norms.takes("block.mlp.weight", 2)
            (True, False)
        """
        if self.dims is not None and (self.dims == "matrices") != (dims >= 2):
            return False
        return not self.patterns or any(re.search(one, name) for one in self.patterns)

    def scale_of(self, name: str) -> float:
        r"""Return the factor of a parameter's layer.

        Args:
            name: of the parameter.

        Returns:
            layer_decay**(layers - i); 1 without layer_decay.

        Raises:
            InputError: what `match` captures is no whole number of at most `layers`.

        Example:
            >>> Group(name="body", match=r"blocks[.](\d+)", layer_decay=0.5, layers=3).scale_of("blocks.1.mlp")
            0.25
        """
        if self.layer_decay is None or self.layers is None:
            return 1.0
        for one in self.patterns:
            found = re.search(one, name)
            if found is not None:
                layer = next((part for part in found.groups() if part is not None), "")
                if not layer.isdecimal() or int(layer) > self.layers:
                    raise InputError(
                        f"groups.{self.name}.match captures {layer!r} in {name!r}, which is no layer from 0 to "
                        f"{self.layers}; mend match or layers"
                    )
                return self.layer_decay ** (self.layers - int(layer))
        return 1.0

    def of(self, base: Optimizer) -> Optimizer:
        """Return the optimizer part by which the group is trained.

        Args:
            base: the recipe's [optimizer].

        Returns:
            The same with what the group states; another optimizer starts from its own defaults.
        """
        own = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        if self.optimizer is not None:
            return Optimizer(name=self.optimizer, lr=self.lr or base.lr, **own)
        rate = self.lr if self.lr is not None else base.lr * (1.0 if self.lr_scale is None else self.lr_scale)
        return base.model_copy(update={**own, "lr": rate})


def check_groups(groups: Sequence[Group]) -> None:
    """Refuse groups that cannot be told apart, or that certainly share parameters.

    Args:
        groups: of a recipe. Whether two patterns meet in a model is seen when they are bound to it.

    Raises:
        ValueError: two groups of one name, or a name of a parameter that two of them take.
    """
    for one, other in combinations(groups, 2):
        if one.name == other.name:
            raise ValueError(f"two groups are called {one.name!r}; give each a name of its own")
        if one.dims != other.dims:  # whether they meet depends on the model
            continue
        for witness, dims in _witnesses(one, other):
            if one.takes(witness, dims) and other.takes(witness, dims):
                what = f"{witness!r} (match={_said(one)} and match={_said(other)})" if witness else "every parameter"
                if (one.optimizer or "") != (other.optimizer or ""):
                    what += ", under two optimizers"
                raise ValueError(
                    f"groups.{one.name} and groups.{other.name} both take {what}; narrow one of them, such as by "
                    r"'^(?!.*norm).*backbone'"
                )


def _said(group: Group) -> str:
    return ", ".join(map(repr, group.patterns)) or f"dims {group.dims}"


def _witnesses(*groups: Group) -> Iterator[tuple[str, int]]:
    """Yield names that one of the groups takes for certain, with the dimensions that it may have."""
    for group in groups:
        for pattern in group.patterns or ("",):
            name = re.sub(
                r"\(\?[=!:<][^)]*\)|\\d[+*]?|\.\*|[\^$()]", lambda m: "0" if m[0][1:2] == "d" else "", pattern
            )
            name = name.replace("\\.", ".").replace("[.]", ".").split("|")[0]
            for dims in (1, 2):
                if group.takes(name, dims):
                    yield name, dims
