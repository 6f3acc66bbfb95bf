"""rescale: change the batch of a running job in one transaction, in a user's own loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from isobatch import rules
from isobatch.errors import InputError
from isobatch.plan import Recipe, Settings, scaled
from isobatch.train.sample_scheduler import SampleScheduler
from isobatch.train.state import check, rescale_state
from isobatch.units import finite, whole

_BATCH, _SHARE = "isobatch_batch", "isobatch_share"


class Rescalable(Protocol):
    """Anything with a batch of its own: a loader, a sampler, a noise estimate."""

    def rescale(self, batch_size: int) -> Callable[[], None]:
        """Take over a batch, and return a function that takes it back."""
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
    noise: object | None = None,
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
        noise: a noise estimate; per-sample quantities do not depend on the batch, so nothing of it moves.
        loader: anything with `rescale(batch_size)`, such as the batch sampler.
        noise_share: f, the noise share of Adam's v at the present batch; 1 (the SDE's assumption) unless given.

    Returns:
        What moved.

    Raises:
        InputError: a batch beyond a rule's domain, an optimizer without a known treatment, or a bare torch scheduler.
    """
    size = whole("to", to)
    check(optimizer)
    _check_parts(scheduler, ema)
    stamps = {group.get(_BATCH, recipe.batch.size) for group in optimizer.param_groups}
    if len(stamps) > 1:
        raise InputError(f"the optimizer's groups stand at different batches {sorted(stamps)}; rescale them together")
    present = stamps.pop()
    old, new = scaled(recipe, present), scaled(recipe, size)
    share = _share(optimizer, noise_share)
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


def _share(optimizer: torch.optim.Optimizer, given: float | None) -> float:
    if given is not None:
        return finite("noise_share", given, 0, 1)
    return float(optimizer.param_groups[0].get(_SHARE, 1.0))


def _write(optimizer: torch.optim.Optimizer, recipe: Recipe, old: Settings, new: Settings, *, scaled_lr: bool) -> None:
    family = rules.FAMILIES[recipe.optimizer.name]
    for group in optimizer.param_groups:
        if scaled_lr:
            group["lr"] = group["lr"] * (new.lr / old.lr)
        if old.weight_decay:
            group["weight_decay"] = group["weight_decay"] * (new.weight_decay / old.weight_decay)
        for key, value in _moments(family, new).items():
            if key in group:
                group[key] = value


def _moments(family: rules.Family, new: Settings) -> dict[str, Any]:
    values: dict[str, Any] = {"eps": new.eps} if family.adaptive else {}
    if "momentum" in family.moments:
        values["momentum"] = new.momentum
    if "betas" in family.moments:
        values["betas"] = new.betas
    if "alpha" in family.moments:
        values["alpha"] = new.alpha
    return values


def _restore(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(saved)


def _restore_scheduler(scheduler: SampleScheduler, before: tuple[float, float]) -> None:
    scheduler.factor, scheduler.samples = before
