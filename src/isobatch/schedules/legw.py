"""LEGW as a schedule: the learning rate as a function of samples seen and of the batch."""

import math
from dataclasses import dataclass

from isobatch.rules import legw
from isobatch.schedules.staircase import Staircase
from isobatch.units import batch_ratio, finite


@dataclass(frozen=True)
class Legw:
    """Peak sqrt(kappa)*eta0, warm-up kappa*w0, and the reference's own decay in samples.

        lr(s) = eta * s/w for s < w,  eta * d(s) afterwards,  eta = sqrt(kappa)*eta0,  w = kappa*w0

    d is the reference's decay, which begins at w0 and does not move with the batch. It depends on samples and batch
    alone, so there is no state: after a change of the batch it is the schedule of a run at the new batch, at the same
    samples.

    Args:
        lr: eta0, the peak at batch_size.
        batch_size: B0, for which lr and warmup were chosen.
        length: samples of the whole run.
        warmup: w0 in samples.
        shape: of the decay: constant, linear or cosine.
        final: factor at the end of the run.

    Example:
        >>> schedule = Legw(0.1, batch_size=8, length=800, warmup=80)
        >>> schedule.rate(0, batch=32), schedule.rate(480, batch=32)
        (0.0125, 0.2)

    References:
        arXiv 1901.08256 (You et al.).
    """

    lr: float
    batch_size: int
    length: float
    warmup: float
    shape: str = "constant"
    final: float = 0.0

    def __post_init__(self) -> None:
        finite("lr", self.lr, 0, open_low=True)
        self.factor(self.batch_size)

    def factor(self, batch: float) -> Staircase:
        """Return the factor on the peak at a batch.

        Args:
            batch: global samples per step.

        Returns:
            The factor as a function of samples.

        Raises:
            InputError: a warm-up longer than the run at that batch.
        """
        kappa = batch_ratio(batch, self.batch_size)
        _, warmup = legw(self.lr, self.warmup, kappa, self.length)
        return Staircase(self.length, warmup, self.shape, self.final, float(self.batch_size), self.warmup)

    def rate(self, seen: float, batch: float) -> float:
        """Return the learning rate of a step.

        Args:
            seen: samples seen before it.
            batch: its samples.

        Returns:
            The peak at that batch times the factor's mean over the step.
        """
        peak = math.sqrt(batch_ratio(batch, self.batch_size)) * self.lr
        return peak * self.factor(batch).mean(seen, seen + batch)
