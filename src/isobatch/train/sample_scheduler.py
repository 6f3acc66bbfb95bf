"""A torch learning-rate scheduler on the sample clock."""

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.hooks import RemovableHandle

from isobatch.average.watch import overflowed
from isobatch.errors import InputError
from isobatch.units import finite, whole


class SampleScheduler:
    """Drive a torch scheduler by samples: each step gets the mean of the reference's rates over its samples.

    lr = factor * mean over [seen, seen+B] of the rates that the wrapped scheduler gives at steps of `batch_size`. At
    the reference batch these are its own values; the sum over any samples does not depend on the batches.

    Args:
        scheduler: any torch scheduler that is a function of its own steps, fresh.
        batch_size: samples of one reference step.

    Raises:
        InputError: a scheduler that follows a metric, or one that has been stepped already.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = SampleScheduler(torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3), batch_size=8)
        >>> optimizer.step()
        >>> scheduler.step(samples=8, next_samples=16)
        >>> optimizer.param_groups[0]["lr"]
        0.625
    """

    def __init__(self, scheduler: LRScheduler, *, batch_size: int):
        if isinstance(scheduler, (ReduceLROnPlateau, SampleScheduler)):
            raise InputError(
                f"{type(scheduler).__name__} is not a function of steps; give one such as CosineAnnealingLR"
            )
        if scheduler.last_epoch != 0:
            raise InputError(f"the scheduler has made {scheduler.last_epoch} steps; wrap it before the first one")
        self.scheduler = scheduler
        self.batch_size = whole("batch_size", batch_size)
        self.seen: float = 0
        self.factor = 1.0
        self.samples: float = batch_size
        self._first = 0
        self._rates = [self._current()]

    def step(self, *, samples: float, next_samples: float | None = None) -> None:
        """Move the clock past an applied step and write the rate of the next one; call it after optimizer.step().

        Args:
            samples: global samples of the step that was applied.
            next_samples: samples of the next step; as many unless given.

        Raises:
            InputError: samples that are not positive.
        """
        self.seen += finite("samples", samples, 0, open_low=True)
        self.samples = samples if next_samples is None else finite("next_samples", next_samples, 0, open_low=True)
        self.write()

    def attach(self, optimizer: Optimizer, samples: float | Callable[[], float]) -> RemovableHandle:
        """Step after every step of an optimizer, without further calls; one that a gradient scaler skips is none.

        Args:
            optimizer: the one that the scheduler drives.
            samples: global samples of each step, or a function that tells those of the step just made.

        Returns:
            A handle whose remove() ends it.
        """

        def after_step(*_: Any) -> None:
            if not overflowed(optimizer):
                self.step(samples=samples if isinstance(samples, int | float) else samples())

        return optimizer.register_step_post_hook(after_step)

    def write(self) -> None:
        """Write the learning rate of the next step into the optimizer's groups."""
        means = self._mean(self.seen, self.seen + self.samples)
        for group, mean in zip(self.scheduler.optimizer.param_groups, means, strict=True):
            group["lr"] = self.factor * mean

    def state_dict(self) -> dict[str, Any]:
        """Return clock, factor, the wrapped scheduler's state and the rates read ahead; plain values."""
        own = {key: getattr(self, key) for key in ("batch_size", "seen", "factor", "samples")}
        return {**own, "first": self._first, "rates": self._rates, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; the next step gets the rate it would have had.

        Args:
            state: what `state_dict` returned.

        Raises:
            InputError: another reference batch.
        """
        if state["batch_size"] != self.batch_size:
            raise InputError(
                f"the state's reference batch is {state['batch_size']}, this scheduler's {self.batch_size}; "
                "build it alike"
            )
        self.scheduler.load_state_dict(state["scheduler"])
        self.seen, self.factor, self.samples = state["seen"], state["factor"], state["samples"]
        self._first, self._rates = state["first"], [list(rates) for rates in state["rates"]]
        self.write()

    def _current(self) -> list[float]:
        return [float(group["lr"]) for group in self.scheduler.optimizer.param_groups]

    def _reference(self, index: int) -> list[float]:
        """Return the wrapped scheduler's rates at one of its steps, stepping it ahead where needed."""
        groups = self.scheduler.optimizer.param_groups
        while self._first + len(self._rates) <= index:
            written = self._current()
            for group, rate in zip(groups, self._rates[-1], strict=True):
                group["lr"] = rate
            with warnings.catch_warnings():
                # it steps ahead of the optimizer on purpose
                warnings.simplefilter("ignore")
                self.scheduler.step()
            self._rates.append(self._current())
            for group, rate in zip(groups, written, strict=True):
                group["lr"] = rate
        return self._rates[index - self._first]

    def _mean(self, start: float, stop: float) -> list[float]:
        size = self.batch_size
        first, last = int(start // size), max(int(start // size), int(-(-stop // size)) - 1)
        total = [0.0] * len(self.scheduler.optimizer.param_groups)
        for index in range(first, last + 1):
            overlap = min(stop, (index + 1) * size) - max(start, index * size)
            total = [t + overlap * rate for t, rate in zip(total, self._reference(index), strict=True)]
        del self._rates[: max(0, first - self._first)]
        self._first = max(self._first, first)
        return [t / (stop - start) for t in total]
