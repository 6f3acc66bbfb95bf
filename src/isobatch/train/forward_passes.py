"""What goes through the model in one step: samples as they are, views of them, adversarial twins beside them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from isobatch.augment import BatchAugmentation, ViewAverage, find_view, two_norms
from isobatch.augment.concurrent_adversarial import perturbed
from isobatch.augment.look_ahead import Prepared
from isobatch.augment.norms import adversarial_rows
from isobatch.augment.views import inputs_of
from isobatch.data import shard_sizes
from isobatch.errors import InputError
from isobatch.plan import row_of
from isobatch.train.directions import Directions, eps_schedule, positions
from isobatch.train.gradient import PLAIN, Accumulator, ForwardPass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from isobatch.augment.concurrently import DirectionProvider
    from isobatch.data import SampleOrder
    from isobatch.plan import Recipe
    from isobatch.tasks import Run
    from isobatch.train.world import Device, World


class ForwardPasses:
    """The passes of a recipe with [augment] or [adversary], and their state.

    Args:
        run: the task; its batch norms are doubled in place where the recipe asks for two.
        recipe: its [augment] and [adversary].
        order: of the samples, for the batches ahead.
        world: the processes of the job.
        device: where passes run.

    Raises:
        InputError: parts that do not go together, an unknown view, or a model without the batch norms asked for.
    """

    def __init__(self, run: Run, recipe: Recipe, order: SampleOrder, world: World, device: Device):
        self.run, self.recipe, self.order, self.world, self.device = run, recipe, order, world, device
        _check(run, recipe)
        part, adversary = recipe.augment, recipe.adversary
        self.views: BatchAugmentation | None = None
        if part is not None:
            self.views = BatchAugmentation(find_view(part.view), part.views, part.passes, part.seed)
        self.every = recipe.samples(part.adjust_norm, "augment.adjust_norm") if part and part.adjust_norm else 0.0
        if part and part.adjust_norm and not self.every > 0:
            raise InputError(f'augment.adjust_norm="{part.adjust_norm}" must be positive; remove it to adjust nothing')
        self.factor, self.measured = 1.0, -1
        self._fresh = (self.factor, self.measured)
        self.prepared: Prepared | None = None
        self.provider: DirectionProvider | None = None
        if adversary is not None:
            if adversary.norms == "two":
                two_norms(run.model)
            self.directions = self.provider = Directions(run, adversary, order, world, device, self.views)
            self.prepared = Prepared(self.provider, adversary.tau)
            self.eps = eps_schedule(recipe, adversary)
        self.places = torch.zeros(0, dtype=torch.int64)

    def ahead_by(self, provider: DirectionProvider) -> None:
        """Have the directions of the batches ahead made elsewhere: by another process, on another stream.

        Args:
            provider: asked for a (first position, samples) of a global batch, it owes this rank's directions.

        Raises:
            InputError: a recipe without [adversary].
        """
        if self.prepared is None:
            raise InputError("the recipe has no [adversary]; there is nothing to make ahead")
        self.provider = provider
        self.prepared = Prepared(provider, self.prepared.tau)

    def begin(self, gradient: Accumulator, drawn: int, size: int, seen: int, most: int) -> None:
        """Prepare a step: this rank's places in the order, its directions, and the passes that its samples take.

        Args:
            gradient: is told of the passes.
            drawn: position of the global batch.
            size: samples of it.
            seen: samples of applied updates.
            most: samples of one pass.
        """
        most = min(most, gradient.limit or most)
        self.places = positions((drawn, size), self.world)
        passes, adversary = self._views(), self.recipe.adversary
        if adversary is not None and self.prepared is not None:
            clean, other = adversary.weights
            self.directions.most = most
            moves = self.prepared.take([(drawn + place * size, size) for place in range(adversary.tau + 1)])
            moved = partial(self._moved, moves, adversary.eps * self.eps.mean(seen, seen + size), adversary.bounds)
            passes = [ForwardPass(clean * one.weight, one.batch) for one in passes]
            passes.append(ForwardPass(other, moved, partial(adversarial_rows, self.run.model)))
        gradient.passes = passes
        self._fresh = (self.factor, self.measured)
        if self.views is not None and self.every and int(seen // self.every) != self.measured:
            ratio = norm_ratio(self.views, self.run, self._rows(most, size), self.world)
            self._fresh = (self.factor if ratio is None else ratio, int(seen // self.every))
        gradient.factor = self._fresh[0]

    def applied(self) -> None:
        """Keep what was measured for this step, which will be applied; wait for who still reads the weights."""
        self.factor, self.measured = self._fresh
        if self.provider is not None:
            self.provider.settle()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics of predictions averaged over views; empty where the recipe does not ask for them."""
        part, run = self.recipe.augment, self.run
        if part is None or part.evaluate == 0 or self.views is None:
            return {}
        averaged = ViewAverage(run.model, self.views.view, part.evaluate, seed=part.seed)
        return {f"raw, {part.evaluate} views": replace(run, model=averaged).evaluate()}

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: the factor of the gradient, and what is held for the batches ahead."""
        held = None if self.prepared is None else self.prepared.state_dict()
        return {"factor": self.factor, "measured": self.measured, "prepared": held}

    def load_state_dict(self, state: dict[str, Any], *, same_world: bool) -> None:
        """Restore a state; in another world the batches ahead are made anew.

        Args:
            state: from `state_dict`.
            same_world: whether this rank has its own part back.

        Raises:
            InputError: a state of another tau.
        """
        self.factor, self.measured = state["factor"], state["measured"]
        if self.prepared is not None:
            self.prepared.clear()
            if same_world:
                self.prepared.load_state_dict(state["prepared"])

    def _views(self) -> list[ForwardPass]:
        if self.views is None:
            return list(PLAIN)
        count = self.views.count
        return [ForwardPass(1 / count, partial(self._viewed, self.views, number)) for number in range(count)]

    def _viewed(self, views: BatchAugmentation, number: int, batch: Any, start: int) -> Any:
        return views.rows(batch, self.places[start : start + len(inputs_of(batch))], number)

    def _moved(self, moves: Tensor, eps: float, bounds: tuple[float, float] | None, batch: Any, start: int) -> Any:
        rows = slice(start, start + len(inputs_of(batch)))
        return perturbed(self.directions.first_views(batch, self.places[rows]), moves[rows], eps, bounds)

    def _rows(self, most: int, size: int) -> list[tuple[Any, Tensor, float]]:
        """Return this rank's micro-batches: samples, their places, and their share of the global batch."""
        mine = shard_sizes(size, self.world.size)[self.world.rank] > 0
        found = []
        for places in self.places.split(most):
            samples = self.run.samples[self.order.indices(int(places[0]), len(places))]
            found.append((self.device.batch(samples), places, len(places) / size if mine else 0.0))
        return found


