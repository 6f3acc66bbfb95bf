"""What a recipe builds: its optimizer, its average, and the numbers of a step written into the optimizer."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isobatch.average import ModelEMA
from isobatch.control import BatchSchedule
from isobatch.curves import DecayCurve, mean_over
from isobatch.errors import InputError
from isobatch.gradients import ALONE
from isobatch.optimizers import build, prepare_settings
from isobatch.plan import Recipe, Search, Settings, coupling_of, of_group, row_of, scaled
from isobatch.recipe import MOVED
from isobatch.rules import OPTIMIZERS, OptimizerRow, StateChange, state_factors
from isobatch.rules.optimizers import row_of_class, trained
from isobatch.train.rate_search import RateSearch, copy_of, put_back
from isobatch.train.world import World
from isobatch.units import decay_at, whole

_GROUP = "isobatch_group"


def prepare_groups(optimizer: torch.optim.Optimizer, recipe: Recipe, settings: Settings) -> list[dict[str, Any]]:
    """Return the numbers that steps of one batch write into the optimizer's groups, for `write_prepared`.

    Args:
        optimizer: the recipe's optimizer.
        recipe: names the optimizer, whose row says which numbers its groups hold; a group of its own has its own.
        settings: numbers at the batch of the steps.

    Returns:
        Numbers by group, all but the learning rate.
    """
    keys = [key for key in row_of(recipe).keys if key != "lr"]
    size = recipe.batch.size if recipe.batch.schedule_lr == "keep" else settings.batch
    rows = {"": prepare_settings(optimizer, {key: getattr(settings, key) for key in keys})}
    for group in recipe.groups:
        own = scaled(of_group(recipe, group), size)
        rows[group.name] = prepare_settings(optimizer, {key: getattr(own, key) for key in keys})
    return [rows[group.get(_GROUP, "")][index] for index, group in enumerate(optimizer.param_groups)]


def parameter_groups(model: nn.Module, recipe: Recipe) -> Iterable[Any]:
    """Return a model's parameters as the recipe's [[groups]] divide them.

    Args:
        model: whose parameters are trained.
        recipe: its groups.

    Returns:
        The parameters; with groups one torch group for each, and for each layer of a layer_decay.

    Raises:
        InputError: a parameter that two groups take, or a group that takes none.
    """
    if not recipe.groups:
        return model.parameters()
    found: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        takers = [group for group in recipe.groups if group.takes(name, parameter.ndim)]
        if len(takers) > 1:
            one, other = takers[0], takers[1]
            raise InputError(
                f"groups.{one.name} (match={one.match!r}) and groups.{other.name} (match={other.match!r}) both take "
                f"{name!r}; narrow one of them"
            )
        ratio, label = 1.0, ""
        for group in takers:
            ratio = group.scale_of(name) * group.of(recipe.optimizer).lr / recipe.optimizer.lr
            label = group.name
        found.setdefault((label, ratio), []).append(parameter)
    for group in recipe.groups:
        if all(label != group.name for label, _ in found):
            names = ", ".join(list(dict(model.named_parameters()))[:3])
            raise InputError(
                f"groups.{group.name} (match={group.match!r}, dims={group.dims!r}) takes no parameter; the model's are "
                f"called {names}, ...; mend match, or remove the group"
            )
    return [
        {"params": parameters, "lr_ratio": ratio, "weight_decay_ratio": 1.0, _GROUP: label}
        for (label, ratio), parameters in found.items()
    ]


class Followed:
    """The curves of weight decay and momentum, as numbers of one step.

    A step of B samples takes the mean share of weight decay over its samples, and the momentum whose logarithm is the
    mean one times what the rule makes of it: at the reference batch the reference's own. Where the momentum of heavy
    ball moves by the sample clock, eta/(1-mu) is what keeps its sum over the samples.

    Args:
        recipe: its curves.
    """

    def __init__(self, recipe: Recipe):
        self.decay, share = recipe.curve("weight_decay"), recipe.curve("momentum")
        self.heavy = recipe.optimizer.momentum > 0
        self.moving: DecayCurve | None = None
        if share is not None:
            reference = scaled(recipe, share.stair)
            start = reference.momentum if self.heavy else reference.betas[0]
            self.moving = DecayCurve(start, share, share.stair)
        self.clocked = self.heavy and not row_of(recipe).normalises_after
        self.curve = recipe.staircase() if self.moving is not None else None

    def rows(self, rows: list[dict[str, Any]], settings: Settings, seen: int) -> list[dict[str, Any]]:
        """Return the numbers of a step as its curves have them.

        Args:
            rows: from `prepare_groups`.
            settings: at the batch of the step.
            seen: samples before it.

        Returns:
            Numbers by group.
        """
        if self.decay is None and self.moving is None:
            return rows
        found = [dict(row) for row in rows]
        stop = seen + settings.batch
        share = 1.0 if self.decay is None else self.decay.mean(seen, stop)
        mu = self.momentum(settings, seen)
        for row in found:
            row["weight_decay"] *= share
            if mu is not None and self.heavy:
                row["momentum"] = mu
            elif mu is not None:
                row["betas"] = (mu, row["betas"][1])
        return found

    def momentum(self, settings: Settings, seen: float) -> float | None:
        """Return the momentum (or beta1) of a step; None where it does not move.

        Args:
            settings: at the batch of the step.
            seen: samples before it.

        Returns:
            mu in [0, 1).
        """
        if self.moving is None:
            return None
        span = self.moving.half_life(seen, seen + settings.batch)
        return decay_at(span, self.moving.stair * self._power(settings)) if span else 0.0

    def factor(self, settings: Settings, seen: float, plain: float) -> float:
        """Return the factor on the learning rate of a step.

        Args:
            settings: at the batch of the step.
            seen: samples before it.
            plain: mean of the curve of the learning rate alone.

        Returns:
            The factor on settings.lr.
        """
        if self.moving is None or self.curve is None or not self.clocked or self._power(settings) == 1:
            return plain
        curve, moving, stair = self.curve, self.moving, self.moving.stair
        stairs = max(1, math.ceil(curve.length / stair))
        summed = mean_over(
            lambda index: curve.at(index * stair) / (1 - moving.at(index)), seen, seen + settings.batch, stair, stairs
        )
        now = self.momentum(settings, seen) or 0.0
        return summed * (1 - now) * (1 - moving.decay) / (1 - settings.momentum)

    def _power(self, settings: Settings) -> float:
        """Return the power by which the rule takes the reference's momentum to this batch: kappa, or 1 where kept."""
        mu = self.moving.decay if self.moving is not None else 0.0
        new = settings.momentum if self.heavy else settings.betas[0]
        return 1.0 if new == mu or not 0 < mu < 1 or not 0 < new < 1 else math.log(new) / math.log(mu)


