"""Pairs of processes: the first half of the ranks train, each beside one that makes its directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from isobatch.augment.concurrently import OtherProcess, serve
from isobatch.data import SampleOrder
from isobatch.errors import InputError
from isobatch.train.directions import Directions, positions
from isobatch.train.forward_passes import ForwardPasses
from isobatch.train.world import Device, World

if TYPE_CHECKING:
    from torch import Tensor

    from isobatch.plan import Recipe
    from isobatch.tasks import Run
    from isobatch.train.loop import Trainer


@dataclass(frozen=True)
class Pair:
    """This process's part in a job of pairs.

    Args:
        world: the half that trains; the helper of a rank sees the world as that rank does.
        peer: rank of the other process of the pair.
        helps: whether this one only makes directions.
    """

    world: World
    peer: int
    helps: bool

    @classmethod
    def current(cls) -> Pair:
        """Return the part that the rank of the default group has; every rank must call it.

        Returns:
            The part.

        Raises:
            InputError: no process group, or an odd number of ranks.
        """
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if ranks % 2:
            raise InputError(f"{ranks} processes do not make pairs; start an even number, with torch.distributed")
        half, rank = ranks // 2, dist.get_rank()
        group = dist.new_group(list(range(half)))
        helps = rank >= half
        return cls(World(rank % half, half, None if helps else group), (rank + half) % ranks, helps)


def helped(trainer: Trainer, pair: Pair) -> OtherProcess:
    """Let the other process of the pair make the directions of a trainer from now on.

    Args:
        trainer: in the world of the pair, its recipe with [adversary].
        pair: of a process that trains.

    Returns:
        What carries weights and directions; close it when the run is over.

    Raises:
        InputError: a recipe without [adversary].
    """
    passes, own = _adversarial(trainer.passes)
    inputs = own.first_inputs()
    like = inputs if own.adversary.form == "l2" else torch.zeros(inputs.shape, dtype=torch.int8)
    carrier = OtherProcess(
        trainer.run.model, pair.peer, like, lambda segment: len(positions(segment, pair.world)), lambda: own.most
    )
    passes.ahead_by(carrier)
    return carrier


def help_out(run: Run, recipe: Recipe, pair: Pair, *, order_seed: int = 0, device: Device | None = None) -> int:
    """Make directions for the other process of the pair until it is done; nothing is trained here.

    Args:
        run: of the same task and seed as in the other process.
        recipe: the same.
        pair: of a process that helps.
        order_seed: the same.
        device: where the directions are made.

    Returns:
        Requests answered.

    Raises:
        InputError: a recipe without [adversary].
    """
    order, place = SampleOrder(len(run.samples), order_seed), device or Device()
    place.place(run)
    _, own = _adversarial(ForwardPasses(run, recipe, order, pair.world, place))

    def make(segment: tuple[int, int], most: int) -> Tensor:
        own.most = most
        return own.make(segment).cpu()

    return serve(run.model, pair.peer, make)


def _adversarial(passes: ForwardPasses | None) -> tuple[ForwardPasses, Directions]:
    if passes is None or passes.prepared is None:
        raise InputError("the recipe has no [adversary]; there is nothing to make ahead")
    return passes, passes.directions
