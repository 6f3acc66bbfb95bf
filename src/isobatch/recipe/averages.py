"""[ema]: the weight average, by decay or half-life, and how its decay grows at the start."""

import math
from typing import Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from isobatch.curves import RAMPS, exponent
from isobatch.recipe.parts import Part

_TAKES = {
    "exp": ("tau",),
    "power": ("inv_gamma", "power"),
    "ratio": ("ratio",),
    "tensorflow": (),
    "annealing": ("gamma",),
    "post-hoc": ("std",),
}
LAWS = {"exp": "exponential", "power": "crowson", "tensorflow": "tensorflow", "annealing": "annealing"}
"""Ramp of a recipe -> its formula in `isobatch.curves.RAMPS`; t counts updates of the average after its start."""
assert set(LAWS.values()) == set(RAMPS)


class EmaRamp(Part):
    """How the decay of the average grows while little has been seen; t counts its updates.

    Args:
        by: exp: decay*(1-exp(-t/tau)), t from 1 (Ultralytics, D-FINE). power: at most 1-(1+t/inv_gamma)**-power, t from
            0 (diffusers, k-diffusion, timm). ratio: a half-life of at most ratio times the samples seen (EDM, EDM2).
            tensorflow: at most (1+t)/(10+t), t from 1. annealing: at most t/(gamma+t) (mmengine). post-hoc: a power
            profile of relative width std instead of a decay (EDM2).
        tau: span, such as "2000 steps".
        inv_gamma: in updates.
        power: p.
        ratio: of the half-life to the samples seen.
        gamma: in updates.
        std: one width, or several.
    """

    by: Literal["exp", "power", "ratio", "tensorflow", "annealing", "post-hoc"]
    tau: str | None = None
    inv_gamma: StrictFloat | None = Field(default=None, gt=0)
    power: StrictFloat | None = Field(default=None, gt=0)
    ratio: StrictFloat | None = Field(default=None, gt=0)
    gamma: StrictFloat | None = Field(default=None, gt=0)
    std: StrictFloat | tuple[StrictFloat, ...] | None = None

    @model_validator(mode="after")
    def _takes(self) -> Self:
        takes = _TAKES[self.by]
        for name in ("tau", "inv_gamma", "power", "ratio", "gamma", "std"):
            value = getattr(self, name)
            if value is not None and name not in takes:
                raise ValueError(
                    f'ema.ramp.{name}={value!r} has no meaning by = "{self.by}", which takes '
                    f"{', '.join(takes) or 'nothing'}; remove it"
                )
        needed = (
            "std" if self.by == "post-hoc" else self.by if self.by == "ratio" else "tau" if self.by == "exp" else ""
        )
        if needed and getattr(self, needed) is None:
            raise ValueError(f'ema.ramp.{needed} is missing; by = "{self.by}" needs it')
        for width in self.widths:
            if not 0 < width <= 1 / math.sqrt(12):
                raise ValueError(f"ema.ramp.std={width:g} must be in (0, 0.288675], the width of a uniform average")
        return self

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths of post-hoc, none of the others."""
        return () if self.std is None else self.std if isinstance(self.std, tuple) else (self.std,)

    @property
    def scale(self) -> float:
        """The scale of its formula in updates, where it is stated so: inv_gamma or gamma."""
        return (self.inv_gamma or 1.0) if self.by == "power" else (self.gamma or 100.0)

    @property
    def exponent(self) -> float:
        """The power p of power; 2/3 unless given."""
        return self.power or 2 / 3

    @property
    def profiles(self) -> tuple[float, ...]:
        """The exponents of post-hoc's power profiles, one a width."""
        return tuple(exponent(width) for width in self.widths)


class Average(Part):
    """The weight average (EMA), by decay per update or by half-life.

    Args:
        decay: rho per update of the average, at batch.size.
        half_life: such as "20_000 samples"; instead of decay.
        every: optimizer steps between two updates of the average.
        kind: plain, or hold (first-order hold).
        final: decay at the end of a half-cosine schedule (BYOL, DINO); constant unless given. Other curves are
            curves.ema.
        start: span before which the average is a copy of the weights, such as "100 steps".
        ramp: how the decay grows at the start.
    """

    decay: StrictFloat | None = Field(default=None, ge=0, le=1)
    half_life: str | None = None
    every: StrictInt = Field(default=1, ge=1)
    kind: Literal["plain", "hold"] = "plain"
    final: StrictFloat | None = Field(default=None, ge=0, le=1)
    start: str | None = None
    ramp: EmaRamp | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        profile = self.ramp is not None and self.ramp.by == "post-hoc"
        if profile and (self.decay is not None or self.half_life is not None):
            raise ValueError('ema.ramp by = "post-hoc" is the whole average; drop ema.decay and ema.half_life')
        if profile and (self.every != 1 or self.kind != "plain" or self.start is not None):
            raise ValueError(
                'ema.ramp by = "post-hoc" is updated each step from the first on; drop every, kind and start'
            )
        if not profile and (self.decay is None) == (self.half_life is None):
            raise ValueError("[ema] takes decay (per update) or half_life (in samples), exactly one of them")
        if self.final is not None and self.ramp is not None:
            raise ValueError(
                f'ema.final={self.final:g} and ema.ramp by = "{self.ramp.by}" both move the decay; drop one of them '
                "(a curve that rises and then stays is curves.ema)"
            )
        if self.final is not None and (self.decay is None or self.final < self.decay):
            raise ValueError("ema.final needs ema.decay, and must not be below it")
        return self
