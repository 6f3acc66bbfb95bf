"""What a user asks of a trainer: a weight average and a noise scale, by words, by a recipe or by a plan file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from isobatch.average import ModelEMA
from isobatch.control import BatchSchedule
from isobatch.curves import DecayCurve, DecaySchedule
from isobatch.errors import InputError, unreadable
from isobatch.gradients import bare_optimizer
from isobatch.noise import NoiseScale
from isobatch.plan import Recipe
from isobatch.train import make_average
from isobatch.units import to_samples

Weights = Literal["raw", "average"]
Unit = Literal["samples", "tokens"]


@dataclass(frozen=True)
class Following:
    """What follows the samples of a trainer.

    Args:
        half_life: of the weight average: samples (or tokens) as a number, or words such as "2 epochs",
            "1_000_000 samples", "2e9 tokens".
        decay: per update at `batch_size`, instead of half_life.
        batch_size: global batch at which `decay` was chosen.
        recipe: a Recipe, or the file of one (TOML) or of a plan (what `isobatch plan --json` wrote), instead of both;
            its [ema], [noise] and batch.schedule are followed.
        noise: whether the noise scale is measured, or arguments of NoiseScale, such as {"every": 4}.
        unit: what the clock counts; tokens where the half-life or the recipe is in tokens, else samples.
        average: further arguments of ModelEMA, such as {"dtype": torch.float32, "warmup": ...}.

    Raises:
        InputError: settings that contradict each other.

    Example:
        >>> Following(half_life="2e9 tokens").counts
        'tokens'
    """

    half_life: float | str | None = None
    decay: float | None = None
    batch_size: float | None = None
    recipe: Recipe | str | Path | None = None
    noise: bool | Mapping[str, Any] = False
    unit: Unit | None = None
    average: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = None if self.recipe is None else recipe_of(self.recipe)
        object.__setattr__(self, "recipe", found)
        if found is not None and (self.half_life is not None or self.decay is not None):
            raise InputError("give half_life, or decay with batch_size, or a recipe; the recipe states the average")
        if self.half_life is not None and self.decay is not None:
            raise InputError(f"half_life={self.half_life!r} and decay={self.decay!r} say the same; give one of them")
        if self.unit not in (None, "samples", "tokens"):
            raise InputError(f'unit={self.unit!r} must be "samples" or "tokens"')
        if not isinstance(self.noise, bool | Mapping):
            raise InputError(f'noise={self.noise!r} must be True, False, or arguments of NoiseScale: {{"every": 4}}')
        said = self._unit_said()
        if self.unit is not None and said is not None and said != self.unit:
            raise InputError(f"unit={self.unit!r}, but the half-life or the recipe counts {said}")
        object.__setattr__(self, "unit", self.unit or said)
        if found is not None and found.ema is not None and (found.ema.ramp is not None or found.ema.start is not None):
            raise InputError(
                "ema.ramp and ema.start are planned, not followed here; give half_life, and "
                "average={'warmup': isobatch.average.Ramp(...)} or another warm-up of isobatch.average"
            )
        if found is not None and found.batch.adaptive is not None:
            raise InputError(
                "batch.adaptive needs a loop that can change the batch at any step; train the recipe with "
                "`isobatch train`, or give batch.schedule"
            )
        if isinstance(self.half_life, str) and self.half_life.rstrip(" s").endswith("step") and self.batch_size is None:
            raise InputError(f"half_life={self.half_life!r} is in steps, so it needs batch_size, the samples of a step")

    @property
    def counts(self) -> Unit:
        """What the clock counts."""
        return self.unit or "samples"

    @property
    def follows(self) -> Recipe | None:
        """The recipe, None without one."""
        return self.recipe if isinstance(self.recipe, Recipe) else None

    @property
    def averages(self) -> bool:
        """Whether a weight average was asked for."""
        recipe = self.follows
        return self.half_life is not None or self.decay is not None or (recipe is not None and recipe.ema is not None)

    @property
    def measures(self) -> bool:
        """Whether the noise scale was asked for."""
        recipe = self.follows
        return bool(self.noise) or isinstance(self.noise, Mapping) or (recipe is not None and recipe.noise is not None)

    @property
    def batches(self) -> BatchSchedule | None:
        """The recipe's batch schedule, None without one."""
        recipe = self.follows
        return None if recipe is None or recipe.batch.schedule is None else BatchSchedule.from_recipe(recipe)

    @property
    def decays(self) -> DecaySchedule | DecayCurve | None:
        """The recipe's schedule of the average's decay, None where it is constant."""
        return None if self.follows is None else self.follows.average_schedule()

    def make_average(
        self, model: nn.Module, data_size: int | None = None, last: ModelEMA | None = None
    ) -> ModelEMA | None:
        """Build the average for a model, or let that of its last run go on.

        Args:
            model: wrapped or bare, at the weights where the average starts.
            data_size: samples in an epoch, where the trainer knows them.
            last: average of the last run; a half-life in epochs is counted in those of the coming one.

        Returns:
            The average, None where none was asked for.

        Raises:
            InputError: a half-life in epochs where the samples (or tokens) of an epoch are not known.
        """
        if not self.averages:
            return None
        if last is not None:
            if isinstance(self.half_life, str) and self.half_life.rstrip(" s").endswith("epoch"):
                last.half_life = self._span(data_size)
            return last
        recipe = self.follows
        if recipe is not None:
            return make_average(model, recipe) if not self.average else self._of_recipe(model, recipe)
        if self.decay is not None:
            return ModelEMA(model, decay=self.decay, batch_size=self.batch_size, **self.average)
        return ModelEMA(model, half_life=self._span(data_size), **self.average)

    def make_noise(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, unit: Unit) -> NoiseScale | None:
        """Build the noise scale of a model.

        Args:
            model: as it is trained.
            optimizer: that trains it, wrapped or bare.
            unit: what the loss weighs micro-batches by.

        Returns:
            The noise scale, None where none was asked for.

        Raises:
            InputError: arguments that NoiseScale refuses.
        """
        if not self.measures:
            return None
        given: dict[str, Any] = dict(self.noise) if isinstance(self.noise, Mapping) else {}
        recipe = self.follows
        if recipe is not None and recipe.noise is not None:
            part = recipe.noise
            if part.capture == "halves":
                raise InputError('noise.capture = "halves" needs a loop of one\'s own; use "auto" inside a trainer')
            given = {"every": part.every, "geometry": part.geometry, "capture": part.capture} | given
            if part.half_life is not None:
                given.setdefault("half_life", recipe.span(part.half_life, "noise.half_life"))
        given.setdefault("unit", unit)
        # a trainer's optimizer may hold other tensors than the model, such as DeepSpeed's copies in float32
        needed = given.get("geometry") == "adam" or given.get("groups") == "optimizer"
        return NoiseScale(model, bare_optimizer(optimizer) if needed else None, **given)

    def _of_recipe(self, model: nn.Module, recipe: Recipe) -> ModelEMA:
        known: dict[str, Any] = {"half_life": recipe.half_life}
        if recipe.ema is not None:
            known |= {"kind": recipe.ema.kind, "cadence": recipe.ema.every, "batch_size": recipe.staircase().stair}
        return ModelEMA(model, **known | dict(self.average))

    def _span(self, data_size: int | None) -> float:
        """Return the half-life on the clock."""
        if not isinstance(self.half_life, str):
            return self.half_life if self.half_life is not None else math.inf
        if self.counts == "tokens" and self.half_life.rstrip(" s").endswith("epoch"):
            raise InputError(
                f"half_life={self.half_life!r} is in epochs and the clock counts tokens; say it in tokens, or count "
                "samples"
            )
        if data_size is None and self.half_life.rstrip(" s").endswith("epoch"):
            raise InputError(
                f"half_life={self.half_life!r} is in epochs, and the samples of an epoch are not known here (a stream, "
                'or no dataloader was given); say it in samples, such as "1_000_000 samples"'
            )
        batch = None if self.batch_size is None else int(self.batch_size)
        return to_samples(self.half_life, batch=batch, data_size=data_size, name="half_life", unit=self.counts)

    def _unit_said(self) -> Unit | None:
        if self.follows is not None:
            return self.follows.batch.unit
        if isinstance(self.half_life, str):
            word = self.half_life.strip().rstrip("s").rstrip()
            return "tokens" if word.endswith("token") else "samples" if word.endswith("sample") else None
        return None


