"""rescale: change the batch of a running job in one transaction, in a user's own loop."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from isobatch import rules
from isobatch.average import ModelAverage
from isobatch.control.evidence import IDENTIFIED
from isobatch.errors import InputError
from isobatch.gradients import bare_optimizer
from isobatch.optimizers.settings import assign
from isobatch.plan import Recipe, Settings, coupling_of, row_of, scaled
from isobatch.rules import OptimizerRow
from isobatch.rules.optimizers import extends
from isobatch.train.sample_scheduler import SampleScheduler, drives
from isobatch.train.setup import rescale_state, row_of_optimizer
from isobatch.units import finite, whole

_BATCH, _SHARE = "isobatch_batch", "isobatch_share"


@runtime_checkable
class Rescalable(Protocol):
    """Anything with a batch of its own: a loader, a sampler, a noise estimate."""

    def rescale(self, batch_size: int) -> Callable[[], None]:
        """Take over a batch, and return a function that takes it back."""
        ...


@runtime_checkable
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
        elsewhere: key -> (before, after) of what the optimizer does not hold and the loop has to write: "batch_norm",
            the momentum of its batch-norm layers, and "clip", the largest norm of a gradient.
    """

    was: int
    becomes: int
    settings: dict[str, tuple[object, object]]
    moved: bool
    elsewhere: dict[str, tuple[object, object]] = field(default_factory=dict)


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
    is stamped in the optimizer's groups ("isobatch_batch"), so a second call for the same batch moves nothing, also
    after a resume; going back restores the numbers. A group that was added since joins the others from the batch at
    which its numbers hold: that of its stamp, which whoever adds it writes; the recipe's where a scheduler writes its
    lr. The weight average keeps its half-life in samples: nothing of it moves.

    Args:
        to: the new global batch.
        optimizer: a torch optimizer that was built with the recipe's numbers, or rescaled before; one that Accelerate
            wraps is seen through. Learning rate and weight decay may differ from group to group: they are multiplied.
        recipe: the reference recipe; its rules are used.
        scheduler: a `SampleScheduler` of this optimizer; without one each group's lr is multiplied. A torch scheduler
            that runs unwrapped would undo that at its next step, so it is refused.
        ema: the weight average, only checked to be on the sample clock.
        noise: a `NoiseScale` (or anything with `estimate()`): where it has identified the noise scale, the noise share
            of Adam's v at the present batch follows from it. Nothing of it moves: it is in samples.
        loader: anything with `rescale(batch_size)`, such as the batch sampler.
        noise_share: f, the noise share of Adam's v at the present batch, instead of `noise`; what the last call left,
            or 1 (the SDE's assumption), unless either says it.

    Returns:
        What moved.

    Raises:
        InputError: members of another kind, a batch beyond a rule's domain, an optimizer without a known treatment or
            of another kind than the recipe's or with other moments or eps, a group of which nothing says the batch, a
            bare torch scheduler, or one that moves what the batch would move.
    """
    size, optimizer = whole("to", to), bare_optimizer(optimizer)
    _check_parts(recipe, scheduler, ema, noise, loader)
    check_recipe(optimizer, recipe)
    stamps = _stamps(optimizer, recipe, scheduler)
    present = stamps[0]
    old, new = scaled(recipe, present), scaled(recipe, size)
    before = [old if stamp == present else scaled(recipe, stamp) for stamp in stamps]
    share = _share(optimizer, noise_share, noise, present)
    changes, elsewhere = _changes(row_of(recipe).keys, old, new), _changes(("batch_norm", "clip"), old, new)
    if all(stamp == size for stamp in stamps):
        return Rescaled(present, size, {}, False)
    powers = _check_scheduler(optimizer, scheduler, recipe, old, new)
    _check_numbers(optimizer, recipe, before, scheduler)
    undo: list[Callable[[], None]] = []
    try:
        if loader is not None:
            undo.append(loader.rescale(size))
        groups = [_copied(group) for group in optimizer.param_groups]
        undo.append(lambda: _restore(optimizer, groups))
        for group, held in zip(optimizer.param_groups, before, strict=True):
            _write(optimizer, group, recipe, held, new, scaled_lr=scheduler is None)
        if scheduler is not None:
            undo.append(_move_scheduler(scheduler, new.lr / recipe.optimizer.lr, size, powers))
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
    return Rescaled(present, size, changes, True, elsewhere)


def _stamps(optimizer: torch.optim.Optimizer, recipe: Recipe, scheduler: SampleScheduler | None) -> list[int]:
    """Return the batch at which the numbers of each group hold; that of the first one is the batch in force."""
    found: list[int] = []
    reference = recipe.batch.size
    for index, group in enumerate(optimizer.param_groups):
        stamp = f"param_groups[{index}][{_BATCH!r}]"
        if _BATCH not in group and scheduler is None and found and found[0] != reference:
            raise InputError(
                f"group {index} was added after the optimizer went to batch {found[0]}, and nothing says at which "
                f"batch its lr holds; write {stamp} = {found[0]} where its numbers are those of now, or = {reference} "
                "where they are the recipe's, which add_param_group fills in"
            )
        found.append(whole(stamp, group.get(_BATCH, reference)))
    return found


def _changes(keys: Iterable[str], old: Settings, new: Settings) -> dict[str, tuple[object, object]]:
    pairs = {key: (getattr(old, key), getattr(new, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _check_parts(recipe: object, scheduler: object, ema: object, noise: object, loader: object) -> None:
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe={recipe!r} must be a Recipe; read it by isobatch.Recipe.load(path)")
    if noise is not None and not isinstance(noise, Measured):
        raise InputError(
            f"noise={type(noise).__name__} has no estimate(); give a NoiseScale, or noise_share= where f is known"
        )
    if loader is not None and not isinstance(loader, Rescalable):
        raise InputError(
            f"loader={type(loader).__name__} has no rescale(batch_size); leave it out, and build it at the new batch"
        )
    if scheduler is not None and not isinstance(scheduler, SampleScheduler):
        raise InputError(
            f"{type(scheduler).__name__} counts steps; wrap it before training: "
            "SampleScheduler(scheduler, batch_size=...)"
        )
    if ema is not None and not isinstance(ema, ModelAverage):
        raise InputError(
            f"ema={type(ema).__name__} does not count samples; use isobatch.ModelEMA, whose half-life is in samples"
        )


def check_recipe(optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    """Refuse an optimizer of another kind than the recipe's: other rules would move it.

    Args:
        optimizer: the optimizer, its class or one that it extends known to `isobatch.rules.OPTIMIZERS`.
        recipe: names the optimizer.

    Raises:
        InputError: another kind, or weight decay that is coupled in another way.
    """
    row, kind = row_of(recipe), row_of_optimizer(optimizer)
    if kind is not row and not (extends(type(optimizer), row) or _twins(kind, row)):
        raise InputError(
            f"the optimizer is {type(optimizer).__name__} and the recipe's is {row.name!r}, whose rules differ; give "
            "the recipe of this optimizer, or the optimizer of this recipe"
        )
    coupling, wanted = _coupling(optimizer, kind), coupling_of(recipe)
    if {coupling, wanted} == {"coupled", "decoupled"}:
        raise InputError(
            f"the optimizer is {type(optimizer).__name__} with {coupling} weight decay and the recipe's is {row.name!r}"
            f" with {wanted} weight decay, whose rules differ; give optimizer.decay = {coupling!r} in the recipe, or "
            "the optimizer of this recipe"
        )


def _check_numbers(
    optimizer: torch.optim.Optimizer, recipe: Recipe, before: Sequence[Settings], scheduler: SampleScheduler | None
) -> None:
    """Refuse decays of moments and eps that are not the recipe's: they would be overwritten by what it says."""
    row, driven = row_of(recipe), scheduler.driven if scheduler is not None else ()
    keys = [key for key in (*row.moments, "eps") if key in row.keys and not (key == "eps" and recipe.groups)]
    for index, (group, old) in enumerate(zip(optimizer.param_groups, before, strict=True)):
        for key in keys:
            held, wanted = _several(group.get(key, ())), _several(getattr(old, key))
            pairs = zip(held, wanted, strict=False)
            apart = [not math.isclose(one, other, rel_tol=1e-6) for one, other in pairs]
            names = [key] if len(wanted) == 1 else [f"{key}.{i}" for i in range(len(wanted))]
            if not any(wrong and name not in driven for wrong, name in zip(apart, names, strict=False)):
                continue
            has, says = (_spoken(numbers) for numbers in (held, wanted))
            way = "it was written since the last rescale: put the recipe's back first, and your own after it"
            if _BATCH not in group and any(_BATCH in other for other in optimizer.param_groups):
                way = f"where its numbers are those of another batch, write param_groups[{index}][{_BATCH!r}] = that"
            elif old.batch == recipe.batch.size:
                way = (
                    f"write optimizer.{key} = {has} into the recipe, or give groups that differ an optimizer of their "
                    "own"
                )
            raise InputError(
                f"group {index} of the optimizer has {key}={has} where the recipe has {says} at batch {old.batch:g}, "
                f"and would be given the recipe's; {way}"
            )


def _several(value: Any) -> list[float]:
    return [float(one) for one in value] if isinstance(value, tuple | list) else [float(value)]


def _spoken(numbers: list[float]) -> str:
    words = [f"{number:.12g}" for number in numbers]
    return words[0] if len(words) == 1 else f"[{', '.join(words)}]"


def _coupling(optimizer: torch.optim.Optimizer, kind: OptimizerRow) -> str | None:
    """Return how an optimizer's weight decay is coupled, None without any, or where a class of the user's says it."""
    options = optimizer.param_groups[0]
    if not any(group.get("weight_decay") for group in optimizer.param_groups):
        return None
    if "decoupled_weight_decay" in options:  # torch's Adam, RAdam and NAdam have both
        return "decoupled" if options["decoupled_weight_decay"] else "coupled"
    return kind.decay if type(optimizer).__name__ in kind.classes else None


def _twins(one: OptimizerRow, other: OptimizerRow) -> bool:
    """Whether two optimizers differ in nothing but how their weight decay is coupled."""
    same = ("keys", "theory", "invariant", "mixes", "normalises_after", "state")
    return bool(one.theory) and all(getattr(one, name) == getattr(other, name) for name in same)


def _check_scheduler(
    optimizer: torch.optim.Optimizer, scheduler: SampleScheduler | None, recipe: Recipe, old: Settings, new: Settings
) -> dict[str, float]:
    """Return the powers of what the scheduler moves beside the learning rate, or refuse what would be undone."""
    if scheduler is None:
        if any("initial_lr" in group for group in optimizer.param_groups):
            raise InputError(
                "a torch scheduler drives this optimizer (its groups hold 'initial_lr') and would undo the new lr at "
                "its next step; build SampleScheduler(scheduler, batch_size=...) before training and give scheduler=, "
                "or, where none runs any more, delete 'initial_lr' from the groups"
            )
        return {}
    drives(scheduler, optimizer)
    stair = recipe.schedule.stair if recipe.schedule is not None else None
    if scheduler.batch_size not in (recipe.batch.size, stair):
        raise InputError(
            f"the scheduler's reference batch is {scheduler.batch_size} and the recipe's {recipe.batch.size}: one of "
            "them would be scaled twice; build SampleScheduler with the recipe's batch size"
        )
    if scheduler.factor == 1 and not math.isclose(old.lr, recipe.optimizer.lr, rel_tol=1e-9):
        raise InputError(
            f"the optimizer stands at batch {old.batch:g} and its scheduler was never rescaled: it was built since, "
            "and nothing says whether its rates are of this batch or of the recipe's; load its state, or go back by "
            f"rescale(to={recipe.batch.size}) without it, build it there and give it then"
        )
    before, after = recipe.optimizer.betas[0], new.betas[0]
    for option, moved in (
        ("momentum", old.momentum != new.momentum),
        ("weight_decay", old.weight_decay != new.weight_decay),
        ("betas.1", old.betas[1] != new.betas[1]),
    ):
        if moved and option in scheduler.driven:
            raise InputError(
                f"the scheduler moves {option}, and so would the new batch; build it without "
                '(cycle_momentum=False), or keep the momentum (rules.momentum = "keep")'
            )
    power = math.log(after) / math.log(before) if 0 < before < 1 and 0 < after < 1 else 1.0
    return {"betas.0": power}


def _share(optimizer: torch.optim.Optimizer, given: float | None, noise: Measured | None, batch: float) -> float:
    if given is not None:
        return finite("noise_share", given, 0, 1)
    if noise is not None:
        found = noise.estimate()
        if str(found.verdict) == IDENTIFIED and found.value is not None:
            return rules.noise_share(batch, found.value)
    return float(optimizer.param_groups[0].get(_SHARE, 1.0))


def _write(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    recipe: Recipe,
    old: Settings,
    new: Settings,
    *,
    scaled_lr: bool,
) -> None:
    decay = new.weight_decay / old.weight_decay if old.weight_decay else _decay_factor(optimizer, recipe, old, new)
    for key in row_of(recipe).keys:
        if key not in group:
            continue
        if key == "lr":
            if scaled_lr:
                assign(group, key, group[key] * (new.lr / old.lr))
        elif key == "weight_decay":
            assign(group, key, group[key] * decay)
        elif key == "eps" and recipe.groups and old.eps:
            assign(group, key, group[key] * (new.eps / old.eps))
        else:
            assign(group, key, getattr(new, key))


def _decay_factor(optimizer: torch.optim.Optimizer, recipe: Recipe, old: Settings, new: Settings) -> float:
    """Return what weight decay is multiplied by where only groups have one, or the optimizer's default was left."""
    if not any(group.get("weight_decay") for group in optimizer.param_groups):
        return 1.0
    one = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"weight_decay": 1.0})})
    return scaled(one, new.batch).weight_decay / scaled(one, old.batch).weight_decay


def _copied(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group's options with the values of those that are tensors, which are written in place."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in group.items()}


def _restore(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for key in group.keys() - saved.keys():
            del group[key]
        for key, value in saved.items():
            assign(group, key, value)


def _move_scheduler(
    scheduler: SampleScheduler, factor: float, size: int, powers: dict[str, float]
) -> Callable[[], None]:
    """Give a scheduler the numbers of another batch, and return what takes them back."""
    before = scheduler.factor, scheduler.samples, scheduler.powers

    def back() -> None:
        scheduler.factor, scheduler.samples, scheduler.powers = before

    scheduler.factor, scheduler.samples, scheduler.powers = factor, size, powers
    return back
