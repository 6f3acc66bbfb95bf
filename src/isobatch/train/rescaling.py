"""rescale: change the batch of a running job in one transaction, in a user's own loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from isobatch import rules
from isobatch.control.evidence import IDENTIFIED
from isobatch.errors import InputError
from isobatch.plan import Recipe, Settings, row_of, scaled
from isobatch.train.optimizer_state import rescale_state, row_of_optimizer
from isobatch.train.sample_scheduler import SampleScheduler
from isobatch.units import finite, whole

_BATCH, _SHARE = "isobatch_batch", "isobatch_share"


class Rescalable(Protocol):
    """Anything with a batch of its own: a loader, a sampler, a noise estimate."""

    def rescale(self, batch_size: int) -> Callable[[], None]:
        """Take over a batch, and return a function that takes it back."""
        ...


class Measured(Protocol):
    """Anything that measures the noise scale in samples."""

    def estimate(self) -> Any:
        """Return the noise scale as of now, with `value` and `verdict`."""
        ...


@dataclass(frozen=True)
class Rescaled:
    """What a rescale moved.

    Args:
        was: batch before.
        becomes: batch after.
        settings: key -> (before, after), without the schedule's factor.
        moved: whether anything moved; False when the batch was the same already.
    """

    was: int
    becomes: int
    settings: dict[str, tuple[object, object]]
    moved: bool


def rescale(
    *,
    to: int,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    scheduler: SampleScheduler | None = None,
    ema: object | None = None,
    noise: Measured | None = None,
    loader: Rescalable | None = None,
    noise_share: float | None = None,
) -> Rescaled:
    """Move learning rate, betas, momentum, weight decay, eps and the optimizer's state to another global batch.

    All or nothing: everything is checked first, and a failure afterwards takes back what was done. The batch in force
    is stamped in the optimizer's groups, so a second call for the same batch moves nothing, also after a resume; going
    back restores the numbers. The weight average keeps its half-life in samples: nothing of it moves.

    Args:
        to: the new global batch.
        optimizer: a torch optimizer that was built with the recipe's numbers, or rescaled before.
        recipe: the reference recipe; its rules are used.
        scheduler: a `SampleScheduler`; without one each group's lr is multiplied.
        ema: the weight average, only checked to be on the sample clock.
        noise: a `NoiseScale` (or anything with `estimate()`): where it has identified the noise scale, the noise share
            of Adam's v at the present batch follows from it. Nothing of it moves: it is in samples.
        loader: anything with `rescale(batch_size)`, such as the batch sampler.
        noise_share: f, the noise share of Adam's v at the present batch, instead of `noise`; what the last call left,
            or 1 (the SDE's assumption), unless either says it.

    Returns:
        What moved.

    Raises:
        InputError: a batch beyond a rule's domain, an optimizer without a known treatment, or a bare torch scheduler.
    """
    size = whole("to", to)
    row_of_optimizer(optimizer)
    _check_parts(scheduler, ema)
    stamps = {group.get(_BATCH, recipe.batch.size) for group in optimizer.param_groups}
    if len(stamps) > 1:
        raise InputError(f"the optimizer's groups stand at different batches {sorted(stamps)}; rescale them together")
    present = stamps.pop()
    old, new = scaled(recipe, present), scaled(recipe, size)
    share = _share(optimizer, noise_share, noise, present)
    changes: dict[str, tuple[object, object]] = {
        name: (getattr(old, name), getattr(new, name))
        for name in ("lr", "momentum", "betas", "alpha", "eps", "weight_decay", "batch_norm")
        if getattr(old, name) != getattr(new, name)
    }
    if present == size:
        return Rescaled(present, size, {}, False)
    undo: list[Callable[[], None]] = []
    try:
        if loader is not None:
            undo.append(loader.rescale(size))
        groups = [dict(group) for group in optimizer.param_groups]
        undo.append(lambda: _restore(optimizer, groups))
        _write(optimizer, recipe, old, new, scaled_lr=scheduler is None)
        if scheduler is not None:
            before = (scheduler.factor, scheduler.samples)
            undo.append(lambda: _restore_scheduler(scheduler, before))
            scheduler.factor, scheduler.samples = new.lr / recipe.optimizer.lr, size
            scheduler.write()
        after = rules.noise_share_after(share, size / present)
        for group in optimizer.param_groups:
            group[_BATCH], group[_SHARE] = size, after
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    # last, because it cannot fail: in-place products on tensors that exist
    rescale_state(optimizer, old, new, share)
    return Rescaled(present, size, changes, True)


def _check_parts(scheduler: object | None, ema: object | None) -> None:
    if scheduler is not None and not isinstance(scheduler, SampleScheduler):
        raise InputError(
            f"{type(scheduler).__name__} counts steps; wrap it before training: "
            "SampleScheduler(scheduler, batch_size=...)"
        )
    if isinstance(ema, torch.optim.swa_utils.AveragedModel):
        raise InputError(
            "AveragedModel counts updates, not samples; use isobatch.ModelEMA, whose half-life is in samples"
        )


def _share(optimizer: torch.optim.Optimizer, given: float | None, noise: Measured | None, batch: float) -> float:
    if given is not None:
        return finite("noise_share", given, 0, 1)
    if noise is not None:
        found = noise.estimate()
        if str(found.verdict) == IDENTIFIED and found.value is not None:
            return rules.noise_share(batch, found.value)
    return float(optimizer.param_groups[0].get(_SHARE, 1.0))


def _write(optimizer: torch.optim.Optimizer, recipe: Recipe, old: Settings, new: Settings, *, scaled_lr: bool) -> None:
    for group in optimizer.param_groups:
        for key in row_of(recipe).keys:
            if key not in group:
                continue
            if key == "lr":
                group[key] = group[key] * (new.lr / old.lr) if scaled_lr else group[key]
            elif key == "weight_decay":
                group[key] = group[key] * (new.weight_decay / old.weight_decay) if old.weight_decay else group[key]
            else:
                group[key] = getattr(new, key)


def _restore(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(saved)


def _restore_scheduler(scheduler: SampleScheduler, before: tuple[float, float]) -> None:
    scheduler.factor, scheduler.samples = before
