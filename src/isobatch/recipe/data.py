"""A recipe as data: the numbers of a training run as they work today, at the batch for which they were chosen."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, StrictInt, model_validator

from isobatch.curves import AutoWU, Staircase
from isobatch.errors import InputError
from isobatch.recipe.augmentation import Adversary, Augment
from isobatch.recipe.autowu import Search
from isobatch.recipe.critical import Critical
from isobatch.recipe.loading import read_toml, validate
from isobatch.recipe.parts import Average, Batch, BatchNorm, Noise, Optimizer, Part, Rules, Schedule
from isobatch.recipe.stamp import Planned
from isobatch.units import half_life, to_samples


class RecipeData(Part):
    """A training recipe as it is written: every number that a change of the batch touches, and nothing that moves it.

    `isobatch.Recipe` is this with `at`, and checks that the rules know what it asks for.

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
        planned: the stamp of a plan that was written to a file; None for a recipe as it was chosen.

    Example:
        >>> data = RecipeData.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}})
        >>> data.batch.size, data.optimizer.lr
        (8, 0.1)
    """

    model_config = ConfigDict(defer_build=True)

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
    planned: Planned | None = None

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if self.planned is not None:
            self.planned.check(self.batch.size)
        if self.schedule is not None:
            self.batch_stages()
            RecipeData.staircase(self)
            self.search()
        if self.ema is not None:
            horizon = self.half_life
            if self.ema.half_life is not None and not 0 < horizon < math.inf:
                raise ValueError(f'ema.half_life="{self.ema.half_life}" must be positive; use decay = 0 for a copy')
        self.batch_stages()
        settle = self.batch.adaptive.settle if self.batch.adaptive else None
        spans = (("batch.adaptive.settle", settle), ("noise.half_life", self.noise.half_life if self.noise else None))
        for name, quantity in spans:
            if quantity is not None and not 0 < self.span(quantity, name) < math.inf:
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

    def samples(self, quantity: str, name: str = "quantity") -> float:
        """Return how many samples a quantity such as "30 epochs" spans in this recipe.

        Args:
            quantity: number and unit.
            name: which setting it is, for messages.

        Returns:
            Samples (or tokens) on the recipe's clock.
        """
        return to_samples(quantity, batch=self.batch.size, data_size=self.data_size, name=name, unit=self.batch.unit)

    def span(self, quantity: str, name: str) -> float:
        """Return how many samples a quantity spans while the batch changes.

        Args:
            quantity: such as "2 epochs".
            name: which setting it is, for messages.

        Returns:
            Samples.

        Raises:
            InputError: no quantity, or one in steps.
        """
        if quantity.rstrip(" s").endswith("step"):
            unit = self.batch.unit
            raise InputError(f'{name}="{quantity}" is in steps, whose size it changes; use epochs or {unit}')
        return self.samples(quantity, name)

    def batch_stages(self) -> tuple[tuple[int, int], ...]:
        """Return the stages of the batch in samples; one, batch.size, without batch.schedule.

        Returns:
            Pairs (first sample, batch); a start between two samples counts from the next one.

        Raises:
            InputError: a start that is no quantity or is in steps, a first start that is not 0, or starts that do not
                rise.
        """
        if self.batch.schedule is None:
            return ((0, self.batch.size),)
        name = "batch.schedule"
        stages = [(math.ceil(self.span(start, name)), batch) for start, batch in self.batch.schedule]
        if stages[0][0] != 0:
            first = self.batch.schedule[0]
            add = f'add ["0 {self.batch.unit}", batch] before it'
            raise InputError(f'{name} must start at 0, not at "{first[0]}"; {add}')
        for index, ((left, _), (right, _)) in enumerate(pairwise(stages)):
            if right <= left:
                before, after = self.batch.schedule[index][0], self.batch.schedule[index + 1][0]
                raise InputError(f'{name}="{after}" must start after "{before}"; give the stages in rising order')
        return tuple(stages)

    def staircase(self) -> Staircase:
        """Return the learning-rate curve as a function of samples, as it is at the recipe's own batch.

        Returns:
            The staircase.

        Raises:
            InputError: no length, or a warm-up longer than the run.
        """
        if self.schedule is None:
            raise InputError('the recipe has no [schedule]; add length = "30 epochs" (or samples, steps)')
        start = self.schedule.decay_from
        return Staircase(
            length=self.samples(self.schedule.length, "schedule.length"),
            warmup=self.samples(self.schedule.warmup, "schedule.warmup"),
            shape="constant" if self.schedule.searches else self.schedule.shape,
            final=self.schedule.final,
            stair=self.schedule.stair or float(self.batch.size),
            decay_from=None if start is None else self.samples(start, "schedule.decay_from"),
        )

    def search(self) -> AutoWU | None:
        """Return a fresh search for the learning rate, None for a recipe whose schedule is fixed.

        Returns:
            AutoWU before its first step.

        Raises:
            ValueError: bounds that cannot be kept, or patience longer than the warm-up.
        """
        if self.schedule is None or not self.schedule.searches:
            return None
        stairs, part = RecipeData.staircase(self), self.schedule.search or Search()
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
