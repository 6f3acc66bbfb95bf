"""The one loop: a straight line per step, on the sample clock."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from isobatch import rules
from isobatch.curves import AutoWU, Pieces, Staircase
from isobatch.data import Drawn, SampleOrder, shard
from isobatch.errors import InputError, NonFiniteError, warn
from isobatch.optimizers import write_prepared
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.optimizers.one_pass import OnePassStep
from isobatch.plan import Recipe, Settings, base, scaled
from isobatch.renamed import OldAttribute
from isobatch.tasks import LossContext, Run
from isobatch.train.forward_passes import ForwardPasses
from isobatch.train.gradient import Accumulator, make_drawing
from isobatch.train.guard import Guard, Judgement, StepVerdict
from isobatch.train.noise_monitor import NoiseMonitor
from isobatch.train.sample_clock import SampleClock
from isobatch.train.setup import (
    Followed,
    batches,
    check_trainable,
    make_average,
    make_optimizer,
    make_search,
    prepare_groups,
    rescale_state,
)
from isobatch.train.world import Device, World
from isobatch.units import whole


@dataclass(frozen=True)
class Step:
    """What one step did.

    Args:
        batch: samples drawn.
        loss: mean loss before the update.
        lr: learning rate of the update, 0 where it was skipped.
        verdict: whether it was applied.
        reason: why it was not.
    """

    batch: int
    loss: float
    lr: float
    verdict: StepVerdict
    reason: str = ""


class _OfClock:
    """A counter of the trainer's clock, under the trainer's own name."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, trainer: Any, owner: type | None = None) -> Any:
        return self if trainer is None else getattr(trainer.clock, self._name)

    def __set__(self, trainer: Any, value: int) -> None:
        setattr(trainer.clock, self._name, value)


