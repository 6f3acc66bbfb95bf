"""AdaScale: the learning rate by the gain of a step, and a clock that runs in base steps."""

import math
from typing import Any, final

from isobatch.curves import Staircase
from isobatch.errors import InputError
from isobatch.rules import gain
from isobatch.units import finite, whole


@final
class AdaScale:
    """The reference's schedule read at the base steps done so far, times the gain of the coming step.

        rate = r*eta(tau),  tau += r,   r = (1 + B_noise/B0)/(1 + B_noise/B) in [1, B/B0]

    The run ends when tau has done the reference's steps, so a gain below B/B0 makes it longer in samples. Plain SGD;
    the noise scale is whatever `NoiseScale` measures, and may be given anew at every step.

    Args:
        lr: eta0, the peak at batch_size.
        schedule: the reference's factor as a function of its own samples.
        batch_size: B0, samples of a base step.

    Example:
        >>> schedule = AdaScale(0.1, Staircase(length=800, stair=8), batch_size=8)
        >>> schedule.step(batch=32, noise_scale=math.inf), schedule.tau
        (0.4, 4.0)

    References:
        arXiv 2007.05105, algorithm 1.
    """

    def __init__(self, lr: float, schedule: Staircase, *, batch_size: int):
        self.lr, self.schedule = finite("lr", lr, 0, open_low=True), schedule
        self.batch_size, self.tau = whole("batch_size", batch_size), 0.0

    @property
    def finished(self) -> bool:
        """Whether the reference's steps are done."""
        return self.tau * self.batch_size >= self.schedule.length

    def rate(self, *, batch: float, noise_scale: float) -> float:
        """Return the learning rate of the coming step, without moving the clock.

        Args:
            batch: its global samples.
            noise_scale: in samples, not negative; infinity where noise is all.

        Returns:
            The gain times the mean of the reference's rates over the base steps that it counts for.

        Raises:
            InputError: a value outside its range.
        """
        worth = self._gain(batch, noise_scale)
        start = self.tau * self.batch_size
        return worth * self.lr * self.schedule.mean(start, start + worth * self.batch_size)

    def step(self, *, batch: float, noise_scale: float) -> float:
        """Return the learning rate of an applied step, and move the clock by its gain.

        Args:
            batch: its global samples.
            noise_scale: in samples, not negative.

        Returns:
            The rate; call it before the optimizer's step, and not for a step that is skipped.

        Raises:
            InputError: a value outside its range, or a run that is over.
        """
        if self.finished:
            raise InputError(f"tau={self.tau:g} base steps: the reference's run is over; lengthen its schedule")
        rate = self.rate(batch=batch, noise_scale=noise_scale)
        self.tau += self._gain(batch, noise_scale)
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Return the clock."""
        return {"tau": self.tau, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a clock.

        Args:
            state: what `state_dict` gave.

        Raises:
            InputError: another base batch, or no state of an AdaScale.
        """
        if not {"tau", "batch_size"} <= state.keys():
            raise InputError(
                f"the state holds {sorted(state)}, not tau and batch_size; give what state_dict() returned"
            )
        if state["batch_size"] != self.batch_size:
            raise InputError(
                f"the state's base batch is {state['batch_size']}, this one's {self.batch_size}; build it alike"
            )
        self.tau = finite("tau in the state", state["tau"], 0)

    def _gain(self, batch: float, noise_scale: float) -> float:
        if noise_scale != math.inf:
            finite("noise scale", noise_scale, 0)
        return gain(batch, self.batch_size, noise_scale)
