"""Recipe: the data of a training run, checked by the rules, that can be planned at another batch."""

import math
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from isobatch.curves import CopyUntil, DecayCurve, DecaySchedule, Pieces, Ramp, Staircase, StepWarmup, Warmup
from isobatch.errors import InputError
from isobatch.plan.plan import Plan
from isobatch.plan.planning import make_plan
from isobatch.plan.settings import curve, scaled
from isobatch.recipe import LAWS, Group, RecipeData
from isobatch.rules import LEARNING_RATES, optimizer_row, scale_decay
from isobatch.rules.average import scale_inv_gamma


class Recipe(RecipeData):
    """A training recipe: every number that a change of the batch touches, and the plan at another batch.

    Its fields are those of `isobatch.recipe.RecipeData`: task, data_size, batch, optimizer, schedule, ema, batch_norm,
    noise, augment, adversary, critical, curves, groups, spans, rules and options.

    Example:
        >>> recipe = Recipe.load("examples/digits.toml")
        >>> recipe.at(batch_size=128).recipe.optimizer.lr
        0.32
    """

    model_config = ConfigDict(defer_build=False)

    @model_validator(mode="after")
    def _known(self) -> Self:
        """The optimizer and its rule exist, and what the recipe states has a meaning for them."""
        o, word = self.optimizer, self.rules.lr
        row = optimizer_row(o.name)
        for group in self.groups:
            self._known_group(group)
        if word != "auto" and word not in LEARNING_RATES:
            words = [repr(known) for known in ("auto", *LEARNING_RATES)]
            raise ValueError(f"rules.lr={word!r} must be one of {', '.join(words[:-1])} or {words[-1]}")
        if word != "auto" and LEARNING_RATES[word].share and self.rules.noise_share is None:
            raise ValueError(f'rules.lr = "{word}" needs rules.noise_share, the noise share of v in [0, 1]')
        if o.momentum and "momentum" not in row.moments:
            raise ValueError(f"optimizer.momentum={o.momentum:g} has no meaning for {o.name}; remove it")
        if o.reference_batch is not None and not row.invariant:
            raise ValueError(f"optimizer.reference_batch has no meaning for {o.name}; use invariant-{o.name}")
        return self

    def _known_group(self, group: Group) -> None:
        """What a group states has a meaning for its optimizer."""
        o = group.of(self.optimizer)
        row = optimizer_row(o.name)
        for name, at in (("momentum", "momentum"), ("betas", "betas"), ("alpha", "alpha")):
            if getattr(group, name) is not None and at not in row.moments:
                raise ValueError(f"groups.{group.name}.{name}={getattr(group, name)!r} has no meaning for {o.name}; "
                                 "remove it")  # fmt: skip
        for name in ("eps", "eps_inside"):
            if getattr(group, name) is not None and not row.adaptive:
                raise ValueError(f"groups.{group.name}.{name} has no meaning for {o.name}; remove it")

    @model_validator(mode="after")
    def _followed(self) -> Self:
        """Curves move numbers that the recipe has."""
        o, row = self.optimizer, optimizer_row(self.optimizer.name)
        decays = o.weight_decay or any(group.weight_decay for group in self.groups)
        if "weight_decay" in self.curves and not decays:
            raise ValueError(
                "curves.weight_decay moves optimizer.weight_decay, which is 0; set it, or remove the curve"
            )
        if "momentum" in self.curves and not o.momentum and "betas" not in row.moments:
            raise ValueError("curves.momentum moves optimizer.momentum, which is 0; set it, or remove the curve")
        if o.eps_inside and not row.adaptive:
            raise ValueError(f"optimizer.eps_inside has no meaning for {o.name}; remove it")
        return self

    @model_validator(mode="after")
    def _moves(self) -> Self:
        """Every batch that the recipe itself takes is within the domain of its rules."""
        for _, batch in self.batch_stages() if self.batch.schedule_lr != "keep" else ():
            if self.schedule is not None:
                self.staircase(batch)
            scaled(self, batch)
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe from a TOML file.

        Args:
            path: the file.

        Returns:
            The recipe.

        Raises:
            InputError: as for `RecipeData.load`, or a number that its optimizer does not have.
        """
        recipe = super().load(path)
        for name in recipe.unused() if recipe.planned is None else ():
            value, usual = getattr(recipe.optimizer, name), type(recipe.optimizer).model_fields[name].default
            if value != usual:
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(
                    f"{path}: optimizer.{name}={shown} has no meaning for {recipe.optimizer.name}; remove it"
                )
        return recipe

    def unused(self) -> tuple[str, ...]:
        """Return the numbers of [optimizer] that no optimizer of the recipe has; a plan moves them all the same.

        Returns:
            Names, of betas, alpha and eps.

        Example:
            >>> Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 0.001}}).unused()
            ('alpha',)
        """
        names = (self.optimizer.name, *(g.optimizer for g in self.groups if g.optimizer))
        has = {key for name in names for key in optimizer_row(name).keys}
        return tuple(name for name in ("betas", "alpha", "eps") if name not in has)

    def at(
        self,
        batch_size: int | None = None,
        *,
        micro: int | None = None,
        devices: int | None = None,
        noise_scale: float | None = None,
        optimizer: str | None = None,
        rule: str | None = None,
        goal: str = "equivalence",
        length: str | float | None = None,
    ) -> Plan[Self]:
        """Plan the same run at another global batch.

        Args:
            batch_size: the new global batch, in the recipe's unit; unless given the one that the devices and micro take
                with as many passes as before. The plan also says how they keep the recipe's own batch.
            micro: samples per device and forward pass; the recipe's own where it gives one.
            devices: data-parallel devices; the recipe's own unless given.
            noise_scale: gradient noise scale in samples; an Adam plan then uses the noise share at this batch.
            optimizer: "invariant" plans an Adam or RMSProp recipe for its batch-size invariant form.
            rule: "legw" plans by LEGW: square root, warm-up linear in epochs, the optimizer otherwise kept.
            goal: "equivalence" for the same run; "speed" for the fastest to the same loss, by the critical batch.
            length: another length beside the batch, "2x" or "60 epochs": not the same run, and the rows say so.

        Returns:
            Rows, warnings and the scaled recipe.

        Raises:
            InputError: a batch that is not a positive whole number, or beyond a rule's domain.
        """
        return make_plan(
            self,
            batch_size,
            micro=micro,
            devices=devices,
            noise_scale=noise_scale,
            optimizer=optimizer,
            rule=rule,
            goal=goal,
            length=length,
        )

    def staircase(self, batch: float | None = None) -> Staircase | Pieces:
        """Return the learning-rate schedule as a function of samples.

        Args:
            batch: global samples per step, which moves the warm-up of LEGW and the length of a speed plan; the
                recipe's own batch unless given.

        Returns:
            The staircase.

        Raises:
            InputError: no length, or a warm-up longer than the run.
        """
        return curve(self, batch)

    def average_schedule(self) -> DecaySchedule | DecayCurve | None:
        """Return the schedule of the weight average's decay, None where it is constant but for a ramp."""
        if self.ema is None or (self.ema.final is None and "ema" not in self.curves):
            return None
        stairs = self.staircase()
        back = stairs.stair / self.batch.size
        start = scale_decay(self.average_decay, back)
        if self.ema.final is not None:
            return DecaySchedule(start, scale_decay(self.ema.final, back), stairs.length, stairs.stair * self.ema.every)
        share = self.curve("ema")
        return None if share is None else DecayCurve(start, share, stairs.stair * self.ema.every)

    def average_warmup(self) -> Warmup | None:
        """Return the start and the ramp of the weight average in the reference's own updates, exact for any batch.

        Returns:
            The warm-up, None where there is neither.
        """
        ema = self.ema
        if ema is None:
            return None
        start = 0.0 if ema.start is None else self.samples(ema.start, "ema.start")
        if ema.ramp is None or ema.ramp.by == "post-hoc":
            return CopyUntil(start) if start else None
        if ema.ramp.by == "ratio":
            return Ramp(ema.ramp.ratio or 0.0)
        stair = self.staircase().stair
        span = stair * ema.every
        scale = ema.ramp.scale
        if ema.ramp.tau is not None:
            scale = self.samples(ema.ramp.tau, "ema.ramp.tau") / span
        elif ema.ramp.by == "power":
            scale = scale_inv_gamma(scale, ema.ramp.exponent, stair / self.batch.size)
        first = 1 if ema.ramp.by in ("exp", "tensorflow") else 0
        copies = math.ceil(start / span - 1e-9)
        law: Any = LAWS[ema.ramp.by]
        return StepWarmup(law, scale, ema.ramp.exponent, first=first, copies=copies, batch_size=span)
