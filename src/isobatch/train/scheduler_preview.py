"""A torch scheduler read ahead of the training: what it would write at each of its own steps, asked for once."""

import warnings
from collections import Counter
from numbers import Integral, Real
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from isobatch.errors import InputError
from isobatch.gradients import bare_optimizer

Values = dict[str, list[float]]


class SchedulerPreview:
    """The options that a scheduler writes at its steps 0, 1, 2, ..., by group.

    The scheduler is stepped on a copy of the optimizer's groups, so that nothing of the optimizer moves and nothing
    that others write there reaches the scheduler. Past its last step the last values hold.

    Args:
        scheduler: a fresh torch scheduler that is a function of its own steps.

    Attributes:
        driven: options that it has changed so far, the learning rate first; "betas.0" is the first of two betas.
        end: number of its steps, None while none is known.
        error: what it raised at its end, empty where the end was known beforehand.
        groups: number of groups that it drives.

    Raises:
        InputError: no torch scheduler, one that follows a metric, or one that has been stepped already.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> preview = SchedulerPreview(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        >>> [preview.at(step)["lr"] for step in range(3)], optimizer.param_groups[0]["lr"]
        ([[1.0], [0.5], [0.25]], 1.0)
    """

    def __init__(self, scheduler: LRScheduler):
        _check(scheduler)
        self.scheduler = scheduler
        self.driven = ["lr"]
        self.end = _length(scheduler)
        self.error = ""
        self._stage = [_plain_group(group) for group in scheduler.optimizer.param_groups]
        self._first = 0
        self._read = [self._view(["lr"])]

    @property
    def groups(self) -> int:
        """Number of groups that the scheduler drives."""
        return len(self._stage)

    def at(self, step: int) -> Values:
        """Return what the scheduler writes at one of its steps.

        Args:
            step: 0 or more, and not below what `forget` was told.

        Returns:
            Values by driven option and group.
        """
        while self._first + len(self._read) <= step and (self.end is None or self._first + len(self._read) < self.end):
            before = {option: value for option, value in self._view().items() if option not in self.driven}
            if not self._advance():
                self.end = self._first + len(self._read)
                break
            self._take(before)
        return self._read[min(step - self._first, len(self._read) - 1)]

    def forget(self, step: int) -> None:
        """Let go of the steps before one.

        Args:
            step: the first that may still be asked for.
        """
        gone = min(max(0, step - self._first), len(self._read) - 1)
        del self._read[:gone]
        self._first += gone

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state and what was read ahead of it; plain values."""
        stage = [{key: value for key, value in group.items() if key != "params"} for group in self._stage]
        own = {"first": self._first, "driven": list(self.driven), "end": self.end, "error": self.error}
        rates = [{option: list(values) for option, values in view.items()} for view in self._read]
        return {**own, "rates": rates, "stage": stage, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, also where only learning rates were read ahead.

        Args:
            state: that.

        Raises:
            InputError: another number of groups, or another kind of scheduler; nothing was changed.
        """
        read = [dict(view) if isinstance(view, dict) else {"lr": list(view)} for view in state["rates"]]
        if len(read[-1]["lr"]) != self.groups:
            raise InputError(
                f"the state is of a scheduler of {len(read[-1]['lr'])} groups, this one drives {self.groups}; build it "
                "on the same groups"
            )
        _refuse_another_kind(self.scheduler.state_dict(), state["scheduler"], type(self.scheduler).__name__)
        self.scheduler.load_state_dict(_like(vars(self.scheduler), state["scheduler"]))
        self._read, self._first = read, state["first"]
        self.driven = list(state.get("driven", ["lr"]))
        self.end, self.error = state.get("end", self.end), state.get("error", "")
        stage = state.get("stage", [{"lr": rate} for rate in read[-1]["lr"]])
        for group, kept in zip(self._stage, stage, strict=True):
            group.update({key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()})

    def _advance(self) -> bool:
        """Step the scheduler on the copy of the groups; False where it has no further step."""
        bare = bare_optimizer(self.scheduler.optimizer)
        groups, holders = bare.param_groups, [bare]
        bare.param_groups = self._stage
        if self.scheduler.optimizer.param_groups is not self._stage:  # a wrapper that holds the list itself
            holders.append(self.scheduler.optimizer)
            self.scheduler.optimizer.param_groups = self._stage
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it steps ahead of the optimizer on purpose
                self.scheduler.step()
        except (ValueError, IndexError) as error:  # what lists, and torch's own schedulers of fixed length, end with
            self.error = f"{type(error).__name__}: {error}"
            return False
        except RuntimeError as error:
            raise InputError(
                f"torch cannot step this {type(self.scheduler).__name__} (a chain inside a sequence has no first step "
                "of its own); build the sequence inside the chain"
            ) from error
        finally:
            for holder in holders:
                holder.param_groups = groups
        return True

    def _take(self, before: Values) -> None:
        """Read the values of one more step; an option that moves for the first time stood still until now."""
        now = self._view()
        for option, values in before.items():
            if now.get(option, values) != values:
                self.driven.append(option)
                for view in self._read:
                    view[option] = values
        self._read.append({option: now[option] for option in self.driven})

    def _view(self, options: list[str] | None = None) -> Values:
        flat = [_flat(group) for group in self._stage]
        names = [name for name in flat[0] if all(name in group for group in flat)] if options is None else options
        return {name: [group[name] for group in flat] for name in names}


