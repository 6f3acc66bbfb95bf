"""The noise scale of a run as it is trained, and the batch that follows it: noise -> control -> next batch size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from isobatch.control import Action, AdaptiveBatch, Evidence, Limits, temperature
from isobatch.gradients import ALONE
from isobatch.noise import NoiseScale
from isobatch.plan import Noise, row_of
from isobatch.rules import lr_rule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from isobatch.noise import NoiseEstimate
    from isobatch.plan import Recipe, Settings
    from isobatch.train.world import World

_SHARE, _DRIFT = 20, 0.25
_LOOKS = 8
"""Decisions in the span that the batch needs to settle: each one reads the estimate."""


@runtime_checkable
class NoiseReader(Protocol):
    """What measures a step: a `NoiseScale`, or a monitor around one."""

    def chunk(self, samples: float, *, rows: Sequence[float] | None = None) -> AbstractContextManager[None]:
        """Declare one backward pass."""
        ...

    def update(self, *, samples: float) -> None:
        """Take in a step, before the optimizer."""
        ...

    def discard(self) -> None:
        """Forget the present step."""
        ...


class NoiseMonitor:
    """Measures the noise scale of every few steps and, where the recipe asks for it, chooses the batch by it.

    The estimate is a by-product of the loop's own backward passes. A step that is skipped leaves no trace. When the
    temperature of the run (its learning rate against its batch rule) has moved by `drift`, the window starts again.
    Every rank holds the same numbers, so all take the same decision.

    Args:
        model: wrapped as it is trained.
        optimizer: of the run.
        recipe: its [noise] and batch.adaptive.
        world: the processes of the job.
        data_size: samples of the data set, the largest batch.

    Raises:
        InputError: a setting outside its range, or a batch.size that its limits forbid.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, world: World, data_size: int
    ):
        self.recipe, self.stairs = recipe, recipe.staircase()
        part, adaptive = recipe.noise or Noise(), recipe.batch.adaptive
        settle = self._span(adaptive.settle if adaptive else None, "batch.adaptive.settle", self.stairs.length / _SHARE)
        self.half_life = self._span(part.half_life, "noise.half_life", settle)
        self.halves = part.capture == "halves"
        self.capture: Any = "chunks" if self.halves else part.capture
        self.noise = NoiseScale(
            model,
            optimizer,
            half_life=self.half_life,
            every=part.every,
            geometry=part.geometry,
            capture=self.capture,
            unit=recipe.batch.unit,
            process_group=world.group or ALONE,
        )
        self.control: AdaptiveBatch | None = None
        if adaptive is not None:
            batch, reference = recipe.batch, self._reference(0)
            limits = Limits(
                least=adaptive.least,
                most=adaptive.most,
                data=data_size,
                grain=(batch.micro or 1) * max(batch.devices, world.size),
            )
            self.control = AdaptiveBatch(
                batch.size,
                adaptive.exchange_rate,
                reference,
                limits,
                settle=math.ceil(settle),
                hysteresis=adaptive.hysteresis,
                growth=adaptive.growth,
                drift=adaptive.drift,
            )
        self.drift = self.control.drift if self.control is not None else _DRIFT
        self.heat = self.base_heat = 0.0
        self.looked = -1
        self.look_every = max(1, math.ceil(settle / _LOOKS))
        self.news: dict[str, float | int | str] = {}

    def batch(self, seen: int) -> int:
        """Return the batch of the next step.

        Args:
            seen: samples of applied updates; the answer depends on what was measured, not on it.

        Returns:
            The controller's batch, the recipe's where nothing is adaptive.
        """
        return self.control.batch if self.control is not None else self.recipe.batch.size

    def passes(self, samples: int, most: int) -> int:
        """Return the samples of one backward pass of the present step: with halves, half of this rank's where measured.

        Args:
            samples: of this rank.
            most: samples of a pass otherwise.

        Returns:
            Samples, at least 1.
        """
        return min(most, max(1, math.ceil(samples / 2))) if self.halves and self.noise.armed else most

    def chunk(self, samples: float, *, rows: Sequence[float] | None = None) -> AbstractContextManager[None]:
        """Declare one backward pass.

        Args:
            samples: in it; 0 on a rank without samples.
            rows: what each row holds; None for equal ones.

        Returns:
            A context manager around the pass.
        """
        return self.noise.chunk(samples, rows=rows)

    def discard(self) -> None:
        """Forget the present step: it was skipped, or is repeated in smaller passes."""
        self.news = {}
        self.noise.discard()

    def update(self, *, samples: float) -> None:
        """Take in a step that will be applied, before the optimizer.

        Args:
            samples: of the global batch.
        """
        self.noise.update(samples=samples)

    def applied(self, seen: int, settings: Settings, lr: float) -> None:
        """Look at the estimate after a step, now and then, and choose the next batch.

        Args:
            seen: samples of applied updates, this step's included.
            settings: of the step.
            lr: its learning rate.
        """
        self.news = {}
        heat = temperature(lr, int(settings.batch), settings.momentum, self._exponent)
        if heat == 0:
            return
        self._rebase(heat, int(settings.batch))
        if self.looked >= 0 and seen < self.looked + self.look_every:
            return
        self.looked = seen
        found = self.noise.estimate()
        self.news = {f"noise/{key}": value for key, value in numbers(found).items()}
        if self.control is not None:
            self._decide(seen, found)

    def state_dict(self) -> dict[str, Any]:
        """Return averages, controller and clock, as tensors and plain values."""
        own = {name: getattr(self, name) for name in ("heat", "base_heat", "looked")}
        control = None if self.control is None else self.control.state_dict()
        return {"noise": self.noise.state_dict(), "control": control, "clock": own}

    def load_state_dict(self, state: dict[str, Any], *, same_world: bool) -> None:
        """Restore a state.

        Args:
            state: from `state_dict`.
            same_world: whether the ranks are as many as before; if not, what there is to compare is found out anew.

        Raises:
            InputError: a state of other settings.
        """
        noise = state["noise"]
        if not same_world:
            values = noise["values"]
            noise = {**noise, "values": {**values, "clock": {**values["clock"], "mode": self.capture}}}
        if self.control is not None:
            limits = self.control.limits
            self.control.load_state_dict(state["control"])
            if limits != self.control.limits:
                self.control.apply_limits(int(noise["values"]["clock"]["seen"]), limits)
        self.noise.load_state_dict(noise)
        for name, value in state["clock"].items():
            setattr(self, name, value)

    @property
    def _exponent(self) -> float:
        return lr_rule(row_of(self.recipe)).exponent or 0.0

    def _reference(self, seen: int) -> float:
        """Return the temperature of the reference run at its step that begins here; at the start, that of its peak."""
        o, size = self.recipe.optimizer, self.recipe.batch.size
        factor = self.stairs.mean(seen, seen + self.stairs.stair) if seen else 1.0
        return temperature(o.lr * factor, size, o.momentum, self._exponent)

    def _span(self, quantity: str | None, name: str, default: float) -> float:
        return default if quantity is None else self.recipe.span(quantity, name)

    def _rebase(self, heat: float, size: int) -> None:
        if self.base_heat == 0 or abs(math.log(heat / self.base_heat)) > math.log1p(self.drift):
            if self.base_heat:
                self.noise.rescale(temperature=heat / self.base_heat)
            self.heat = self.base_heat = heat
        else:
            self.heat += (1 - 2 ** (-size / self.half_life)) * (heat - self.heat)

    def _decide(self, seen: int, found: NoiseEstimate) -> None:
        control = self.control
        if control is None:
            return
        verdict = str(found.verdict) if not found.reason else f"{found.verdict}: {found.reason}"
        evidence = Evidence(found.value, found.low, found.high, verdict, self.heat)
        decision = control.decide(seen, evidence, self._reference(seen))
        self.news |= {"control/batch": decision.batch, "control/reason": decision.reason}
        if decision.target is not None:
            self.news["control/target"] = decision.target
        if decision.action is not Action.HOLD:
            self.news["control/action"] = str(decision.action)


def numbers(found: NoiseEstimate) -> dict[str, float | int | str]:
    """Return an estimate as entries of a log; what is not finite is left out, never replaced.

    Args:
        found: the estimate.

    Returns:
        Numbers and words.

    Example:
        >>> from isobatch.noise import undefined
        >>> numbers(undefined("one chunk a step"))["verdict"]
        'undefined: one chunk a step'
    """
    verdict = f"{found.verdict}: {found.reason}" if found.reason else str(found.verdict)
    values: dict[str, float | int | str] = {"verdict": verdict, "measurements": found.measurements}
    if found.excluded:
        values["excluded"] = found.excluded
    pairs = ("scale", found.value), ("low", found.low), ("high", found.high)
    pairs += ("gradient_squared", found.gradient_squared), ("trace", found.trace)
    return values | {name: value for name, value in pairs if value is not None and math.isfinite(value)}