def samples_of(loader: Any) -> int | None:
    """Return the samples of an epoch.

    Args:
        loader: of the training data, or None.

    Returns:
        Their number, None for a stream and where nobody knows.

    Example:
        >>> samples_of(torch.utils.data.DataLoader([1, 2, 3], batch_size=2)), samples_of(iter([]))
        (3, None)
    """
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def refuse_other_weights(**choices: str) -> None:
    """Refuse a choice of weights that is neither "raw" nor "average".

    Args:
        **choices: by the name of the argument.

    Raises:
        InputError: another word.

    Example:
        >>> refuse_other_weights(evaluate="average", export="raw")
    """
    for name, value in choices.items():
        if value not in ("raw", "average"):
            raise InputError(f'{name}={value!r} must be "raw" or "average"')


def refuse_two_averages(callbacks: Sequence[Any], own: Any) -> None:
    """Refuse a callback that gives its average to what another one gives its own to.

    Args:
        callbacks: those of this library in one trainer.
        own: the callback that asks.

    Raises:
        InputError: two for evaluations, or two for the model after training.

    Example:
        >>> refuse_two_averages([], None)
    """
    for word, what in (("evaluate", "evaluations"), ("export", "the model after training")):
        giving = [one for one in callbacks if getattr(one, word) == "average" and one.asked.averages]
        if len(giving) > 1 and any(one is own for one in giving):
            raise InputError(
                f"{len(giving)} callbacks would give {what} their average, and there is room for one; take "
                f'{word}="raw" in the others'
            )


def recipe_of(source: Recipe | str | Path) -> Recipe:
    """Return a recipe from itself, from its TOML file, or from the JSON of a plan, whose recipe is at the new batch.

    Args:
        source: a recipe, or the path of a file.

    Returns:
        The recipe.

    Raises:
        InputError: no such file, or neither a recipe nor a plan.

    Example:
        >>> recipe_of("examples/digits.toml").batch.size
        8
    """
    if isinstance(source, Recipe):
        return source
    path = Path(source)
    if path.suffix != ".json":
        return Recipe.load(path)
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("the plan", path, error) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; write it with `isobatch plan RECIPE --json`") from None
    if not isinstance(values, dict) or not isinstance(values.get("recipe"), dict):
        raise InputError(f"{path} is no plan: it has no recipe; write it with `isobatch plan RECIPE --json`")
    return Recipe.parse(values["recipe"])