def check_trainable(recipe: Recipe, reads: Collection[str] = ()) -> None:
    """Refuse a recipe that the loop would train as another one.

    Args:
        recipe: the recipe.
        reads: names of curves and spans that the task itself follows.

    Raises:
        InputError: something that can be planned but not trained; its key and the way out.
    """
    for key, way in _untrained(recipe, reads):
        raise InputError(f"{key} can be planned but not trained by this loop; {way}")


def _untrained(recipe: Recipe, reads: Collection[str]) -> Iterator[tuple[str, str]]:
    o, batch, ema = recipe.optimizer, recipe.batch, recipe.ema
    if o.clip_by == "module":
        yield 'optimizer.clip_by = "module"', 'use "norm" or "value", or your own loop'
    if o.eps_inside or any(group.eps_inside for group in recipe.groups):
        yield "optimizer.eps_inside", "torch's optimizers add eps outside the root; remove it, or use your own loop"
    if batch.summed:
        way = "the loop takes the mean of the loss; write the recipe for it, where a proportional step has lr x batch"
        yield f'batch.reduction = "{batch.reduction}"', way
    if recipe.batch_norm is not None and recipe.batch_norm.synchronised and batch.devices > 1:
        yield "batch_norm.synchronised", "the loop's batch norm sees the samples of one pass; set batch.devices = 1"
    for part in ("augment", "adversary"):
        if batch.unit == "tokens" and getattr(recipe, part) is not None:
            yield f'[{part}] beside batch.unit = "tokens"', "views and adversaries count samples; remove one of them"
    for kind, names in (("curves", set(recipe.curves) - set(MOVED)), ("spans", set(recipe.spans))):
        for name in sorted(names - set(reads)):
            way = f"have the task read it and say so, Run(reads=({name!r},)), or remove it"
            yield f"{kind}.{name}", way
    if "momentum" in recipe.curves and o.nesterov:
        yield "curves.momentum beside optimizer.nesterov", "drop one of them"
    for group in recipe.groups:
        for field in ("optimizer", "momentum", "betas", "alpha", "nesterov", "decay"):
            if getattr(group, field) is not None:
                way = "one torch optimizer with one set of moments is trained; remove it, or use your own loop"
                yield f"groups.{group.name}.{field}", way
    if ema is not None and ema.ramp is not None and ema.ramp.by == "post-hoc":
        yield 'ema.ramp by = "post-hoc"', "use isobatch.average.PowerEMA in your own loop"
    if ema is not None and ema.ramp is not None and ema.ramp.by == "ratio" and ema.start is not None:
        yield 'ema.start beside ema.ramp by = "ratio"', "drop one of them"