class Trainer:
    """Train a run by a recipe; the batch may be any size at any step.

    seen, drawn -> indices(drawn) -> micro-batches -> gradient -> guard -> settings(seen, B) -> optimizer
    -> average(samples=B) -> seen += B. The order runs on across epoch ends and drops nothing. Under torch.distributed
    every rank takes its part of each global batch, and all ranks obey one verdict. A loss with `needs` is handed the
    average as it stands after the previous step (post-step order). Where the recipe asks for it, the noise scale is
    measured on the way, and chooses the next batch.

    Args:
        run: data, model, loss and metric.
        recipe: numbers at the recipe's own batch; other batches follow its rules.
        order_seed: seed of the sample order.
        guard: judges each step; by default the first step that is not finite stops the run.
        device: where the run computes, the CPU unless given; the run is moved there.
        world: the processes that train, where they are not all those of the job.

    Raises:
        InputError: a recipe that cannot be trained (no schedule, an optimizer that only the rules know, a loss that
            needs a teacher without an average).
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        *,
        order_seed: int = 0,
        guard: Guard | None = None,
        device: Device | None = None,
        world: World | None = None,
    ):
        check_trainable(recipe, run.reads)
        self.run, self.recipe, self.guard, self.world = run, recipe, guard or Guard(), world or World.current()
        self.device = device or Device()
        self.device.place(run)
        if self.world.shards and recipe.schedule is not None and recipe.schedule.searches:
            raise InputError("--shard and a rate that is searched for (AutoWU) do not go together; drop one of them")
        self.world.shard(run.model, self.device.name)
        self.schedule = recipe.staircase()
        self.order = SampleOrder(len(run.samples), order_seed)
        self.drawing = make_drawing(run, recipe, self.order)
        extras = recipe.augment is not None or recipe.adversary is not None
        self.passes = ForwardPasses(run, recipe, self.order, self.world, self.device) if extras else None
        self.optimizer = make_optimizer(run.model, recipe, self.world)
        self._update = OnePassStep(self.optimizer)
        self.average = make_average(run.model, recipe)
        if self.average is None and run.needs is not None and run.needs.teacher is not None:
            raise InputError("this task's loss uses the weight average as its teacher; add [ema] to the recipe")
        self.average_schedule = recipe.average_schedule()
        self.followed = Followed(recipe)
        self.search = make_search(recipe, run.model, self.optimizer, self.average, self.world)
        model = self.world.wrap(run.model)
        measured = recipe.noise is not None or recipe.batch.adaptive is not None
        self.monitor = NoiseMonitor(model, self.optimizer, recipe, self.world, self.drawing.epoch) if measured else None
        self.clock = SampleClock(
            average=self.average, noise=self.monitor, optimizer=self.optimizer, unit="samples", world=self.world
        )
        self.gradient = Accumulator(
            replace(run, model=model), self.optimizer, self.world, self.device, self.monitor, self.clock, self.drawing
        )
        self.skipped_in_a_row = 0
        self.noise_share = 1.0 if recipe.rules.noise_share is None else recipe.rules.noise_share
        self.last_batch = recipe.batch.size
        self.batch_at = batches(recipe) if self.monitor is None or recipe.batch.schedule else self.monitor.batch
        self._settings: dict[int, Settings] = {}
        self._stairs: dict[int, Staircase | Pieces] = {}
        self._groups: dict[int, list[dict[str, Any]]] = {}
        self._parameters = list(run.model.parameters())
        self._norms = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._set_batch_norm(self.settings(self.last_batch))

    seen, drawn, steps = _OfClock("seen"), _OfClock("drawn"), _OfClock("steps")
    skipped = _OfClock("skips")
    turns = OldAttribute("passes")

    @property
    def follower(self) -> NoiseMonitor | None:
        """The old name of `monitor`."""
        warn("Trainer.follower is Trainer.monitor now", DeprecationWarning)
        return self.monitor

    @property
    def length(self) -> int:
        """Samples of the whole run."""
        return math.ceil(self.schedule.length)

    def settings(self, batch: int) -> Settings:
        """Return the numbers of a step of `batch` samples, without the schedule's factor."""
        if batch not in self._settings and self.recipe.batch.schedule_lr == "keep":
            self._settings[batch] = replace(base(self.recipe), batch=batch)
        elif batch not in self._settings:
            self._settings[batch] = scaled(self.recipe, batch, self._per_device(batch))
        return self._settings[batch]

    def step(self, batch: int | None = None, left: int | None = None) -> Step:
        """Draw one batch, and update unless the guard says no.

        Args:
            batch: samples (or tokens, where the clock counts them: as many samples as fit); the recipe's batch unless
                given.
            left: to a stop, None for no end; the last batch is cut to fit. Tokens may pass it by part of one sample.

        Returns:
            What happened.

        Raises:
            InputError: a batch that is not a positive whole number.
            NonFiniteError: the guard stopped the run; nothing was applied.
        """
        asked = whole("batch", batch) if batch is not None else self.recipe.batch.size
        if self.clock.pending:  # an error ended the step before
            self.clock.discard()
        drawn = self.drawing.take(self.drawn, asked, left)
        size = drawn.size
        statistics = [(buffer, buffer.clone()) for norm in self._norms for buffer in norm.buffers()]
        self._set_batch_norm(self.settings(drawn.batch))
        if self.passes is not None:
            self.passes.begin(self.gradient, self.drawn, size, self.seen, self._per_device(size))
        mine, most = self._mine(drawn.indices), self._per_device(drawn.batch)
        loss = self.gradient.run(mine, size, most, statistics, self._context(drawn))
        judgement = self._judge(loss)
        if judgement.verdict is not StepVerdict.APPLY:
            for buffer, before in statistics:
                buffer.copy_(before)
            self.clock.discard()
        if judgement.verdict is StepVerdict.STOP:
            raise NonFiniteError(
                f"stopped at step {self.steps + 1} with {self.seen} samples seen: {judgement.reason}",
                self.seen,
                judgement.parameter,
            )
        if judgement.verdict is StepVerdict.SKIP:
            self.clock.skipped(rows=size)
            self.skipped_in_a_row += 1
            return Step(size, loss, 0.0, judgement.verdict, judgement.reason)
        lr = self._apply(drawn)
        self.skipped_in_a_row = 0
        if self.search is not None:
            self.search.observe(loss, self.seen - size, self.seen)
        if self.monitor is not None:
            self.monitor.applied(self.seen, self.settings(drawn.batch), lr)
        return Step(size, loss, lr, judgement.verdict)

    def train_to(self, seen: int, on_step: Callable[[Step], None] | None = None) -> None:
        """Train until `seen` samples have been applied; the last batch is cut to fit (tokens to the end of a sample).

        Args:
            seen: samples on the clock.
            on_step: called after each step.
        """
        while self.seen < seen:
            step = self.step(self.batch_at(self.seen), seen - self.seen)
            if on_step is not None:
                on_step(step)

    def train_through(self, stops: Sequence[int], visit: Callable[[], None]) -> None:
        """Train to stop after stop.

        Args:
            stops: samples on the clock, rising.
            visit: called at each.
        """
        for stop in stops:
            self.train_to(stop)
            visit()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the held-out metrics of the raw weights, and of the averaged ones where there is an average."""
        result = {"raw": self.run.evaluate()}
        if self.passes is not None:
            result |= self.passes.evaluate()
        if self.average is not None:
            with self.average.applied(self.run.model):
                result["average"] = self.run.evaluate()
        return result

    def _per_device(self, size: int) -> int:
        """Return the samples of one forward pass: batch.micro, or an even share of the devices."""
        parts = self.recipe.batch
        devices = max(parts.devices, self.world.size)
        most = min(parts.micro, size) if parts.micro else math.ceil(size / devices)
        most = min(most, self.device.most or most)
        if isinstance(self.optimizer, InvariantOptimizer):
            most = min(most, self.optimizer.reference_batch)
        return most

    def _mine(self, positions: torch.Tensor) -> torch.Tensor:
        return positions if self.world.size == 1 else shard(positions, self.world.rank, self.world.size)[0]

    def _context(self, drawn: Drawn) -> LossContext | None:
        """Return what the loss may know: the average after the last step, the clock, and this rank's places."""
        needs = self.run.needs
        if needs is None:
            return None
        sizes = torch.tensor(self.drawing.sizes(drawn.indices))
        places = self._mine(self.drawn + sizes.cumsum(0) - sizes)
        if not len(places):
            places = torch.zeros(1, dtype=torch.int64)
        average = None
        if needs.teacher is not None and self.average is not None:
            average = self.device.teacher(self.average.teacher(needs.teacher))
        return LossContext(self.seen, drawn.size, self.length, places, needs.means, average)

    def _judge(self, loss: float) -> Judgement:
        judgement = self.guard.judge(loss, self.run.model, self.skipped_in_a_row, self._parameters)
        apply = judgement.verdict is StepVerdict.APPLY
        if self.world.size == 1 or self.world.total([0.0 if apply else 1.0])[0] == 0:
            return judgement
        # another rank saw what this one did not: the same verdict follows from the same count of skips
        return self.guard.refuse("another rank's step is not finite", self.skipped_in_a_row) if apply else judgement

    def _apply(self, drawn: Drawn) -> float:
        size, end = drawn.batch, self.seen + drawn.size
        new = self.settings(size)
        self.clock.ready(rows=drawn.size)
        if self.passes is not None:
            self.passes.applied()
        if size != self.last_batch and self.recipe.batch.schedule_lr != "keep":
            rescale_state(self.optimizer, self.settings(self.last_batch), new, self.noise_share)
            self.noise_share = rules.noise_share_after(self.noise_share, size / self.last_batch)
            self.last_batch = size
        if new.clip is not None:
            self._clip(new.clip)
        lr = new.lr * self.followed.factor(new, self.seen, self._factor(size).mean(self.seen, end))
        if size not in self._groups:
            self._groups[size] = prepare_groups(self.optimizer, self.recipe, new)
        write_prepared(self.optimizer, self.followed.rows(self._groups[size], new, self.seen), lr)
        self._update.step()
        schedule = self.average_schedule
        span = schedule.half_life(self.seen, end) if schedule else new.half_life
        self.clock.applied(half_life=span)
        for mean in self.run.needs.means.values() if self.run.needs is not None else ():
            self.world.pool(mean)
            mean.commit(samples=drawn.size)
        return lr

    def _factor(self, size: int) -> Staircase | Pieces | AutoWU:
        if self.search is not None:
            return self.search.rate
        if size not in self._stairs:  # under some rules it moves with the batch
            self._stairs[size] = self.recipe.staircase(size)
        return self._stairs[size]

    def _clip(self, most: float) -> None:
        if self.recipe.optimizer.clip_by == "value":
            nn.utils.clip_grad_value_(self._parameters, most)
            return
        nn.utils.clip_grad_norm_(self._parameters, most)

    def _set_batch_norm(self, settings: Settings) -> None:
        if settings.batch_norm is not None:
            for norm in self._norms:
                norm.momentum = settings.batch_norm
