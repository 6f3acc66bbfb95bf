"""A torch learning-rate scheduler on the sample clock."""

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from isobatch.average.engine import overflowed
from isobatch.curves import mean_over
from isobatch.errors import InputError, warn
from isobatch.gradients import bare_optimizer
from isobatch.optimizers.settings import assign
from isobatch.train.scheduler_preview import SchedulerPreview
from isobatch.units import finite, whole


class SampleScheduler(LRScheduler):
    """Drive a torch scheduler by samples: each step gets the mean of the reference's settings over its samples.

    lr = factor * mean over [seen, seen+B] of the rates that the wrapped scheduler gives at steps of `batch_size`. At
    the reference batch these are its own values; the sum over any samples does not depend on the batches. A momentum
    or beta that the scheduler cycles gets its mean too. Past the scheduler's last step the last values hold.

    It is a torch LRScheduler: trainers may call `step()` without arguments, which counts `samples` once more. Learning
    rates that are tensors stay the same tensors.

    Args:
        scheduler: any torch scheduler that is a function of its own steps, fresh: also chained or sequential ones.
        batch_size: samples of one reference step.
        samples: of the first step, `batch_size` unless given.

    Raises:
        InputError: a scheduler that follows a metric, one that has been stepped already, or none of torch.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = SampleScheduler(torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3), batch_size=8)
        >>> optimizer.step()
        >>> scheduler.step(samples=8, next_samples=16)
        >>> optimizer.param_groups[0]["lr"], scheduler.get_last_lr()
        (0.625, [0.625])
    """

    def __init__(self, scheduler: LRScheduler, *, batch_size: int, samples: float | None = None):
        if isinstance(scheduler, SampleScheduler):
            raise InputError("SampleScheduler is not a function of steps; give the scheduler that it wraps")
        self._preview = SchedulerPreview(scheduler)
        self.scheduler, self.optimizer = scheduler, bare_optimizer(scheduler.optimizer)
        self.batch_size = whole("batch_size", batch_size)
        self.seen: float = 0
        self.factor = 1.0
        self.powers: dict[str, float] = {}
        self.samples = self.batch_size if samples is None else samples
        groups = self.optimizer.param_groups
        self.base_lrs = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self.last_epoch, self._step_count = 0, 1
        self._later: list[list[float]] = []
        self._told = self._overruled = False
        self._steps, self._steps_before = 0, -1
        self._counted = id(self.optimizer)  # a copy's optimizer has no hook, so nothing is counted there
        self.optimizer.register_step_post_hook(_counting(weakref.ref(self)))
        self._last_lr = [float(group["lr"]) for group in groups]
        if samples is not None:
            self.write()

    @property
    def samples(self) -> float:
        """Samples of the next step; `write` after setting it."""
        return self._samples

    @samples.setter
    def samples(self, value: float) -> None:
        self._samples = _count_of("samples", value)

    @property
    def driven(self) -> tuple[str, ...]:
        """Options that the wrapped scheduler has changed so far; "betas.0" is the first of two betas."""
        return tuple(self._preview.driven)

    def step(
        self, epoch: object | None = None, *, samples: float | None = None, next_samples: float | None = None
    ) -> None:
        """Move the clock past an applied step and write the settings of the next one; call it after optimizer.step().

        Without arguments only the first call after a step of the optimizer counts: Accelerate makes as many calls a
        step as there are processes, and Lightning also one after a step that a gradient scaler skipped.

        Args:
            epoch: torch's old argument; nothing but None is taken.
            samples: global samples of the step that was applied; those it was written for unless given.
            next_samples: samples of the next step; as many unless given.

        Raises:
            InputError: samples that are not positive, an epoch or a metric, or groups that were added or removed.
        """
        if epoch is not None:
            raise InputError(
                f"step({epoch!r}): the clock counts samples, and no epoch or metric is taken; call step(), or "
                "step(samples=...)"
            )
        self._check_groups()
        counted = self._steps > 0 and self._counted == id(self.optimizer)
        if samples is None and counted and self._steps == self._steps_before:
            return
        self._tell_of_others()
        made = self.samples if samples is None else _count_of("samples", samples)
        coming = made if next_samples is None else _count_of("next_samples", next_samples)
        self.seen, self.samples = self.seen + made, coming
        self.last_epoch, self._step_count, self._steps_before = self.last_epoch + 1, self._step_count + 1, self._steps
        self.write()
        self._tell_of_the_end()

    def attach(self, optimizer: Optimizer, samples: float | Callable[[], float]) -> RemovableHandle:
        """Step after every step of an optimizer, without further calls; one that a gradient scaler skips is none.

        Args:
            optimizer: the one that the scheduler drives, one that shares its groups, or Accelerate's wrapper of it.
            samples: global samples of each step, or a function that tells those of the step just made.

        Returns:
            A handle whose remove() ends it.

        Raises:
            InputError: another optimizer, or samples that are not positive.
        """
        drives(self, optimizer)
        stepped = bare_optimizer(optimizer)
        counted: float | Callable[[], float] = samples if callable(samples) else _count_of("samples", samples)

        def after_step(*_: Any) -> None:
            if not overflowed(stepped):
                self.step(samples=counted if isinstance(counted, int | float) else counted())

        return stepped.register_step_post_hook(after_step)

    def follow_groups(self, like: int = 0) -> None:
        """Let the groups added since the scheduler was built follow one of the others, each in its present proportion.

        Args:
            like: number of the group that they follow.

        Raises:
            InputError: no such group, or its learning rate is 0 now, beside which there is no proportion.
        """
        groups = self.optimizer.param_groups
        if not 0 <= whole("like", like, 0) < self._preview.groups:
            raise InputError(f"like={like} must be in [0, {self._preview.groups - 1}], the groups that it drives")
        rate = float(groups[like]["lr"])
        if rate == 0:
            raise InputError(f"group {like} has lr=0 now; follow another group, or add the groups later")
        known = self._preview.groups + len(self._later)
        shares = [float(group["lr"]) / rate for group in groups[known:]]
        self._later += [[like, share] for share in shares]
        self.base_lrs += [self.base_lrs[like] * share for share in shares]
        self.write()

    def write(self) -> None:
        """Write the settings of the next step into the optimizer's groups.

        Raises:
            InputError: groups that were added or removed.
        """
        self._check_groups()
        means = self._mean(self.seen, self.seen + self.samples)
        rates = [self.factor * rate for rate in means.pop("lr")]
        rates += [rates[int(like)] * share for like, share in self._later]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            assign(group, "lr", rate)
        for option, values in means.items():
            followers = [values[int(like)] for like, _ in self._later]
            for group, value in zip(self.optimizer.param_groups, [*values, *followers], strict=True):
                assign(group, option, value ** self.powers.get(option, 1.0))
        self._last_lr = [*rates]

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the coming step, by group."""
        return list(self._last_lr)

    def get_lr(self) -> list[float | Tensor]:
        """Return the same as `get_last_lr`."""
        return self.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return clock, factor, the wrapped scheduler's state and what was read ahead; plain values."""
        own = {key: getattr(self, key) for key in ("batch_size", "seen", "factor", "samples", "last_epoch")}
        later = [list(pair) for pair in self._later]
        return {**own, "powers": dict(self.powers), "later": later, **self._preview.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; the next step gets the settings it would have had.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            InputError: the state of another kind of scheduler, another reference batch, or other groups.
        """
        state = state_dict
        if not {"batch_size", "seen", "factor", "samples", "scheduler", "first", "rates"} <= state.keys():
            raise InputError(
                f"the state holds {sorted(state)}, which is no state of a SampleScheduler; give what its state_dict() "
                "returned"
            )
        if state["batch_size"] != self.batch_size:
            raise InputError(
                f"the state's reference batch is {state['batch_size']}, this scheduler's {self.batch_size}; "
                "build it alike"
            )
        seen, factor = (finite(f"{key} in the state", state[key], 0) for key in ("seen", "factor"))
        samples = _count_of("samples in the state", state["samples"])
        later = [list(pair) for pair in state.get("later", [])]
        self._check_groups(self._preview.groups + len(later))
        self._preview.load_state_dict(state)
        self.seen, self.factor, self.samples = int(seen) if seen == int(seen) else seen, factor, samples
        self.powers, self._later = dict(state.get("powers", {})), later
        self.last_epoch = state.get("last_epoch", self.last_epoch)
        self.write()

    def _initial_step(self) -> None:
        raise InputError("SampleScheduler cannot be part of another scheduler; wrap the whole of it")

    def _update_lr(self, epoch: int | None = None) -> None:
        self._initial_step()

    def _check_groups(self, expected: int | None = None) -> None:
        count, known = len(self.optimizer.param_groups), self._preview.groups + len(self._later)
        if count != (known if expected is None else expected):
            raise InputError(
                f"the optimizer has {count} groups and its scheduler drives {known}; after add_param_group call "
                "scheduler.follow_groups(), or build the scheduler once all groups are there"
            )

    def _tell_of_others(self) -> None:
        """Warn once where a rate was written by somebody else, because it is about to be overwritten."""
        for index, (group, mine) in enumerate(zip(self.optimizer.param_groups, self._last_lr, strict=True)):
            held = group["lr"]  # a tensor may lie on a device, which would have to be waited for
            if not self._overruled and isinstance(held, float) and not math.isclose(held, mine, rel_tol=1e-9):
                self._overruled = True
                warn(
                    f"group {index} has lr={held:g}, written by somebody else since the SampleScheduler wrote "
                    f"{mine:g}, and it is overwritten now; to keep a factor for good, such as that of a "
                    "ReduceLROnPlateau, multiply scheduler.factor by it"
                )

    def _tell_of_the_end(self) -> None:
        end = self._preview.end
        if self._preview.error and end is not None and self.seen > end * self.batch_size and not self._told:
            self._told = True
            warn(
                f"{type(self.scheduler).__name__} ends after {end} steps ({self._preview.error}); training goes on "
                "with its last values"
            )

    def _mean(self, start: float, stop: float) -> dict[str, list[float]]:
        first, last = int(start / self.batch_size), math.ceil(stop / self.batch_size)
        views = {index: self._preview.at(index) for index in range(first, max(first + 1, last))}
        self._preview.forget(first)

        def mean(option: str, group: int) -> float:
            return mean_over(lambda index: views[index][option][group], start, stop, self.batch_size, sys.maxsize)

        return {option: [mean(option, group) for group in range(self._preview.groups)] for option in self.driven}


def _counting(told: "weakref.ref[SampleScheduler]") -> Callable[..., None]:
    """Return a hook that counts the steps of an optimizer which were made, without keeping the scheduler alive."""

    def count(optimizer: Optimizer, *_: Any) -> None:
        scheduler = told()
        if scheduler is not None:
            scheduler._steps += not overflowed(optimizer)

    return count


def drives(scheduler: SampleScheduler, optimizer: Optimizer) -> None:
    """Refuse an optimizer that a scheduler does not drive.

    Args:
        scheduler: the scheduler.
        optimizer: the one that is stepped.

    Raises:
        InputError: it shares no groups with the scheduler's.
    """
    own = scheduler.optimizer.param_groups
    theirs = optimizer.param_groups
    if len(own) != len(theirs) or any(a is not b for a, b in zip(own, theirs, strict=True)):
        raise InputError(
            f"the scheduler drives another {type(scheduler.optimizer).__name__} than the {type(optimizer).__name__} "
            "given; build it on the optimizer that is stepped"
        )


def refuse_rivals(schedulers: Sequence[SampleScheduler]) -> None:
    """Refuse two schedulers that write the same groups, of which the last would win.

    Args:
        schedulers: of one loop.

    Raises:
        InputError: two of one optimizer.
    """
    taken: set[int] = set()
    for scheduler in schedulers:
        groups = {id(group) for group in scheduler.optimizer.param_groups}
        if taken & groups:
            raise InputError(
                f"two of {len(schedulers)} schedulers drive the same {type(scheduler.optimizer).__name__}, and the "
                "last one would win; put both schedules into one torch scheduler (SequentialLR, ChainedScheduler) and "
                "wrap that once: SampleScheduler(scheduler, batch_size=...)"
            )
        taken |= groups


def _count_of(name: str, value: float) -> float:
    """Return a positive number of samples as a Python number, whole where it is whole."""
    number = finite(name, value, 0, open_low=True)
    return int(number) if number == int(number) else number
