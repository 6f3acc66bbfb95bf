"""What an average says about itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch
from torch import Tensor

from isobatch.average.engine import Engine

# An update that replaces more than this share of the average leaves the range where kappa * (1 - rho) << 1.
COARSE = 0.1
FROZEN = 0.5


@final
@dataclass(frozen=True)
class Report:
    """State of one average; lengths are norms over all averaged tensors.

    Args:
        half_life: effective half-life in samples of the last application; None before the first.
        mean_age: mean age in samples of the weights in the average, what is pending included.
        seen: samples that update() was told of.
        pending: of these, samples not applied yet.
        share: weight that the last application gave to new weights; None before the first.
        lost_below: relative gap between average and weights under which such an application may be lost; 0 where the
            rounding loses nothing.
        frozen_share: share of elements that differ from the weights and yet would not move.
        distance: norm of average - weights.
        relative_distance: the same over the norm of the weights.
        warnings: what looks wrong, as sentences.
    """

    half_life: float | None
    mean_age: float
    seen: float
    pending: float
    share: float | None
    lost_below: float
    frozen_share: float
    distance: float
    relative_distance: float
    warnings: tuple[str, ...]


def measured(engine: Engine, values: Mapping[str, Tensor], tracks: Sequence[int]) -> Report:
    """Measure one average.

    Args:
        engine: clock and tensors.
        values: the average by name.
        tracks: which of the K it is the mean of.

    Returns:
        The report.
    """
    clock, live = engine.clock, engine.tracks.live()
    share = fmean(1 - engine.last[k].keep for k in tracks) if engine.last else None
    exact = engine.tracks.rounding != "nearest"
    gap, size, frozen, total = 0.0, 0.0, 0, 0
    for name, value in values.items():
        weights = live[name].detach()
        wide = torch.promote_types(value.dtype, torch.float32)
        away = (value.to(wide) - weights.to(wide)).abs()
        gap += float(away.square().sum())
        size += float(weights.to(wide).abs().square().sum())
        frozen += 0 if exact or not share else _frozen(value, weights, share)
        total += value.numel()
    eps = max((torch.finfo(v.dtype).eps for v in values.values()), default=0.0)
    lost = eps / 2 / share if share and not exact else 0.0
    frozen_share = frozen / total if total else 0.0
    found = [*engine.watch.messages(), *_judged(share, frozen_share, lost, engine.holds)]
    return Report(
        half_life=fmean(engine.half_lives[k] for k in tracks) if engine.half_lives else None,
        mean_age=fmean(clock.ages[k] for k in tracks) + clock.pending,
        seen=clock.seen,
        pending=clock.pending,
        share=share,
        lost_below=lost,
        frozen_share=frozen_share,
        distance=math.sqrt(gap),
        relative_distance=math.sqrt(gap / size) if size else 0.0,
        warnings=tuple(found),
    )


def _frozen(value: Tensor, weights: Tensor, share: float) -> int:
    target = weights.to(value.dtype)
    stuck = (torch.lerp(value, target, share) == value) & (value != target)
    return int(stuck.sum())


def _judged(share: float | None, frozen: float, lost: float, holds: bool) -> list[str]:
    found = []
    if frozen > FROZEN:
        found.append(
            f"{frozen:.0%} of the elements no longer move: an update of weight {share:.2g} is lost where average and "
            f'weights differ by less than {lost:.1%}; cadence="auto" applies fewer and larger updates'
        )
    if share is not None and COARSE < share < 1 and not holds:
        found.append(
            f"one update replaces {share:.0%} of the average, so the half-life spans only a few updates and the plain "
            'rule is coarse; a smaller batch, a longer half-life or kind="hold" is closer'
        )
    return found