def _check(run: Run, recipe: Recipe) -> None:
    """Refuse what takes each pass for independent samples, or asks to see each sample once."""
    adversary, part = recipe.adversary, recipe.augment
    several = adversary is not None or (part is not None and part.passes == "copies" and part.views > 1)
    way = 'augment.passes = "one"' if adversary is None else "one without [adversary]"
    if several and row_of(recipe).invariant:
        raise InputError(
            f"optimizer.name={recipe.optimizer.name!r} measures its second moment on passes of independent samples; "
            f"here the same samples pass several times; use {way}, or an optimizer that is not invariant"
        )
    if several and (recipe.noise is not None or recipe.batch.adaptive is not None):
        raise InputError(
            "the noise scale is measured on passes of independent samples; here the same samples pass several times; "
            f"use {way}, or remove [noise] and batch.adaptive"
        )
    if run.needs is not None:
        raise InputError("a loss with a teacher or the clock sees each sample once; remove [augment] and [adversary]")


def norm_ratio(
    views: BatchAugmentation, run: Run, rows: Sequence[tuple[Any, Tensor, float]], world: World
) -> float | None:
    r"""Return mean_j |g_j| / |mean_j g_j|, g_j the gradient of the global batch in its j-th view; at least 1.

    It costs M passes forward and backward; `.grad`, buffers and random numbers stay as they are.

    Args:
        views: M views.
        run: model and loss.
        rows: this rank's micro-batches: samples, their places in the order, and their share of the global batch.
        world: the processes of the job.

    Returns:
        The ratio, None where a gradient is not finite or all are zero.

    References:
        arXiv 1901.09335 (--adapt-grad-norm of the official code).
    """
    apart = replace(views, passes="copies")
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    kept = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    norms, total = 0.0, torch.zeros(())
    with torch.random.fork_rng(devices=[]):
        for number in range(views.views):
            mine = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
            for samples, places, share in rows:
                loss = run.loss(run.model, apart.rows(samples, places, number))
                found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                mine += share * torch.cat([g.flatten() for g in found]).double()
            if world.size > 1:
                torch.distributed.all_reduce(mine, group=world.group)
            norms += float(mine.norm()) / views.views
            total = total + mine
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
    mean = float(total.norm()) / views.views
    return norms / mean if mean > 0 and math.isfinite(norms / mean) else None
