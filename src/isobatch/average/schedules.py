"""What papers and other libraries do to the decay over a run: momentum schedules, and warm-ups by their names."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from isobatch.curves import StepWarmup, mean_over
from isobatch.curves.shapes import cosine
from isobatch.curves.warmups import Curve
from isobatch.errors import InputError
from isobatch.units import finite, whole


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
        halvings = mean_over(self._halvings, begin, begin + size, self.batch_size, sys.maxsize)
        if halvings == 0:
            return math.inf
        return self.batch_size / halvings if halvings < math.inf else 0.0

    def _halvings(self, step: int) -> float:
        rho = self.decay(step)
        if not 0 <= rho <= 1:
            raise InputError(f"decay={rho!r} of reference step {step} must be in [0, 1]; correct the schedule")
        return math.inf if rho == 0 else -math.log2(rho)


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
        return high - (high - low) * cosine(min(1.0, step / steps))

    return MomentumSchedule(decay, batch_size)


def tensorflow_warmup(batch_size: float | None = None) -> StepWarmup:
    """Return the warm-up of TensorFlow and torch-ema, (1 + t) / (10 + t) from t = 1.

    Args:
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> tensorflow_warmup().first
        1
    """
    return StepWarmup("tensorflow", first=1, batch_size=batch_size)


def diffusers_warmup(
    *,
    use_ema_warmup: bool = False,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    update_after_step: int = 0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of diffusers: (1 + t) / (10 + t), or crowson's with use_ema_warmup; the first step copies.

    Args:
        use_ema_warmup: as there.
        inv_gamma: as there.
        power: as there.
        update_after_step: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> diffusers_warmup().copies
        1
    """
    curve: Curve = "crowson" if use_ema_warmup else "tensorflow"
    copies = whole("update_after_step", update_after_step, 0) + 1
    return StepWarmup(curve, scale=inv_gamma, power=power, first=1, copies=copies, batch_size=batch_size)


def crowson_warmup(
    *,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    min_decay: float = 0.0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of k-diffusion, 1 - (1 + t / inv_gamma)**-power from t = 0.

    Args:
        inv_gamma: as there.
        power: as there.
        min_decay: as there (min_value).
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> crowson_warmup(power=0.75).power
        0.75
    """
    return StepWarmup("crowson", inv_gamma, power, min_decay=min_decay, batch_size=batch_size)


def timm_warmup(
    *,
    warmup_gamma: float = 1.0,
    warmup_power: float = 2 / 3,
    min_decay: float = 0.0,
    update_after_step: int = 0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of timm's ModelEmaV3 with use_warmup, told the steps 0, 1, 2, ...

    Args:
        warmup_gamma: as there.
        warmup_power: as there.
        min_decay: as there.
        update_after_step: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> timm_warmup().copies
        2
    """
    copies = whole("update_after_step", update_after_step, 0) + 2
    return StepWarmup("crowson", warmup_gamma, warmup_power, 1, copies, min_decay, batch_size)


def ema_pytorch_warmup(
    *,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    min_value: float = 0.0,
    update_after_step: int = 100,
    update_every: int | None = None,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of ema-pytorch's EMA, whose curve counts steps and gives a decay per application.

    Args:
        inv_gamma: as there.
        power: as there.
        min_value: as there.
        update_after_step: as there.
        update_every: as there (10 by default); None takes it from ModelEMA(decay=..., batch_size=update_every * B)
            and the batch_size=B given here.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> ema_pytorch_warmup().copies
        101
    """
    copies = whole("update_after_step", update_after_step, 0) + 1
    return StepWarmup("crowson", inv_gamma, power, 1, copies, min_value, batch_size, update_every)


def ultralytics_warmup(tau: float = 2000.0, batch_size: float | None = None) -> StepWarmup:
    """Return the warm-up of ultralytics, rho * (1 - exp(-t / tau)) from t = 1.

    Args:
        tau: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> ultralytics_warmup().scale
        2000.0
    """
    return StepWarmup("exponential", tau, first=1, batch_size=batch_size)


def mmengine_warmup(gamma: float = 100.0, batch_size: float | None = None) -> StepWarmup:
    """Return the annealing of MMEngine: the weight of new weights is max(momentum, gamma / (gamma + t)) from t = 0.

    Args:
        gamma: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> mmengine_warmup().curve
        'annealing'
    """
    return StepWarmup("annealing", gamma, batch_size=batch_size)
