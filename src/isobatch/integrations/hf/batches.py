"""A recipe's batch schedule in an HF Trainer: more accumulation from one epoch on, which is all that it allows."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers.training_args import TrainingArguments

from isobatch.control import BatchSchedule
from isobatch.errors import InputError
from isobatch.gradients import bare_optimizer
from isobatch.integrations.settings import Following
from isobatch.plan import Recipe
from isobatch.train import SampleClock, SampleScheduler, rescale


@dataclass
class BatchStages:
    """Raises the accumulation of a Trainer at the beginning of an epoch, and moves the optimizer's settings with it.

    The Trainer counts the steps of all epochs before the first: with more accumulation it runs out of batches early,
    which it survives; with less, or in the middle of an epoch, it would train on a part of the data without a word.

    Args:
        schedule: batch by samples seen.
        recipe: whose rules move the settings.
        args: of the Trainer; its gradient_accumulation_steps is changed.
        optimizer: bare.
        scheduler: the SampleScheduler that the Trainer steps.
        per_pass: samples of one micro-batch on all ranks.
        before: accumulation that the Trainer was given.
    """

    schedule: BatchSchedule
    recipe: Recipe
    args: TrainingArguments
    optimizer: Any
    scheduler: SampleScheduler
    per_pass: int
    before: int

    @classmethod
    def of(
        cls,
        asked: Following,
        args: TrainingArguments,
        data_size: int | None,
        seen: float,
        scheduler: SampleScheduler | None,
        parts: Mapping[str, Any],
    ) -> "BatchStages | None":
        """Return the stages of a recipe with a batch schedule, checked as a whole before the first step.

        Args:
            asked: what the user asked for.
            args: of the Trainer.
            data_size: samples of an epoch.
            seen: samples on the clock, more than 0 after a resume.
            scheduler: the Trainer's, where it is a SampleScheduler.
            parts: what the Trainer tells its callbacks.

        Returns:
            The stages, None without a batch schedule.

        Raises:
            InputError: a schedule that the Trainer cannot follow; says why and what would do.
        """
        schedule, recipe = asked.batches, asked.follows
        if schedule is None or recipe is None:
            return None
        if data_size is None or asked.counts != "samples":
            raise InputError("batch.schedule in the Trainer needs a data set with a length, and a clock of samples")
        per_pass = args.per_device_train_batch_size * args.world_size
        _check(schedule, data_size, per_pass, args)
        if scheduler is None:
            raise InputError(
                "batch.schedule needs a schedule in samples: Trainer(optimizers=(optimizer, SampleScheduler(scheduler, "
                "batch_size=...))); the Trainer's own counts steps"
            )
        if seen and schedule.at(int(seen)) != schedule.at(0):
            raise InputError(
                f"a resume at {seen:g} samples, after the batch changed: the Trainer counts its epochs by one "
                "accumulation and would go on at another place; resume a run whose batch stays, or use isobatch train"
            )
        optimizer = bare_optimizer(parts["optimizer"])
        return cls(schedule, recipe, args, optimizer, scheduler, per_pass, args.gradient_accumulation_steps)

    def begin_epoch(self, clock: SampleClock) -> None:
        """Take the batch of this epoch.

        Args:
            clock: of the run.
        """
        batch = self.schedule.at(int(clock.seen))
        wanted = batch // self.per_pass
        if wanted != self.args.gradient_accumulation_steps:
            rescale(
                to=batch,
                optimizer=self.optimizer,
                recipe=self.recipe,
                scheduler=self.scheduler,
                ema=clock.average,
                noise=clock.noise,
            )
            self.args.gradient_accumulation_steps = wanted

    def end(self) -> None:
        """Give the Trainer its own accumulation back."""
        self.args.gradient_accumulation_steps = self.before


def _check(schedule: BatchSchedule, data_size: int, per_pass: int, args: TrainingArguments) -> None:
    first = schedule.at(0)
    now = per_pass * args.gradient_accumulation_steps
    if first != now:
        raise InputError(
            f"batch.schedule begins at {first} and the Trainer's batch is {now} (per_device_train_batch_size x "
            "world_size x gradient_accumulation_steps); make them agree"
        )
    for start, batch in schedule.stages:
        if batch % per_pass:
            raise InputError(
                f"batch.schedule: {batch} is no multiple of {per_pass}, the samples of one micro-batch on all ranks; "
                "the Trainer can change its accumulation alone"
            )
        if start % data_size:
            near = start // data_size
            raise InputError(
                f"batch.schedule: {start} samples is in the middle of an epoch of {data_size}, where the Trainer would "
                f"leave samples out; begin the stage at {near} or {near + 1} epochs, or use isobatch train"
            )
    for (_, before), (start, after) in pairwise(schedule.stages):
        if after < before:
            raise InputError(
                f"batch.schedule falls from {before} to {after} at {start} samples: the Trainer would end each epoch "
                "early; let the batch grow only, or use isobatch train"
            )