def make_optimizer(model: nn.Module, recipe: Recipe, world: World | None = None) -> torch.optim.Optimizer:
    """Build the recipe's optimizer for a model.

    Args:
        model: whose parameters are trained.
        recipe: names the optimizer and its numbers.
        world: the processes of the job, one unless given.

    Returns:
        The optimizer.

    Raises:
        InputError: an optimizer or a coupling of weight decay that is planned for but not shipped.
    """
    o, row, coupling = recipe.optimizer, row_of(recipe), coupling_of(recipe)
    if row.builder is None:
        raise InputError(f"optimizer.name={o.name!r} can be planned but not trained; these can: {trained()}")
    if coupling != row.decay and coupling not in ("coupled", "decoupled"):
        raise InputError(
            f"optimizer.decay={coupling!r} can be planned but not trained with {o.name}; leave it at {row.decay!r}"
        )
    return build(
        o.name,
        parameter_groups(model, recipe),
        lr=o.lr,
        momentum=o.momentum,
        nesterov=o.nesterov,
        betas=o.betas,
        alpha=o.alpha,
        eps=o.eps,
        weight_decay=o.weight_decay,
        coupled=(coupling == "coupled") if o.weight_decay and coupling != "trust-ratio" else None,
        reference_batch=o.reference_batch or recipe.batch.size,
        process_group=(world.group or ALONE) if world else None,
    )


def make_average(model: nn.Module, recipe: Recipe) -> ModelEMA | None:
    """Build the recipe's weight average.

    Args:
        model: whose weights are averaged.
        recipe: its [ema] part gives half-life, cadence and kind.

    Returns:
        The average, None for a recipe without one.
    """
    if recipe.ema is None:
        return None
    stair, ema = recipe.staircase().stair, recipe.ema
    return ModelEMA(
        model,
        half_life=recipe.half_life,
        batch_size=stair,
        kind=ema.kind,
        cadence=ema.every,
        warmup=recipe.average_warmup(),
    )


def make_search(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, average: ModelEMA | None, world: World
) -> RateSearch | None:
    """Build the recipe's search for a learning rate.

    Args:
        recipe: its [schedule] may be autowu.
        model: whose weights go back where the search says so.
        optimizer: goes back with them.
        average: goes back with them.
        world: the processes of the job.

    Returns:
        The search, None for a recipe whose schedule is fixed.
    """
    rate = recipe.search()
    if rate is None or recipe.schedule is None:
        return None
    part = recipe.schedule.search or Search()
    published = part.tests is not None
    if not part.rollback:
        return RateSearch(rate, world, published=published)
    return RateSearch(
        rate,
        world,
        lambda: copy_of(model, optimizer, average),
        lambda found: put_back(found, model, optimizer, average),
        published=published,
    )


def batches(recipe: Recipe, batch_size: int | None = None) -> Callable[[int], int]:
    """Return the batch as a function of samples seen.

    Args:
        recipe: its batch.size.
        batch_size: a constant batch instead, None for the recipe's own.

    Returns:
        A function of samples seen.
    """
    if batch_size is None and recipe.batch.schedule is not None:
        return BatchSchedule.from_recipe(recipe).at
    size = recipe.batch.size if batch_size is None else whole("batch_size", batch_size)
    return lambda _: size


def row_of_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerRow:
    """Return the row by which an optimizer's state is moved, or refuse the optimizer.

    Args:
        optimizer: the optimizer.

    Returns:
        Its row.

    Raises:
        InputError: an optimizer whose state has no known answer to a change of the batch.
    """
    row = row_of_class(type(optimizer))
    if row is None:
        plain, forms = [], []
        for known in OPTIMIZERS.values():
            (forms if known.invariant else plain).extend(known.classes)
        raise InputError(
            f"{type(optimizer).__name__} keeps state that isobatch does not know how to rescale; it knows "
            f"{', '.join(plain)} and the invariant forms {', '.join(forms)}"
        )
    return row


def rescale_state(optimizer: torch.optim.Optimizer, old: Settings, new: Settings, share: float) -> None:
    """Change an optimizer's state in place for steps of another batch.

    SGD's buffer is multiplied by (1-mu)/(1-mu'), so that it stays the buffer of the same gradient. Adam keeps m; v
    becomes v*((1-f) + f/kappa) with f the noise share of the squared gradient; bias correction follows the accumulated
    decay. The optimizer's row says which of them it has.

    Args:
        optimizer: one that `row_of_optimizer` accepts.
        old: settings of the steps so far.
        new: settings of the steps to come.
        share: noise share of the second moment at the old batch, in [0, 1].
    """
    if new.batch == old.batch:
        return
    row = row_of_optimizer(optimizer)
    change = StateChange(new.batch / old.batch, share, (old.momentum, new.momentum), (old.betas[1], new.betas[1]))
    for key, factor in state_factors(row, change).items():
        if factor != 1:
            _multiply(optimizer, key, factor)


def _multiply(optimizer: torch.optim.Optimizer, key: str, factor: float) -> None:
    tensors = []
    for state in optimizer.state.values():
        value: Any = state.get(key)
        if isinstance(value, Tensor):
            tensors.append(value)
        elif value is not None:
            state[key] = value * factor
    if tensors:
        torch._foreach_mul_(tensors, factor)
    for group in optimizer.param_groups:
        if key in group:  # layer-wise optimizers count steps there
            group[key] *= factor
