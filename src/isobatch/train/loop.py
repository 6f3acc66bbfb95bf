"""The one loop: a straight line per step, on the sample clock."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from isobatch import rules
from isobatch.average import ModelEMA
from isobatch.data import SampleOrder
from isobatch.errors import InputError, NonFiniteError
from isobatch.optimizers import build, write_settings
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.plan import Recipe, Settings, scaled
from isobatch.tasks import Run
from isobatch.train.guard import Guard, Verdict
from isobatch.train.state import rescale_state
from isobatch.units import whole


@dataclass(frozen=True)
class Step:
    """What one step did.

    Args:
        batch: samples drawn.
        loss: mean loss before the update.
        lr: learning rate of the update.
        verdict: whether it was applied.
    """

    batch: int
    loss: float
    lr: float
    verdict: Verdict


class Trainer:
    """Train a run by a recipe; the batch may be any size at any step.

    seen, drawn -> indices(drawn) -> micro-batches -> gradient -> guard -> settings(seen, B) -> optimizer
    -> average(samples=B) -> seen += B. The order runs on across epoch ends and drops nothing.

    Args:
        run: data, model, loss and metric.
        recipe: numbers at the recipe's own batch; other batches follow its rules.
        order_seed: seed of the sample order.
        guard: judges each step; by default the first step that is not finite stops the run.

    Raises:
        InputError: a recipe that cannot be trained (no schedule, an optimizer that only the rules know).
    """

    def __init__(self, run: Run, recipe: Recipe, *, order_seed: int = 0, guard: Guard | None = None):
        self.run, self.recipe, self.guard = run, recipe, guard or Guard()
        self.schedule = recipe.staircase()
        self.optimizer = make_optimizer(run.model, recipe)
        self.average = make_average(run.model, recipe)
        self.average_schedule = recipe.average_schedule()
        self.order = SampleOrder(len(run.samples), order_seed)
        self.seen = self.drawn = self.steps = self.skipped = self.skipped_in_a_row = 0
        self._settings: dict[int, Settings] = {}
        self.noise_share = 1.0 if recipe.rules.noise_share is None else recipe.rules.noise_share
        self._norms = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._last = self.settings(recipe.batch.size)
        self._set_batch_norm(self._last)

    @property
    def length(self) -> int:
        """Samples of the whole run."""
        return math.ceil(self.schedule.length)

    def settings(self, batch: int) -> Settings:
        """Return the numbers of a step of `batch` samples, without the schedule's factor."""
        if batch not in self._settings:
            self._settings[batch] = scaled(self.recipe, batch, self._per_device(batch))
        return self._settings[batch]

    def step(self, batch: int | None = None) -> Step:
        """Draw one batch, and update unless the guard says no.

        Args:
            batch: samples; the recipe's batch unless given.

        Returns:
            What happened.

        Raises:
            InputError: a batch that is not a positive whole number.
            NonFiniteError: the guard stopped the run; nothing was applied.
        """
        size = whole("batch", batch) if batch is not None else self.recipe.batch.size
        statistics = [(buffer, buffer.clone()) for norm in self._norms for buffer in norm.buffers()]
        self._set_batch_norm(self.settings(size))
        loss = self._gradient(size)
        judgement = self.guard.judge(loss, self.run.model, self.skipped_in_a_row)
        if judgement.verdict is not Verdict.APPLY:
            for buffer, before in statistics:
                buffer.copy_(before)
        if judgement.verdict is Verdict.STOP:
            raise NonFiniteError(
                f"stopped at step {self.steps + 1} with {self.seen} samples seen: {judgement.reason}",
                self.seen,
                judgement.parameter,
            )
        self.drawn += size
        if judgement.verdict is Verdict.SKIP:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            return Step(size, loss, 0.0, judgement.verdict)
        lr = self._apply(size)
        self.seen, self.steps, self.skipped_in_a_row = self.seen + size, self.steps + 1, 0
        return Step(size, loss, lr, judgement.verdict)

    def train_to(self, seen: int, on_step: Callable[[Step], None] | None = None) -> None:
        """Train until exactly `seen` samples have been applied; the last batch is cut to fit.

        Args:
            seen: samples on the clock.
            on_step: called after each step.
        """
        while self.seen < seen:
            step = self.step(min(self.recipe.batch.size, seen - self.seen))
            if on_step is not None:
                on_step(step)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the held-out metrics of the raw weights, and of the averaged ones where there is an average."""
        result = {"raw": self.run.evaluate()}
        if self.average is not None:
            with self.average.applied(self.run.model):
                result["average"] = self.run.evaluate()
        return result

    def _gradient(self, size: int) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for indices in self._micro_batches(size):
            loss = self.run.step(self.run.samples[indices])
            weight = len(indices) / size
            with self._chunk(len(indices)):
                (loss if weight == 1 else loss * weight).backward()
            total += float(loss.detach()) * weight
        return total

    def _micro_batches(self, size: int) -> Iterator[torch.Tensor]:
        yield from self.order.indices(self.drawn, size).split(self._per_device(size))

    def _per_device(self, size: int) -> int:
        """Return the samples of one forward pass: batch.micro, or an even share of the devices."""
        parts = self.recipe.batch
        most = min(parts.micro, size) if parts.micro else math.ceil(size / parts.devices)
        if isinstance(self.optimizer, InvariantOptimizer):
            most = min(most, self.optimizer.reference_batch)
        return most

    def _chunk(self, samples: int) -> AbstractContextManager[None]:
        return self.optimizer.chunk(samples) if isinstance(self.optimizer, InvariantOptimizer) else nullcontext()

    def _apply(self, size: int) -> float:
        new = self.settings(size)
        if new.batch != self._last.batch:
            rescale_state(self.optimizer, self._last, new, self.noise_share)
            self.noise_share = rules.noise_share_after(self.noise_share, new.batch / self._last.batch)
        self._last = new
        if self.recipe.optimizer.clip is not None:
            self._clip(self.recipe.optimizer.clip)
        lr = new.lr * self.schedule.mean(self.seen, self.seen + size)
        write(self.optimizer, self.recipe, new, lr)
        self.optimizer.step()
        if self.average is not None:
            schedule = self.average_schedule
            span = schedule.half_life(self.seen, self.seen + size) if schedule else None
            self.average.update(samples=size, half_life=span)
        return lr

    def _clip(self, most: float) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.run.model.parameters(), most))
        if isinstance(self.optimizer, InvariantOptimizer):
            self.optimizer.chunks.scaled(min(1.0, most / (norm + 1e-6)))

    def _set_batch_norm(self, settings: Settings) -> None:
        if settings.batch_norm is not None:
            for norm in self._norms:
                norm.momentum = settings.batch_norm


def write(optimizer: torch.optim.Optimizer, recipe: Recipe, settings: Settings, lr: float) -> None:
    """Write the numbers of one step into the optimizer; it reads those that it has.

    Args:
        optimizer: the recipe's optimizer.
        recipe: names the optimizer.
        settings: numbers at the batch of the step.
        lr: learning rate of the step, the schedule's factor included.
    """
    family = rules.FAMILIES[recipe.optimizer.name]
    betas = (settings.betas[0], settings.alpha) if "alpha" in family.moments else settings.betas
    write_settings(
        optimizer,
        lr=lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum if "momentum" in family.moments else None,
        betas=betas if family.adaptive else None,
        eps=settings.eps if family.adaptive else None,
    )


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer for a model.

    Args:
        model: whose parameters are trained.
        recipe: names the optimizer and its numbers.

    Returns:
        The optimizer.

    Raises:
        InputError: an optimizer or a coupling of weight decay that is planned for but not shipped.
    """
    o = recipe.optimizer
    if o.coupling not in ("coupled", "decoupled"):
        raise InputError(
            f"optimizer.decay={o.coupling!r} can be planned but not trained here; use coupled or decoupled"
        )
    return build(
        o.name,
        model.parameters(),
        lr=o.lr,
        momentum=o.momentum,
        nesterov=o.nesterov,
        betas=(o.betas[0], o.alpha) if "alpha" in rules.FAMILIES[o.name].moments else o.betas,
        eps=o.eps,
        weight_decay=o.weight_decay,
        coupled=(o.coupling == "coupled") if o.weight_decay else None,
        reference_batch=o.reference_batch or recipe.batch.size,
    )


def make_average(model: nn.Module, recipe: Recipe) -> ModelEMA | None:
    """Build the recipe's weight average.

    Args:
        model: whose weights are averaged.
        recipe: its [ema] part gives half-life, cadence and kind.

    Returns:
        The average, None for a recipe without one.
    """
    if recipe.ema is None:
        return None
    stair = recipe.staircase().stair
    return ModelEMA(model, half_life=recipe.half_life, batch_size=stair, kind=recipe.ema.kind, cadence=recipe.ema.every)
