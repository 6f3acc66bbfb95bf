"""Adversarial directions for the batches ahead: this rank's part of each, made by the present weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from isobatch.augment.batch_augmentation import BatchAugmentation
from isobatch.augment.concurrent_adversarial import directions
from isobatch.augment.concurrently import DirectionProvider
from isobatch.augment.draws import Draws
from isobatch.augment.views import inputs_of
from isobatch.curves import Staircase
from isobatch.data import shard

if TYPE_CHECKING:
    from torch import Tensor

    from isobatch.augment.concurrently import Pending
    from isobatch.data import SampleOrder
    from isobatch.plan import Adversary, Recipe
    from isobatch.tasks import Run
    from isobatch.train.world import Device, World

Segment = tuple[int, int]


class Directions(DirectionProvider):
    """Make the directions of a global batch that lies ahead, as (first position, samples).

    The pass sees the same views, in chunks of the same size, as the update will.

    Args:
        run: the task; the present weights of its model make the directions.
        adversary: form and seed.
        order: of the samples.
        world: the processes of the job.
        device: where passes run.
        views: the recipe's views; an adversary moves the first one of each sample.
    """

    def __init__(
        self,
        run: Run,
        adversary: Adversary,
        order: SampleOrder,
        world: World,
        device: Device,
        views: BatchAugmentation | None = None,
    ):
        self.run, self.adversary, self.order, self.world, self.device = run, adversary, order, world, device
        self.views = None if views is None else BatchAugmentation(views.view, 1, "one", views.seed)
        self.most = 1

    def __call__(self, segment: Segment) -> Pending:
        """Make the directions at once, in this process.

        Args:
            segment: first position and samples of the global batch.

        Returns:
            A function that returns them.
        """
        made = self.make(segment)
        return lambda: made

    def settle(self) -> None:
        """Nothing to wait for: they are made at once."""

    def make(self, segment: Segment) -> Tensor:
        """Return this rank's directions.

        Args:
            segment: first position and samples of the global batch.

        Returns:
            One row a sample of this rank, and one row for a rank without samples.
        """
        model, made = self.run.model, []
        training = model.training
        model.train()
        try:
            for places in positions(segment, self.world).split(self.most):
                samples = self.run.samples[self.order.indices(int(places[0]), len(places))]
                batch = self.first_views(self.device.batch(samples), places)
                draws = Draws(self.adversary.seed, places)
                made.append(directions(self.run.loss, model, batch, self.adversary.form, draws))
        finally:
            model.train(training)
        return torch.cat(made)

    def first_inputs(self) -> Tensor:
        """Return the inputs of the first sample, for their shape and type."""
        return inputs_of(self.run.samples[torch.zeros(1, dtype=torch.int64)])

    def first_views(self, batch: Any, places: Tensor) -> Any:
        """Return a batch in the views that the adversary moves.

        Args:
            batch: samples.
            places: their positions in the order.

        Returns:
            The batch.
        """
        return batch if self.views is None else self.views.rows(batch, places, 0)


def positions(segment: Segment, world: World) -> Tensor:
    """Return this rank's positions of a global batch; the first one of all for a rank without samples.

    Args:
        segment: first position and samples.
        world: the processes of the job.

    Returns:
        int64 tensor, never empty.
    """
    first, size = segment
    mine, _ = shard(torch.arange(first, first + size), world.rank, world.size)
    return mine if len(mine) else torch.tensor([first])


def eps_schedule(recipe: Recipe, adversary: Adversary) -> Staircase:
    """Return the factor on eps as a function of samples.

    Args:
        recipe: whose length it spans.
        adversary: warm-up, shape and final share.

    Returns:
        The staircase, of the recipe's own stairs.

    Raises:
        InputError: a warm-up longer than the run.
    """
    stairs = recipe.staircase()
    return Staircase(
        length=stairs.length,
        warmup=recipe.samples(adversary.warmup, "adversary.warmup"),
        shape=adversary.shape,
        final=adversary.final,
        stair=stairs.stair,
    )
