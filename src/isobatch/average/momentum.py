"""Momentum schedules of self-supervised learning, used through their mean over the samples of a step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from isobatch.errors import InputError
from isobatch.units import finite


def overlaps(start: float, stop: float, batch: float) -> list[tuple[int, float]]:
    """Return the reference steps that an interval of samples covers, each with the share of it that is covered.

    Reference step j spans the samples from j * batch to (j + 1) * batch.

    Args:
        start: first sample.
        stop: end of the interval, after start.
        batch: reference batch.

    Returns:
        Pairs (j, share), shares in (0, 1].

    Example:
        >>> overlaps(4, 16, 8)
        [(0, 0.5), (1, 1.0)]
    """
    found = []
    for step in range(math.floor(start / batch), math.ceil(stop / batch)):
        share = (min(stop, (step + 1) * batch) - max(start, step * batch)) / batch
        if share > 0:
            found.append((step, share))
    return found


@final
@dataclass(frozen=True)
class MomentumSchedule:
    r"""A decay per reference step, made exact for any batch: the mean log decay over [seen, seen + samples].

    The reference schedule is a step function of samples, so at the reference batch this gives its own decays, and the
    product over any stretch of samples does not depend on the batches in which it is covered. A decay of 1 gives the
    half-life inf.

    Args:
        decay: rho of reference step j = 0, 1, ...
        batch_size: reference batch in samples.

    Raises:
        InputError: a batch size that is not positive, or (when used) a decay outside [0, 1].

    Example:
        >>> schedule = MomentumSchedule(lambda step: 0.99, batch_size=8)
        >>> round(0.5 ** (64 / schedule.half_life(seen=0, samples=64)), 6)  # 0.99 ** 8
        0.922745

    References:
        arXiv 2307.13813; derived for a schedule within one large step.
    """

    decay: Callable[[int], float]
    batch_size: float

    def __post_init__(self) -> None:
        finite("batch_size", self.batch_size, 0, open_low=True)

    def half_life(self, seen: float, samples: float) -> float:
        """Return the half-life in samples to give to update(samples=..., half_life=...).

        Args:
            seen: samples before the step.
            samples: of the step.

        Returns:
            H in samples, from 0 to infinity.

        Raises:
            InputError: a decay of the schedule outside [0, 1].
        """
        size = finite("samples", samples, 0, open_low=True)
        begin = finite("seen", seen, 0)
        span = 0.0
        for step, share in overlaps(begin, begin + size, self.batch_size):
            rho = self.decay(step)
            if not 0 <= rho <= 1:
                raise InputError(f"decay={rho!r} of reference step {step} must be in [0, 1]; correct the schedule")
            span += share * (math.inf if rho == 0 else -math.log2(rho))
        if span == 0:
            return math.inf
        return size / span if span < math.inf else 0.0


def cosine_momentum(start: float, end: float, *, length: float, batch_size: float) -> MomentumSchedule:
    """Return the schedule of BYOL and DINO: from `start` to `end` along half a cosine.

    rho_j = end - (end - start) (cos(pi j / J) + 1) / 2 with J = length / batch_size reference steps, end afterwards.

    Args:
        start: first decay, such as 0.996.
        end: last decay, usually 1.
        length: of the schedule in samples.
        batch_size: reference batch at which the decays were chosen.

    Returns:
        The schedule.

    Raises:
        InputError: a decay outside [0, 1] or a length that is not positive.

    Example:
        >>> schedule = cosine_momentum(0.996, 1.0, length=4096, batch_size=8)
        >>> round(0.5 ** (8 / schedule.half_life(seen=0, samples=8)), 6)
        0.996

    References:
        arXiv 2006.07733 (BYOL), arXiv 2104.14294 (DINO).
    """
    low, high = finite("start", start, 0, 1), finite("end", end, 0, 1)
    steps = finite("length", length, 0, open_low=True) / finite("batch_size", batch_size, 0, open_low=True)

    def decay(step: int) -> float:
        return high - (high - low) * (math.cos(math.pi * min(1.0, step / steps)) + 1) / 2

    return MomentumSchedule(decay, batch_size)
