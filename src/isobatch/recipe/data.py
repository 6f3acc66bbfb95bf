"""A recipe as data: the numbers of a training run as they work today, at the batch for which they were chosen."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, StrictInt, model_validator

from isobatch.curves import AutoWU, Pieces, Staircase
from isobatch.errors import InputError
from isobatch.recipe.augmentation import Adversary, Augment
from isobatch.recipe.autowu import Search
from isobatch.recipe.averages import Average
from isobatch.recipe.critical import Critical
from isobatch.recipe.curves import Curve, known_name, pieces_of
from isobatch.recipe.groups import Group, check_groups
from isobatch.recipe.loading import read_toml, validate
from isobatch.recipe.parts import Batch, BatchNorm, Noise, Optimizer, Part, Rules, Schedule
from isobatch.recipe.stamp import Planned
from isobatch.units import decay_at, half_life, to_samples


class RecipeData(Part):
    """A training recipe as it is written: every number that a change of the batch touches, and nothing that moves it.

    `isobatch.Recipe` is this with `at`, and checks that the rules know what it asks for.

    Args:
        task: a shipped task or "my_pkg.mod:make"; only training needs it.
        data_size: samples in an epoch.
        batch: the global batch.
        optimizer: the optimizer and its numbers.
        schedule: length, warm-up, shape.
        curves: how lr, weight_decay, momentum, ema or any other setting moves over the run; in place of the schedule's
            warm-up and shape.
        groups: parameters with numbers, or an optimizer, of their own.
        spans: named spans that stay in samples, such as freeze = "1250 steps".
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
    curves: dict[str, Curve] = Field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    spans: dict[str, str] = Field(default_factory=dict)
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
        self._moving()
        check_groups(self.groups)
        settle = self.batch.adaptive.settle if self.batch.adaptive else None
        spans = (("batch.adaptive.settle", settle), ("noise.half_life", self.noise.half_life if self.noise else None))
        for name, quantity in spans:
            if quantity is not None and not 0 < self.span(quantity, name) < math.inf:
                raise ValueError(f'{name}="{quantity}" must be positive and finite')
        return self

    def _moving(self) -> None:
        """Check what moves over the run: curves, the ramp and start of the average, spans."""
        for name in self.curves:
            known_name(name)
            curve = self.curve(name)
            if curve is not None and name in ("momentum", "ema"):
                self._decays(name, curve)
        for name, quantity in self.spans.items():
            if not 0 <= self.samples(quantity, f"spans.{name}") < math.inf:
                raise ValueError(f'spans.{name}="{quantity}" must be finite')
        if self.curves.get("lr") is not None and self.schedule is not None:
            fields, names = Schedule.model_fields, ("warmup", "shape", "final", "decay_from", "search")
            stated = [name for name in names if getattr(self.schedule, name) != fields[name].default]
            if stated:
                words = ", ".join(f"schedule.{name}" for name in stated)
                raise ValueError(f"curves.lr and {words} both move the learning rate; drop one of them")
        if self.ema is None:
            return
        if self.ema.start is not None:
            self.samples(self.ema.start, "ema.start")
        tau = self.ema.ramp.tau if self.ema.ramp is not None else None
        if tau is not None and not 0 < self.samples(tau, "ema.ramp.tau") < math.inf:
            raise ValueError(f'ema.ramp.tau="{tau}" must be positive and finite')
        if "ema" in self.curves and (self.ema.final is not None or self.ema.ramp is not None):
            other = "final" if self.ema.final is not None else "ramp"
            raise ValueError(f"curves.ema and ema.{other} both move the decay of the average; drop one of them")

    def _decays(self, name: str, curve: Pieces) -> None:
        """Refuse a curve of 1 - decay that leaves the decays."""
        if name == "ema" and self.ema is None:
            raise ValueError("curves.ema moves the decay of [ema], which is missing; add it, or remove the curve")
        if name == "ema":
            decay, most = self.average_decay, 1.0
        else:
            decay, most = self.optimizer.momentum or self.optimizer.betas[0], 1.0
        for piece in curve.pieces:
            for share in (piece.start, Pieces.ends_at(piece)):
                if (1 - decay) * share > most * (1 + 1e-12):
                    raise ValueError(
                        f"curves.{name} reaches {share:g} times 1 - {decay:g}, a decay below 0; its shares are of "
                        f"1 - decay and may be at most {most / (1 - decay):.6g}"
                    )
                if name == "momentum" and not share:
                    raise ValueError("curves.momentum reaches 0, a momentum of 1 that never forgets; end above 0")

    @property
    def average_decay(self) -> float:
        """Decay per update of the average at batch.size; 1 without an average, or with a profile instead of a decay."""
        if self.ema is None or (self.ema.decay is None and self.ema.half_life is None):
            return 1.0
        if self.ema.decay is not None:
            return self.ema.decay
        return decay_at(self.half_life, self.batch.size * self.ema.every)

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
        if quantity == "0 samples":  # what a span is that nobody gave, on the clock of tokens too
            return 0.0
        return to_samples(
            quantity,
            batch=self.batch.size,
            data_size=self.data_size,
            name=name,
            unit=self.batch.unit,
            sequence=self.batch.sequence,
        )

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

    def staircase(self) -> Staircase | Pieces:
        """Return the learning-rate curve as a function of samples, as it is at the recipe's own batch.

        Returns:
            The staircase; with curves.lr its pieces, which have the same face.

        Raises:
            InputError: no length, a warm-up longer than the run, or a curve that does not cover it.
        """
        own = self.curve("lr")
        if own is not None:
            return own
        schedule = self._scheduled()
        return Staircase(
            length=self.samples(schedule.length, "schedule.length"),
            warmup=self.samples(schedule.warmup, "schedule.warmup"),
            shape="constant" if schedule.searches else schedule.shape,
            final=schedule.final,
            stair=schedule.stair or float(self.batch.size),
            decay_from=None
            if schedule.decay_from is None
            else self.samples(schedule.decay_from, "schedule.decay_from"),
        )

    def curve(self, name: str) -> Pieces | None:
        """Return one of the recipe's curves as a function of samples, read through its mean over a step.

        Args:
            name: lr, weight_decay, momentum, ema, or a name of your own, such as teacher_temperature.

        Returns:
            Shares of the setting's own number (of 1 - decay for momentum and ema); None where it does not move.

        Raises:
            InputError: no length, or a curve that does not cover the run.

        Example:
            >>> data = RecipeData.parse({
            ...     "batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1},
            ...     "schedule": {"length": "800 samples"},
            ...     "curves": {"lr": [{"span": "80 samples", "by": "linear", "start": 0.0, "to": 1.0},
            ...                       {"by": "cosine", "to": 0.1}]}})
            >>> lr = data.curve("lr")
            >>> lr.at(40), lr.mean(80, 96)
            (0.5, 0.99...)
        """
        if name not in self.curves:
            return None
        schedule = self._scheduled()
        length = self.samples(schedule.length, "schedule.length")
        return pieces_of(name, self.curves[name], self.samples, length, schedule.stair or float(self.batch.size))

    def _scheduled(self) -> Schedule:
        if self.schedule is None:
            raise InputError('the recipe has no [schedule]; add length = "30 epochs" (or samples, steps)')
        return self.schedule

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
        """Half-life of the weight average in samples, before curves and ramps; infinity without an average.

        A power profile (ema.ramp by = "post-hoc") has no half-life of its own: the one it has at the end of the run.
        """
        if self.ema is None:
            return math.inf
        if self.ema.half_life is not None:
            return self.samples(self.ema.half_life, "ema.half_life")
        if self.ema.decay is None and self.ema.ramp is not None:
            if self.schedule is None:
                return math.inf
            profile = max(self.ema.ramp.profiles)
            return self.samples(self.schedule.length, "schedule.length") * math.log(2) / (profile + 1)
        return half_life(self.ema.decay or 0.0, self.batch.size * self.ema.every)
