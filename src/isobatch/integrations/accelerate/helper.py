"""The helper of an Accelerate loop: average, noise scale, evaluation, checkpoints, trackers."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from isobatch.average.engine import overflowed
from isobatch.errors import InputError
from isobatch.gradients import bare_optimizer
from isobatch.integrations.export import refuse_sharded, save_average
from isobatch.integrations.report import answer, entries, say, tell
from isobatch.integrations.settings import Following, Unit, samples_of
from isobatch.logs import Log
from isobatch.train import SampleClock, SampleScheduler


class IsobatchHelper:
    """Weight average and noise scale on the sample clock, in a loop with an Accelerator.

    Build it after `accelerator.prepare`, and put `with helper.micro(rows):` around what a micro-batch does, the
    optimizer's step included. It is registered for the Accelerator's checkpoints.

    Args:
        accelerator: of the loop.
        model: what prepare returned.
        optimizer: what prepare returned.
        half_life: of the average: a number of samples, or words such as "2 epochs", "1e6 samples", "2e9 tokens".
        decay: per update at `batch_size`, instead of half_life.
        batch_size: global batch at which `decay` was chosen.
        recipe: a Recipe, its TOML file or the JSON of a plan, instead of both.
        noise: whether the noise scale is measured, or arguments of NoiseScale.
        unit: what the clock counts: rows, or the weights of micro() ("tokens"); by the half-life unless given.
        average: further arguments of ModelEMA.
        dataloader: where a half-life is in epochs, whose samples are an epoch.
        scheduler: a SampleScheduler, or several, one an optimizer, which the loop steps itself; they get the true
            samples of each step.
        log_every: steps between two entries for the Accelerator's trackers.
        log: a logger with samples on the x axis beside the Accelerator's trackers, which get steps:
            `isobatch.logs.open_log("tensorboard", Path("out"))`, or any object with its two methods. Closed at the end.

    Raises:
        InputError: settings that contradict each other.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        half_life: float | str | None = None,
        decay: float | None = None,
        batch_size: float | None = None,
        recipe: Any = None,
        noise: bool | Mapping[str, Any] = False,
        unit: Unit | None = None,
        average: Mapping[str, Any] | None = None,
        dataloader: Any = None,
        scheduler: SampleScheduler | Sequence[SampleScheduler] | None = None,
        log_every: int = 50,
        log: Log | None = None,
    ):
        asked = Following(half_life, decay, batch_size, recipe, noise, unit, average or {})
        if not asked.averages and not asked.measures:
            raise InputError("nothing to do: give half_life, decay or a recipe with [ema], or noise=True")
        self.asked, self.accelerator, self.model = asked, accelerator, model
        self.clock = SampleClock(
            average=asked.make_average(model, samples_of(dataloader)),
            noise=asked.make_noise(model, optimizer, unit=asked.counts),
            scheduler=scheduler,
            steps_scheduler=False,
            batches=asked.batches,
            unit=asked.counts,
        )
        self._log_every, self._stepped = max(1, log_every), False
        self.own_log = log if accelerator.is_main_process else None
        inner = bare_optimizer(optimizer)
        self._handles = [
            inner.register_step_pre_hook(self._before_step),
            inner.register_step_post_hook(self._after_step),
        ]
        accelerator.register_for_checkpointing(self)

    @property
    def ema(self) -> Any:
        """The average, None without one."""
        return self.clock.average

    @property
    def noise(self) -> Any:
        """The noise scale, None without one."""
        return self.clock.noise

    @contextmanager
    def micro(self, rows: float, weight: float | Sequence[float] | None = None) -> Generator[None]:
        """Count one micro-batch of this process; the optimizer's step belongs inside.

        Args:
            rows: samples in it.
            weight: what it weighs in the loss of the step, such as tokens; None where micro-batches weigh alike, as
                with `accelerator.accumulate`.

        Yields:
            None.
        """
        self._stepped = False
        with self.clock.micro(rows, weight):
            yield
        if self.accelerator.sync_gradients and not self._stepped and self.clock.pending:
            if self.accelerator.optimizer_step_was_skipped:
                self.clock.skipped()
            else:
                raise InputError(
                    "the gradients are synchronised and no step was made inside micro(); put optimizer.step() inside "
                    "the block, and accumulate by Accelerator(gradient_accumulation_steps=...) with "
                    "accelerator.accumulate(model)"
                )

    @contextmanager
    def evaluation(self) -> Generator[None]:
        """Give the model the averaged weights inside the block, whose time is no step's.

        Yields:
            None.
        """
        with self.ema.applied(self.model) if self.ema is not None else nullcontext():
            yield
        if self.noise is not None:
            self.noise.back()

    def save_average(self, path: str | Path) -> Path | None:
        """Write the averaged model on the main process: a folder for `from_pretrained`, or one safetensors file.

        Args:
            path: folder or file.

        Returns:
            The file, None on the other processes.

        Raises:
            InputError: without an average.
        """
        if self.ema is None:
            raise InputError("there is no average; give half_life or decay")
        return save_average(self.ema, self.model, path) if self.accelerator.is_main_process else None

    def finish(self) -> str:
        """End the run: write the last numbers to the trackers, and say whether a larger batch is worth it.

        Returns:
            The line that was printed on the main process.
        """
        for handle in self._handles:
            handle.remove()
        self._tell()
        if self.own_log is not None:
            self.own_log.close()
        line = answer(self.clock, self.asked.counts)
        if self.accelerator.is_main_process:
            say(line)
        return line

    def state_dict(self) -> dict[str, Any]:
        """Return average, noise scale and clock."""
        refuse_sharded(self.model, "save_state() of an Accelerator", "train with DistributedDataParallel")
        return {**self.clock.state_dict(), "schedulers": []}  # the Accelerator keeps those

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what state_dict() returned.
        """
        held = [scheduler.state_dict() for scheduler in self.clock.schedulers]
        self.clock.load_state_dict({**state, "schedulers": held})

    def _before_step(self, *_: Any) -> None:
        self.clock.ready()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._stepped = True
        if overflowed(optimizer):
            self.clock.skipped()
            return
        clock, decays = self.clock, self.asked.decays
        size = clock.ready_size
        clock.applied(half_life=None if decays is None else decays.half_life(clock.seen, clock.seen + size))
        if clock.steps % self._log_every == 0:
            self._tell()

    def _tell(self) -> None:
        self.accelerator.log(entries(self.clock), step=self.clock.steps)
        tell(self.own_log, self.clock)