def _check(scheduler: object) -> None:
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(f"{kind} is not a function of steps; give one such as CosineAnnealingLR")
    if not isinstance(scheduler, LRScheduler):
        raise InputError(f"{kind} is not a torch LRScheduler; give the torch scheduler itself, before others wrap it")
    for leaf in _leaves(scheduler):
        if isinstance(leaf, ReduceLROnPlateau):
            raise InputError(f"{kind} holds a {type(leaf).__name__}, which is not a function of steps; leave it out")
        made = vars(leaf).get("last_epoch", 0)
        if made > 0:
            raise InputError(f"the scheduler has made {made} steps; wrap it before the first one")


def _leaves(scheduler: LRScheduler) -> list[LRScheduler]:
    parts = vars(scheduler).get("_schedulers")
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [scheduler]


def _length(scheduler: LRScheduler) -> int | None:
    """Return the steps of a scheduler of fixed length, also inside chains and sequences; None for an endless one."""
    parts = vars(scheduler).get("_schedulers")
    if not parts:
        own = vars(scheduler).get("total_steps")
        return int(own) if isinstance(own, Integral) else None
    starts = [0, *vars(scheduler).get("_milestones", [0] * (len(parts) - 1))]
    chained = "_milestones" not in vars(scheduler)
    ends: list[int] = []
    for place, (part, start) in enumerate(zip(parts, starts, strict=True)):
        length = _length(part)
        if length is not None and (chained or place + 1 == len(parts) or start + length < starts[place + 1]):
            ends.append(start + length)
    return min(ends, default=None)


def _plain_group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "params" else _plain(value) for key, value in group.items()}


def _plain(value: Any) -> Any:
    """Return Python numbers for tensors and numpy numbers, pairs of them too; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return tuple(_plain(part) for part in value) if isinstance(value, tuple) else value


def _flat(group: dict[str, Any]) -> dict[str, float]:
    """Return the numbers among a group's options, each of a pair under its own name."""
    found: dict[str, float] = {}
    for key, raw in group.items():
        value = _plain(raw) if key != "params" else None
        parts = {f"{key}.{place}": part for place, part in enumerate(value)} if isinstance(value, tuple) else {}
        for name, number in (parts or {key: value}).items():
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[name] = float(number)
    return found


def _refuse_another_kind(own: dict[str, Any], state: dict[str, Any], kind: str) -> None:
    """Refuse a state that lacks settings of a scheduler and holds others; versions of torch differ in one way only."""
    lacks, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    parts, saved = own.get("_schedulers", ()), state.get("_schedulers", ())
    turned = ("_milestones" in own) != ("_milestones" in state)  # a chain for a sequence
    if (lacks and strange) or turned or len(parts) != len(saved):
        raise InputError(
            f"the state is of another scheduler than {kind}: it lacks {lacks[:4]} and holds {strange[:4]}, with "
            f"{len(saved)} parts for {len(parts)}; build the scheduler as the run that saved the state did"
        )
    for part, held in zip(parts, saved, strict=True):
        _refuse_another_kind(part, held, f"a part of {kind}")


def _like(own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Give a state that went through JSON its counters back (MultiStepLR's milestones)."""
    return {
        key: Counter({int(step): n for step, n in value.items()}) if isinstance(own.get(key), Counter) else value
        for key, value in state.items()
    }
