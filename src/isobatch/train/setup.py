"""What a recipe builds: its optimizer, its average, and the numbers of a step written into the optimizer."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isobatch.average import ModelEMA
from isobatch.control import BatchSchedule
from isobatch.data import Drawing, SampleOrder
from isobatch.errors import InputError
from isobatch.gradients import ALONE
from isobatch.optimizers import build, prepare_settings
from isobatch.plan import Recipe, Search, Settings, coupling_of, row_of
from isobatch.recipe import MOVED
from isobatch.rules import OPTIMIZERS, OptimizerRow, StateChange, state_factors
from isobatch.rules.optimizers import row_of_class, trained
from isobatch.tasks import Run
from isobatch.train.rate_search import RateSearch, copy_of, put_back
from isobatch.train.world import World
from isobatch.units import whole


def prepare_groups(optimizer: torch.optim.Optimizer, recipe: Recipe, settings: Settings) -> list[dict[str, Any]]:
    """Return the numbers that steps of one batch write into the optimizer's groups, for `write_prepared`.

    Args:
        optimizer: the recipe's optimizer.
        recipe: names the optimizer, whose row says which numbers its groups hold.
        settings: numbers at the batch of the steps.

    Returns:
        Numbers by group, all but the learning rate.
    """
    return prepare_settings(optimizer, {key: getattr(settings, key) for key in row_of(recipe).keys if key != "lr"})


def check_trainable(recipe: Recipe) -> None:
    """Refuse a recipe that the loop would train as another one.

    Args:
        recipe: the recipe.

    Raises:
        InputError: something that can be planned but not trained; its key and the way out.
    """
    for key, way in _untrained(recipe):
        raise InputError(f"{key} can be planned but not trained by this loop; {way}")


def _untrained(recipe: Recipe) -> Iterator[tuple[str, str]]:
    o, batch, ema = recipe.optimizer, recipe.batch, recipe.ema
    if o.clip_by == "module":
        yield 'optimizer.clip_by = "module"', 'use "norm" or "value", or your own loop'
    if o.eps_inside or any(group.eps_inside for group in recipe.groups):
        yield "optimizer.eps_inside", "torch's optimizers add eps outside the root; remove it, or use your own loop"
    if batch.summed:
        lr = f"the mean's: lr = {o.lr * batch.size:g} for sgd"
        yield f'batch.reduction = "{batch.reduction}"', f"the loop takes the mean; write the recipe by {lr}"
    if recipe.batch_norm is not None and recipe.batch_norm.synchronised and batch.devices > 1:
        yield "batch_norm.synchronised", "the loop's batch norm sees the samples of one pass; set batch.devices = 1"
    for part in ("augment", "adversary"):
        if batch.unit == "tokens" and getattr(recipe, part) is not None:
            yield f'[{part}] beside batch.unit = "tokens"', "views and adversaries count samples; remove one of them"
    for name in recipe.curves:
        if name not in ("lr", "ema"):
            way = "remove it" if name in MOVED else "read it in your task by recipe.curve(...) and leave it out here"
            yield f"curves.{name}", way
    for name in recipe.spans:
        yield f"spans.{name}", "the loop does nothing at a named span; make it an option of your task"
    for group in recipe.groups:
        yield f"groups.{group.name}", "remove it"
    if ema is not None and (ema.start is not None or ema.ramp is not None):
        yield "ema.start and ema.ramp", "remove them"
    if batch.schedule_lr == "keep":
        yield 'batch.schedule_lr = "keep"', "remove it"


def make_drawing(run: Run, recipe: Recipe, order: SampleOrder) -> Drawing:
    """Return the stream of a run's samples on the recipe's clock.

    Args:
        run: where the clock counts tokens, its lengths say those of each sample; batch.sequence for all otherwise.
        recipe: its batch.
        order: of the samples.

    Returns:
        The stream.

    Raises:
        InputError: samples whose tokens nobody says, another number of lengths than of samples, or a batch below the
            longest sample.
    """
    batch, count = recipe.batch, len(run.samples)
    if batch.unit == "samples":
        return Drawing(order)
    if run.lengths is None and batch.sequence is None:
        raise InputError(
            f"batch.unit = 'tokens', and nobody says how many tokens a sample of task {recipe.task!r} has; give "
            "batch.sequence, or Run(lengths=...) in the task"
        )
    lengths = torch.full((count,), batch.sequence or 1) if run.lengths is None else torch.as_tensor(run.lengths)
    if lengths.shape != (count,):
        raise InputError(f"Run(lengths=...) has shape {tuple(lengths.shape)}; give one for each of {count} samples")
    drawing = Drawing(order, lengths.to(torch.int64))
    if drawing.longest > batch.size:
        raise InputError(
            f"batch.size={batch.size} tokens is below the longest sample of task {recipe.task!r}, {drawing.longest}; "
            "raise it, or cut the samples"
        )
    return drawing


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
        model.parameters(),
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
    stair = recipe.staircase().stair
    return ModelEMA(model, half_life=recipe.half_life, batch_size=stair, kind=recipe.ema.kind, cadence=recipe.ema.every)


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
