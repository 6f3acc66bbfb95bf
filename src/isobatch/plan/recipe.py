"""Recipe: the numbers of a training run as they work today, at the batch for which they were chosen."""

import math
from pathlib import Path
from typing import Any, Self

from pydantic import Field, StrictInt, model_validator

from isobatch.errors import InputError
from isobatch.plan.calibration import Critical
from isobatch.plan.extras import Adversary, Augment
from isobatch.plan.loading import read_toml, validate
from isobatch.plan.parts import Average, Batch, BatchNorm, Noise, Optimizer, Part, Rules, Schedule
from isobatch.plan.plan import Plan
from isobatch.plan.planning import make_plan
from isobatch.plan.search import Search
from isobatch.plan.settings import scaled
from isobatch.plan.speed import stretch
from isobatch.plan.stages import batch_stages, span
from isobatch.rules import legw, scale_decay
from isobatch.schedules import AutoWU, DecaySchedule, Staircase
from isobatch.units import batch_ratio, half_life, to_samples


class Recipe(Part):
    """A training recipe: every number that a change of the batch touches.

    Args:
        task: a shipped task or "my_pkg.mod:make"; only training needs it.
        data_size: samples in an epoch.
        batch: the global batch.
        optimizer: the optimizer and its numbers.
        schedule: length, warm-up, shape.
        ema: the weight average, None without one.
        batch_norm: batch norm's momentum, None without batch norm.
        noise: how the noise scale is measured in training; None where it is not, unless the batch is adaptive.
        augment: many views of each sample in one update, None for none.
        adversary: an adversarial loss beside the clean one, None for none.
        critical: a measured critical batch, None without one; only goal="speed" and advice use it.
        rules: which form of each rule is used.
        options: values handed to the task as they are.

    Example:
        >>> recipe = Recipe.load("examples/digits.toml")
        >>> recipe.at(batch_size=128).recipe.optimizer.lr
        0.32
    """

    task: str | None = None
    data_size: StrictInt | None = Field(default=None, ge=1)
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule | None = None
    ema: Average | None = None
    batch_norm: BatchNorm | None = None
    noise: Noise | None = None
    augment: Augment | None = None
    adversary: Adversary | None = None
    critical: Critical | None = None
    rules: Rules = Rules()
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schedule is not None:
            for _, batch in batch_stages(self):
                self.staircase(batch)
            self.search()
        if self.ema is not None:
            horizon = self.half_life
            if self.ema.half_life is not None and not 0 < horizon < math.inf:
                raise ValueError(f'ema.half_life="{self.ema.half_life}" must be positive; use decay = 0 for a copy')
        for _, batch in batch_stages(self):
            scaled(self, batch)
        settle = self.batch.adaptive.settle if self.batch.adaptive else None
        spans = (("batch.adaptive.settle", settle), ("noise.half_life", self.noise.half_life if self.noise else None))
        for name, quantity in spans:
            if quantity is not None and not 0 < span(self, quantity, name) < math.inf:
                raise ValueError(f'{name}="{quantity}" must be positive and finite')
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe from a TOML file.

        Args:
            path: the file.

        Returns:
            The recipe.

        Raises:
            InputError: no such file, not TOML, an unknown key (the nearest known one is named) or a bad value.
        """
        try:
            return cls.parse(read_toml(path))
        except InputError as error:
            raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build a recipe from nested plain values, with the errors of `load`.

        Args:
            values: tables and keys as in the file.

        Returns:
            The recipe.

        Raises:
            InputError: an unknown key or a bad value.
        """
        return validate(cls, values)

    def at(
        self,
        batch_size: int,
        *,
        micro: int | None = None,
        devices: int | None = None,
        noise_scale: float | None = None,
        optimizer: str | None = None,
        rule: str | None = None,
        goal: str = "equivalence",
    ) -> Plan:
        """Plan the same run at another global batch.

        Args:
            batch_size: the new global batch, in the recipe's unit.
            micro: samples per device and forward pass; the recipe's own where it gives one.
            devices: data-parallel devices; the recipe's own unless given.
            noise_scale: gradient noise scale in samples; an Adam plan then uses the noise share at this batch.
            optimizer: "invariant" plans an Adam or RMSProp recipe for its batch-size invariant form.
            rule: "legw" plans by LEGW: square root, warm-up linear in epochs, the optimizer otherwise kept.
            goal: "equivalence" for the same run; "speed" for the fastest to the same loss, by the critical batch.

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
        )

    def samples(self, quantity: str, name: str = "quantity") -> float:
        """Return how many samples a quantity such as "30 epochs" spans in this recipe.

        Args:
            quantity: number and unit.
            name: which setting it is, for messages.

        Returns:
            Samples (or tokens) on the recipe's clock.
        """
        return to_samples(quantity, batch=self.batch.size, data_size=self.data_size, name=name, unit=self.batch.unit)

    def staircase(self, batch: float | None = None) -> Staircase:
        """Return the learning-rate schedule as a function of samples.

        Args:
            batch: global samples per step, which moves the warm-up of LEGW and the length of a speed plan; the
                recipe's own batch unless given.

        Returns:
            The staircase.

        Raises:
            InputError: no length, or a warm-up longer than the run.
        """
        if self.schedule is None:
            raise InputError('the recipe has no [schedule]; add length = "30 epochs" (or samples, steps)')
        length = self.samples(self.schedule.length, "schedule.length")
        warmup = self.samples(self.schedule.warmup, "schedule.warmup")
        start = self.schedule.decay_from
        decay_from = None if start is None else self.samples(start, "schedule.decay_from")
        if self.rules.lr == "legw" and batch is not None:
            decay_from = warmup if decay_from is None else decay_from
            _, warmup = legw(self.optimizer.lr, warmup, batch_ratio(batch, self.batch.size), length)
        stair = self.schedule.stair or float(self.batch.size)
        if self.rules.lr == "speed" and batch is not None and batch != self.batch.size:
            times = stretch(self, batch)
            length, warmup, stair = length * times, warmup * times, float(batch)
            decay_from = None if decay_from is None else decay_from * times
        return Staircase(
            length=length,
            warmup=warmup,
            shape="constant" if self.schedule.shape == "autowu" else self.schedule.shape,
            final=self.schedule.final,
            stair=stair,
            decay_from=decay_from,
        )

    def search(self) -> AutoWU | None:
        """Return a fresh search for the learning rate, None for a recipe whose schedule is fixed.

        Returns:
            AutoWU before its first step.

        Raises:
            ValueError: bounds that cannot be kept, or patience longer than the warm-up.
        """
        if self.schedule is None or self.schedule.shape != "autowu":
            return None
        stairs, part = self.staircase(), self.schedule.search or Search()
        tests = None if part.tests is None else self.samples(part.tests, "schedule.search.tests")
        return AutoWU(part.growth(self.optimizer.lr, stairs.length, stairs.stair, tests))

    @property
    def half_life(self) -> float:
        """Half-life of the weight average in samples at the start of the run; infinity without an average."""
        if self.ema is None:
            return math.inf
        if self.ema.half_life is not None:
            return self.samples(self.ema.half_life, "ema.half_life")
        return half_life(self.ema.decay or 0.0, self.batch.size * self.ema.every)

    def average_schedule(self) -> DecaySchedule | None:
        """Return the schedule of the weight average's decay, None where it is constant."""
        if self.ema is None or self.ema.final is None or self.ema.decay is None:
            return None
        stairs = self.staircase()
        back = stairs.stair / self.batch.size
        start, final = scale_decay(self.ema.decay, back), scale_decay(self.ema.final, back)
        return DecaySchedule(start, final, stairs.length, stairs.stair * self.ema.every)
