"""The callback of an HF Trainer: average, noise scale, evaluation, resume, batch schedule."""

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from isobatch.errors import InputError
from isobatch.integrations.export import STATE, load_state, refuse_sharded, save_average, save_state
from isobatch.integrations.hf.batches import BatchStages, batch_of, refuse_another_place
from isobatch.integrations.hf.counting import Counted, Counting
from isobatch.integrations.last_run import LastRun
from isobatch.integrations.report import answer, entries, say, tell
from isobatch.integrations.settings import (
    Following,
    Unit,
    Weights,
    refuse_other_weights,
    refuse_two_averages,
    samples_of,
)
from isobatch.logs import Log
from isobatch.train import SampleClock, SampleScheduler


class IsobatchCallback(TrainerCallback):
    """Weight average and noise scale on the sample clock, in an HF Trainer.

    A second train() of the same model, at the weights that the first one left, goes on with its average and its count
    of samples; the noise scale is measured anew. Another model, or other weights, begin anew.

    Several callbacks follow one run, with half-lives of their own; evaluations see the average of one of them.

    Args:
        half_life: of the average: a number of samples (or tokens), or words such as "2 epochs", "1e6 samples",
            "2e9 tokens".
        decay: per update at `batch_size`, instead of half_life.
        batch_size: global batch at which `decay` was chosen.
        recipe: a Recipe, its TOML file or the JSON of a plan, instead of both.
        noise: whether the noise scale is measured, or arguments of NoiseScale.
        unit: what the clock counts, "samples" or "tokens"; by the half-life unless given.
        average: further arguments of ModelEMA.
        evaluate: weights that evaluations inside training see: "average", or "raw".
        export: weights that the model has after training: "raw", or "average".
        rows_per_sample: rows of a forward pass that are one sample; known for the Trainer and for TRL's SFT, DPO and
            reward trainers.
        resume_from: checkpoint folder of a resumed run, where it is not output_dir/checkpoint-STEP.
        log: a logger with samples on the x axis beside the trainer's own, whose steps are the trainer's:
            `isobatch.logs.open_log("tensorboard", Path("out"))`, or any object with its two methods. Closed at the end.
        quiet: whether the closing line is left out.

    Raises:
        InputError: settings that contradict each other.

    Example:
        >>> IsobatchCallback(half_life="2 epochs", noise=True).ema is None  # made when training begins
        True
    """

    def __init__(
        self,
        half_life: float | str | None = None,
        *,
        decay: float | None = None,
        batch_size: float | None = None,
        recipe: Any = None,
        noise: bool | Mapping[str, Any] = False,
        unit: Unit | None = None,
        average: Mapping[str, Any] | None = None,
        evaluate: Weights = "average",
        export: Weights = "raw",
        rows_per_sample: int | None = None,
        resume_from: str | Path | None = None,
        log: Log | None = None,
        quiet: bool = False,
    ):
        refuse_other_weights(evaluate=evaluate, export=export)
        self.asked = Following(half_life, decay, batch_size, recipe, noise, unit, average or {})
        if not self.asked.averages and not self.asked.measures:
            raise InputError("nothing to do: give half_life, decay or a recipe with [ema], or noise=True")
        self.evaluate: Weights = evaluate
        self.export: Weights = export
        self.rows_per_sample, self.own_log, self.quiet = rows_per_sample, log, quiet
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.clock: SampleClock | None = None
        self.counting: Counting | None = None
        self._stages: BatchStages | None = None
        self._model: nn.Module | None = None
        self._trainer: Trainer | None = None
        self._lent, self._is_lent, self._evaluations = ExitStack(), False, 0
        self._line, self._placed, self._file = "", False, STATE
        self._last = LastRun()

    @property
    def ema(self) -> Any:
        """The average, None before training or without one."""
        return None if self.clock is None else self.clock.average

    @property
    def noise(self) -> Any:
        """The noise scale, None before training or without one."""
        return None if self.clock is None else self.clock.noise

    @property
    def sentence(self) -> str:
        """The closing line of the last run: whether a larger batch is worth it."""
        return self._line

    def save_average(self, folder: str | Path) -> Path:
        """Write the averaged model as `from_pretrained` reads it.

        Args:
            folder: of the model.

        Returns:
            Its safetensors file.

        Raises:
            InputError: before training, or without an average.
        """
        if self.ema is None or self._model is None:
            raise InputError("there is no average yet; give half_life, and save after training has begun")
        return save_average(self.ema, self._model, folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build average, noise scale and clock where training starts, or take up a checkpoint's or the last ones."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.leave()
        if args.save_strategy != "no":
            refuse_sharded(model, "a checkpoint of the Trainer", 'take save_strategy="no", or DistributedDataParallel')
        self._model, self._trainer = model, trainer_of(state)
        self._place_beside_others()
        size = samples_of(kwargs.get("train_dataloader"))
        if self.counting is not None:
            self.counting.remove()
        self.counting = Counting(model, args, self._trainer, self.rows_per_sample)
        unit: Unit = "tokens" if self.counting.weighted else "samples"
        self.counting.check(self.asked.counts, measures=self.asked.measures)
        scheduler = _sample_scheduler(kwargs.get("lr_scheduler"))
        if state.global_step:
            self._last.forget()
        before = self._last.take(model)
        self.clock = SampleClock(
            average=self.asked.make_average(model, size, None if before is None else before.average),
            noise=self.asked.make_noise(model, optimizer, unit=unit),
            scheduler=scheduler,
            steps_scheduler=False,
            batches=self.asked.batches,
            unit=self.asked.counts,
        )
        if before is not None:
            self.clock.follow(before)
        self.counting.attach(self._micro)
        held = self._resume(args, state, kwargs.get("train_dataloader")) if state.global_step else None
        self._stages = BatchStages.of(self.asked, args, size, held, scheduler, kwargs, placed=self._placed)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Change the accumulation where the recipe's batch schedule says so."""
        if self._stages is not None and self.clock is not None:
            self._stages.begin_epoch(self.clock)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close a micro-batch."""
        if self.counting is not None:
            self.counting.closed()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sum the samples of the step over ranks, and measure its gradient, clipped or not."""
        if self.clock is not None and self.counting is not None:
            self.counting.closed()
            self.clock.ready()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the average unless a scaler skipped the step, and lend it to an evaluation that comes next."""
        clock = self.clock
        if clock is None:
            return
        optimizer = kwargs.get("optimizer")
        if getattr(optimizer, "step_was_skipped", False):
            clock.skipped()
        else:
            decays = self.asked.decays
            size = clock.ready_size
            clock.applied(half_life=None if decays is None else decays.half_life(clock.seen, clock.seen + size))
        self._lend(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lend the average to an evaluation at the end of an epoch."""
        self._lend(control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the model its raw weights back after the last data set, where the Trainer itself was not found."""
        self._evaluations -= 1
        if self._evaluations <= 0 and self._trainer is None:
            self.leave()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model its raw weights back where an evaluation that was due was called off."""
        if self._is_lent:
            self.leave()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Put half-life and noise scale beside the loss, in the Trainer's history and for the loggers."""
        if self.clock is None or logs is None or "loss" not in logs:
            return
        found = entries(self.clock)
        logs |= found
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1] |= found
        if state.is_world_process_zero:
            tell(self.own_log, self.clock)
        for reporter in self._reporters():
            reporter.on_log(args, state, control, logs=dict(found), **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write average, noise scale and clock beside the Trainer's own checkpoint."""
        if self.clock is not None and args.should_save:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            if self._trainer is not None:
                trial = getattr(self._trainer, "_trial", None)
                folder = Path(self._trainer._get_output_dir(trial)) / folder.name
            save_state(folder, self.clock.state_dict() | {"trainer": batch_of(args)}, self._file)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say whether a larger batch is worth it, and leave the model with the weights that were asked for."""
        self.leave()
        if self.counting is not None:
            self.counting.remove()
        clock = self.clock
        if clock is None:
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if self.export == "average" and clock.average is not None and self._model is not None:
            if best is not None and (Path(best) / self._file).exists():
                clock.load_state_dict(load_state(best, self._file))
            clock.average.copy_to(self._model)
        if best is not None and self.export == "raw":
            self._last.forget()  # the weights are older than the average
        elif self._model is not None:
            self._last.keep(self._model, clock)
        if self._stages is not None:
            self._stages.end()
        unit = "tokens" if self.counting is not None and self.counting.weighted else "samples"
        self._line = answer(clock, unit)
        if state.is_world_process_zero and self.own_log is not None:
            tell(self.own_log, clock)
            self.own_log.close()
        if state.is_world_process_zero and not self.quiet:
            say(self._line)

    def place(self, state: TrainerState, passes: int | None) -> tuple[int, int] | None:
        """Return where in the data a run with a batch schedule goes on, which the Trainer reckons by one accumulation.

        Args:
            state: of the Trainer, from the checkpoint.
            passes: micro-batches of an epoch.

        Returns:
            Whole epochs, and micro-batches of the next one; None where the Trainer knows by itself.
        """
        self._placed = bool(passes and state.global_step and state.epoch is not None and self.asked.batches)
        return divmod(round(state.epoch * passes), passes) if self._placed and passes and state.epoch else None

    def _micro(self, found: Counted) -> None:
        if self.clock is not None:
            self.clock.micro(found.rows, found.weight)

    def lend(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights that evaluations see."""
        self.leave()
        lent = self.evaluate == "average" and self.ema is not None
        return self.ema.applied(self._model) if lent else nullcontext()

    def _lend(self, control: TrainerControl) -> None:
        if self.evaluate == "average" and control.should_evaluate and self.ema is not None and not self._is_lent:
            data = None if self._trainer is None else self._trainer.eval_dataset
            self._evaluations = len(data) if isinstance(data, dict) else 1
            self._is_lent = True
            if self._trainer is None:
                self._give()
            else:  # once evaluate() is called: callbacks behind this one have the raw weights for their own averages
                self._lent.callback(_lending_in(self._trainer, self._give, self.leave))

    def _give(self) -> None:
        self._lent.enter_context(self.ema.applied(self._model))

    def leave(self) -> None:
        """Give the model its raw weights back, where an evaluation has the average."""
        self._evaluations, self._is_lent = 0, False
        self._lent.close()
        if self.noise is not None:
            self.noise.back()

    def _place_beside_others(self) -> None:
        """Choose a file of this callback's own, and refuse a second one that gives its average to the same."""
        callbacks = [] if self._trainer is None else self._trainer.callback_handler.callbacks
        ours = [one for one in callbacks if isinstance(one, IsobatchCallback)]
        number = next((place for place, one in enumerate(ours, 1) if one is self), 1)
        self._file = STATE if number == 1 else f"{Path(STATE).stem}-{number}{Path(STATE).suffix}"
        refuse_two_averages(ours, self)

    def _reporters(self) -> list[Any]:
        """Return the loggers that were told of this log before it held our entries."""
        if self._trainer is None:
            return []
        before = []
        for callback in self._trainer.callback_handler.callbacks:
            if callback is self:
                break
            before.append(callback)
        return [one for one in before if type(one).__module__ == "transformers.integrations.integration_utils"]

    def _resume(self, args: TrainingArguments, state: TrainerState, loader: Any) -> Mapping[str, Any]:
        given = args.resume_from_checkpoint
        places = [self.resume_from, given if isinstance(given, str) else None]
        places += [Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"]
        found = [Path(place) for place in places if place is not None and (Path(place) / self._file).exists()]
        if not found or self.clock is None:
            raise InputError(
                f"training resumes at step {state.global_step}, and {places[-1]} has no {self._file}; give "
                "IsobatchCallback(resume_from=FOLDER), the checkpoint, or start without resume_from_checkpoint"
            )
        held = load_state(found[0], self._file)
        if self.asked.batches is None:
            refuse_another_place(held, args, state, loader)
        self.clock.load_state_dict(held)
        return held


def trainer_of(state: TrainerState) -> Trainer | None:
    """Return the Trainer that holds a state; no callback is told of it.

    Args:
        state: as the callbacks get it.

    Returns:
        The Trainer, None where no living one has this state.
    """
    things = gc.get_objects()
    # type(), not isinstance: lazy proxies must not be woken
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, Trainer)}
    return next((one for one in things if type(one) in kinds and getattr(one, "state", None) is state), None)


def _lending_in(trainer: Trainer, give: Callable[[], None], leave: Callable[[], None]) -> Callable[[], None]:
    """Let a Trainer's evaluate() call give() first and leave() at its end; return what undoes that.

    No callback is told where it fails, nor where a class of the user's own evaluates in its own way, once or often.
    """
    inner, own, depth = trainer.evaluate, vars(trainer).get("evaluate"), 0

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal depth
        if not depth:
            give()
        depth += 1
        try:
            return inner(*args, **kwargs)
        finally:
            depth -= 1
            if not depth:
                leave()

    def undo() -> None:
        if own is None:
            vars(trainer).pop("evaluate", None)
        else:
            vars(trainer)["evaluate"] = own

    vars(trainer)["evaluate"] = evaluate
    return undo


def _sample_scheduler(scheduler: Any) -> Any:
    """Return the SampleScheduler that a Trainer steps, None where another scheduler runs."""
    inner = getattr(scheduler, "scheduler", scheduler)
    for one in (scheduler, inner):
        if isinstance(one, SampleScheduler):
            return one
    return None
