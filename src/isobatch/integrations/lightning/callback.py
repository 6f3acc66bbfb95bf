"""The callback of a Lightning Trainer: average, noise scale, validation with the average, checkpoints, exceptions."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.distributed.checkpoint.stateful import Stateful

from isobatch.average.engine import overflowed
from isobatch.errors import InputError, warn
from isobatch.gradients import bare_optimizer
from isobatch.integrations.export import refuse_sharded, save_average
from isobatch.integrations.last_run import LastRun
from isobatch.integrations.lightning.parts import part_of
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

_RAW = "current_model_state"
"""Where a checkpoint keeps the weights that train when `state_dict` holds the average, as Lightning's own does."""


class IsobatchCallback(Callback):
    """Weight average and noise scale on the sample clock, in a Lightning Trainer.

    Automatic and manual optimization, any number of optimizers: each has a noise scale of its own parameters. The
    average moves at the end of each batch in which an optimizer really stepped. A resume within an epoch whose loader
    keeps no place is warned of: Lightning begins its rows anew.

    A second fit of the same module, at the weights that the first one left, goes on with its average and its count of
    samples; the noise scale is measured anew, because each fit makes new optimizers. Another module, or other weights,
    begin anew. (Lightning's own WeightAveraging begins anew in every fit.)

    Several callbacks follow one fit, with half-lives of their own and each with a `name`; validation sees the average
    of one of them.

    Args:
        half_life: of the average: a number of samples, or words such as "2 epochs", "1e6 samples", "2e9 tokens".
        decay: per update at `batch_size`, instead of half_life.
        batch_size: global batch at which `decay` was chosen.
        recipe: a Recipe, its TOML file or the JSON of a plan, instead of both.
        noise: whether the noise scale is measured, or arguments of NoiseScale.
        unit: what `count` counts, "samples" or "tokens"; by the half-life unless given.
        average: further arguments of ModelEMA.
        evaluate: weights that validation sees: "average", or "raw".
        export: weights in a checkpoint's state_dict and in the module after fit: "raw", or "average".
        count: samples (or tokens) of a batch of this rank; its rows unless given.
        log: a logger with samples on the x axis beside the trainer's own, whose steps are the trainer's:
            `isobatch.logs.open_log("tensorboard", Path("out"))`, or any object with its two methods. Closed at the end.
        quiet: whether the closing line is left out.
        name: what tells this callback's state in a checkpoint from that of another one; needed from the second on.

    Raises:
        InputError: settings that contradict each other.

    Example:
        >>> IsobatchCallback(half_life="2 epochs", noise=True).ema is None  # made when fit begins
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
        count: Callable[[Any], float] | None = None,
        log: Log | None = None,
        quiet: bool = False,
        name: str = "",
    ):
        refuse_other_weights(evaluate=evaluate, export=export)
        self.asked = Following(half_life, decay, batch_size, recipe, noise, unit, average or {})
        if not self.asked.averages and not self.asked.measures:
            raise InputError("nothing to do: give half_life, decay or a recipe with [ema], or noise=True")
        if self.asked.counts == "tokens" and count is None:
            raise InputError("tokens of a batch are not known here; give count=lambda batch: ..., or count samples")
        if self.asked.batches is not None:
            raise InputError(
                "batch.schedule: Lightning's loaders have one batch size; use its GradientAccumulationScheduler and "
                "isobatch.rescale, or isobatch train"
            )
        self.name = name
        self.evaluate: Weights = evaluate
        self.export: Weights = export
        self.count, self.own_log, self.quiet = count or extract_batch_size, log, quiet
        self.clock: SampleClock | None = None
        self._pending: Mapping[str, Any] | None = None
        self._last = LastRun()
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []
        self._lent = ExitStack()
        self._stepped = self._reached = self._began = False
        self._rows: float | None = None
        self._module: LightningModule | None = None
        self._line = ""

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        return self._generate_state_key(name=self.name) if self.name else super().state_key

    @property
    def ema(self) -> Any:
        """The average, None before fit or without one."""
        return None if self.clock is None else self.clock.average

    @property
    def noise(self) -> Any:
        """The noise scale of the first optimizer, None before fit or without one; `clock.noises` has all."""
        return None if self.clock is None else self.clock.noise

    @property
    def sentence(self) -> str:
        """The closing line of the last fit: whether a larger batch is worth it."""
        return self._line

    def save_average(self, path: str | Path) -> Path:
        """Write the averaged weights as one safetensors file.

        Args:
            path: a folder, or a file that ends in .safetensors.

        Returns:
            The file.

        Raises:
            InputError: before fit, or without an average.
        """
        if self.ema is None or self._module is None:
            raise InputError("there is no average yet; give half_life, and save after fit has begun")
        return save_average(self.ema, self._module, path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build average, noise scales and clock where fit starts, or take up a checkpoint's or the last fit's."""
        self._close()
        callbacks: list[Any] = trainer.callbacks  # ty: ignore[missing-attribute]
        refuse_two_averages([one for one in callbacks if isinstance(one, IsobatchCallback)], self)
        self._module, self._began = pl_module, False
        self._optimizers = [bare_optimizer(optimizer) for optimizer in trainer.optimizers]
        unit = self.asked.counts
        found = [
            self.asked.make_noise(part_of(pl_module, self._optimizers, number), optimizer, unit=unit)
            for number, optimizer in enumerate(self._optimizers)
        ]
        if self._pending is not None:
            self._last.forget()
        before = self._last.take(pl_module)
        last = None if before is None else before.average
        self.clock = SampleClock(
            average=self.asked.make_average(pl_module, _data_size(trainer), last),
            noise=[noise for noise in found if noise is not None],
            scheduler=_sample_schedulers(trainer, pl_module),
            steps_scheduler=False,
        )
        if before is not None:
            self.clock.follow(before)
        if self._pending is not None:
            self.clock.load_state_dict(self._pending)
            self._pending = None
        for handle in self._handles:
            handle.remove()
        self._handles = [optimizer.register_step_post_hook(self._note) for optimizer in self._optimizers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count a micro-batch; under automatic optimization once it is really differentiated."""
        if batch_idx and not self._began:
            _tell_of_rows_again(trainer, batch_idx)
        self._began = True
        if self.clock is not None:
            self._stepped = self._reached = False
            self._rows = float(self.count(batch))
            if not pl_module.automatic_optimization:
                self._count(self._rows)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Count the micro-batch, which a training_step that returns None leaves out."""
        if self._rows is not None:
            self._count(self._rows)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Sum the samples of the step over ranks, and measure this optimizer's gradient."""
        if self.clock is not None:
            self._reached = True
            if not self.clock.pending:  # no batch of the step was differentiated
                self._count(0.0)
            self.clock.ready(noise=self._optimizers.index(bare_optimizer(optimizer)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average where an optimizer stepped; a step that a scaler skipped is none."""
        clock = self.clock
        if clock is None or not (self._reached or self._stepped):
            return
        if not self._stepped:
            clock.skipped()
            return
        if not self._reached:  # an optimizer that was stepped past Lightning
            clock.ready()
        decays, size = self.asked.decays, clock.ready_size
        clock.applied(half_life=None if decays is None else decays.half_life(clock.seen, clock.seen + size))
        every = max(1, int(getattr(trainer, "log_every_n_steps", 50)))
        if clock.steps % every == 0:
            self._log(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the averaged weights."""
        if self.evaluate == "average" and self.ema is not None:
            self._lent.enter_context(self.ema.applied(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its raw weights back."""
        self._close()
        for noise in self.clock.noises if self.clock is not None else ():
            noise.back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its raw weights back before anybody saves them."""
        self._close()
        if self.clock is not None:
            self._last.keep(pl_module, self.clock)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say whether a larger batch is worth it, and leave the module with the weights that were asked for."""
        self._close()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.clock is None:
            return
        self._log(trainer)
        self._line = answer(self.clock, self.asked.counts)
        if self.export == "average" and self.ema is not None:
            self.ema.copy_to(pl_module)
        self._last.keep(pl_module, self.clock)
        if trainer.is_global_zero and self.own_log is not None:
            self.own_log.close()
        if trainer.is_global_zero and not self.quiet:
            say(self._line)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into the checkpoint's state_dict where export="average", the raw weights beside it."""
        if self.export == "average" and self.ema is not None:
            with self.ema.applied(pl_module):
                average = {name: _kept(value) for name, value in pl_module.state_dict().items()}
            checkpoint[_RAW], held = checkpoint["state_dict"], checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: average.get(name, value) for name, value in held.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the raw weights of a checkpoint whose state_dict is the average."""
        if _RAW in checkpoint and trainer.state.fn == "fit":
            pl_module.load_state_dict(checkpoint[_RAW])

    def state_dict(self) -> dict[str, Any]:
        """Return average, noise scales and clock."""
        if self.clock is None:
            return {}
        if self._module is not None:
            refuse_sharded(self._module, "a checkpoint of Lightning", "train with enable_checkpointing=False, or DDP")
        return self.clock.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until fit starts.

        Args:
            state_dict: what state_dict() returned.
        """
        self._pending = state_dict or None

    def _count(self, rows: float) -> None:
        if self.clock is not None:
            self.clock.micro(rows)
        self._rows = None

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._stepped = self._stepped or not overflowed(optimizer)

    def _log(self, trainer: Trainer) -> None:
        if self.clock is None or not trainer.is_global_zero:
            return
        tell(self.own_log, self.clock)
        found = entries(self.clock) if trainer.loggers else {}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)

    def _close(self) -> None:
        self._lent.close()


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _data_size(trainer: Trainer) -> int | None:
    """Return the samples of an epoch, None where they are not known before the loaders are set up."""
    source: Any = trainer.fit_loop._data_source
    return samples_of(source.dataloader() if source.is_defined() else None)


def _tell_of_rows_again(trainer: Trainer, done: int) -> None:
    """Warn where a fit goes on within an epoch and its loader cannot: Lightning's own words miss a second optimizer."""
    lost = [one for one in CombinedLoader(trainer.train_dataloader).flattened if not isinstance(one, Stateful)]
    if lost:
        warn(
            f"fit goes on after {done} batches of an epoch, and its {type(lost[0]).__name__} keeps no place: it begins "
            "anew, so rows of this epoch are trained on again and as many others are left out. Resume from the end of "
            "an epoch, or give a loader with state_dict and load_state_dict, such as torchdata's StatefulDataLoader"
        )


def _sample_schedulers(trainer: Trainer, module: LightningModule) -> list[SampleScheduler]:
    """Return the SampleSchedulers that the Trainer steps, or refuse one that it would step once an epoch."""
    found = []
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, SampleScheduler):
            found.append(config.scheduler)
            if module.automatic_optimization and (config.interval != "step" or config.frequency != 1):
                raise InputError(
                    f"Lightning would step the SampleScheduler every {config.frequency} {config.interval}s, which it "
                    'takes for so few steps; return {"scheduler": scheduler, "interval": "step"} from '
                    "configure_optimizers"
                )
    return found
