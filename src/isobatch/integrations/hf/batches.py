"""A recipe's batch schedule in an HF Trainer: more accumulation from one epoch on, which is all that it allows."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers.trainer_callback import TrainerState
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
        held: Mapping[str, Any] | None,
        scheduler: SampleScheduler | None,
        parts: Mapping[str, Any],
        *,
        placed: bool = False,
    ) -> "BatchStages | None":
        """Return the stages of a recipe with a batch schedule, checked as a whole before the first step.

        Args:
            asked: what the user asked for.
            args: of the Trainer.
            data_size: samples of an epoch.
            held: the state of the callback in the checkpoint that is gone on from, None at the start of a run.
            scheduler: the Trainer's, where it is a SampleScheduler.
            parts: what the Trainer tells its callbacks.
            placed: whether the mixin has told the Trainer where in the data it stopped.

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
        first = args.gradient_accumulation_steps
        if held is not None:  # the optimizer's settings in the checkpoint are those of its batch
            seen = held["clock"]["seen"]
            args.gradient_accumulation_steps = (
                held["trainer"]["accumulation"] if "trainer" in held else schedule.at(int(seen)) // per_pass
            )
            if args.gradient_accumulation_steps != first and not placed:
                args.gradient_accumulation_steps = first
                raise InputError(
                    f"a resume at {seen:g} samples, after the batch changed: the Trainer counts its epochs by one "
                    "accumulation and would go on at another place; write class MyTrainer(IsobatchTrainerMixin, "
                    "Trainer), which tells it the right one, or use isobatch train"
                )
        return cls(schedule, recipe, args, bare_optimizer(parts["optimizer"]), scheduler, per_pass, first)

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


def batch_of(args: TrainingArguments) -> dict[str, int]:
    """Return what the batch of a Trainer is made of.

    Args:
        args: of the Trainer.

    Returns:
        Samples of one micro-batch on all ranks, and micro-batches of a step.
    """
    per_pass = args.per_device_train_batch_size * args.world_size
    return {"per_pass": per_pass, "accumulation": args.gradient_accumulation_steps}


def refuse_another_place(held: Mapping[str, Any], args: TrainingArguments, state: TrainerState, loader: Any) -> None:
    """Refuse a resume after which the Trainer would go on at another place in the data than where it stopped.

    It skips global_step times the batch that it is given now, whatever the batch was before.

    Args:
        held: the state of the callback in the checkpoint.
        args: of the Trainer.
        state: of the Trainer, at the checkpoint's step.
        loader: of the training data.

    Raises:
        InputError: another batch, and another place; says both and what would do.
    """
    before, now = held.get("trainer"), batch_of(args)
    if before is None or dict(before) == now or args.ignore_data_skip:
        return
    try:
        passes = len(loader)
    except TypeError:
        passes = None

    def place(batch: Mapping[str, int]) -> int:
        accumulate = batch["accumulation"]
        if passes is None:
            return state.global_step * accumulate * batch["per_pass"]
        each = passes * now["per_pass"] // batch["per_pass"]  # passes of an epoch in that batch
        epochs, steps = divmod(state.global_step, max(1, -(-each // accumulate)))
        return epochs * passes * now["per_pass"] + steps * accumulate * batch["per_pass"]

    stopped, goes_on = place(before), place(now)
    if stopped != goes_on:
        old, new = before["per_pass"] * before["accumulation"], now["per_pass"] * now["accumulation"]
        raise InputError(
            f"the checkpoint is of batch {old}, this run of {new}: the Trainer would skip {goes_on:,} samples where "
            f"{stopped:,} were trained on; resume at batch {old}, or take ignore_data_skip=True, which begins the "
            "epoch's data again, or use isobatch train"
        )


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
