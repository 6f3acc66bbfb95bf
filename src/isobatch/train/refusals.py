"""What a recipe can say and a plan can move, but the loop does not do: refused by name before the first step."""

from collections.abc import Iterator

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.recipe import MOVED


def check_trainable(recipe: Recipe) -> None:
    """Refuse a recipe that the loop would train as another one.

    Args:
        recipe: the recipe.

    Raises:
        InputError: something that can be planned but not trained; its key and the way out.
    """
    for key, way in _found(recipe):
        raise InputError(f"{key} can be planned but not trained by this loop; {way}")


def _found(recipe: Recipe) -> Iterator[tuple[str, str]]:
    o, batch, ema = recipe.optimizer, recipe.batch, recipe.ema
    if o.clip_by == "module":
        yield 'optimizer.clip_by = "module"', 'use "norm" or "value", or your own loop'
    if o.eps_inside or any(group.eps_inside for group in recipe.groups):
        yield "optimizer.eps_inside", "torch's optimizers add eps outside the root; remove it, or use your own loop"
    if batch.reduction != "mean":
        lr = f"the mean's: lr = {o.lr * batch.size:g} for sgd"
        yield f'batch.reduction = "{batch.reduction}"', f"the loop takes the mean; write the recipe by {lr}"
    if recipe.batch_norm is not None and recipe.batch_norm.synchronised and batch.devices > 1:
        yield "batch_norm.synchronised", "the loop's batch norm sees the samples of one pass; set batch.devices = 1"
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
