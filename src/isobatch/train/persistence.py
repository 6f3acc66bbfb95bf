"""What of a run is kept in a checkpoint, and how it is taken up again."""

import hashlib
import random
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from isobatch.checkpoint import (
    Checkpoints,
    load_model,
    load_optimizer,
    model_state,
    optimizer_state,
    placed,
    rng_state,
    set_rng_state,
)
from isobatch.errors import InputError, warn
from isobatch.gradients import canonical
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.tasks.stream import Stream
from isobatch.train.loop import Trainer

_COUNTERS = ("seen", "drawn", "steps", "skipped", "skipped_in_a_row", "noise_share", "last_batch")


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Return a run's state at a step boundary: tensors and plain values, all by name.

    Ranks hold the same weights, so the first one stores them and the others only their own random numbers. Where the
    weights are sharded, every rank stores its part, and what is not sharded counts as the first one has it.

    Args:
        trainer: between two steps.

    Returns:
        The state; its tensors are the run's own, not copies.
    """
    own = {"rng": rng_state(), "world": trainer.world.size}
    if trainer.passes is not None:
        own["turns"] = trainer.passes.state_dict()
    model = trainer.run.model
    if trainer.world.rank > 0 and not trainer.world.shards:
        return own
    state = {
        **own,
        "clock": {name: getattr(trainer, name) for name in _COUNTERS},
        "model": model_state(model),
        "optimizer": optimizer_state(trainer.optimizer, model),
    }
    if trainer.average is not None:
        state["average"] = trainer.average.state_dict()
    if trainer.run.needs is not None and trainer.run.needs.means:
        state["means"] = {name: mean.state_dict() for name, mean in trainer.run.needs.means.items()}
    if isinstance(trainer.run.samples, Stream):
        state["stream"] = trainer.run.samples.state_dict()
    if trainer.search is not None:
        state["search"] = trainer.search.state_dict()
    if trainer.monitor is not None:
        state["noise"] = trainer.monitor.state_dict()
    return state


def restore(trainer: Trainer, state: dict[str, Any], own: dict[str, Any] | None = None) -> None:
    """Take up a run where its state was stored; batch and world size may have changed since.

    Args:
        trainer: a fresh one for the same recipe.
        state: what `state_of` gave on the first rank.
        own: what it gave on this rank, where the world is the same; None starts this rank's random numbers anew.

    Raises:
        InputError: other names or shapes, or an average on one side only.
    """
    stored = state.get("average")
    if (stored is None) != (trainer.average is None):
        has, lacks = ("checkpoint", "recipe") if stored is not None else ("recipe", "checkpoint")
        raise InputError(f"the {has} has a weight average and the {lacks} has none; make [ema] agree")
    load_model(trainer.run.model, state["model"])
    load_optimizer(trainer.optimizer, trainer.run.model, state["optimizer"])
    if trainer.average is not None:
        trainer.average.load_state_dict(placed(stored, trainer.average.state_dict()))
    if trainer.search is not None:
        trainer.search.load_state_dict(state["search"])
    means = trainer.run.needs.means if trainer.run.needs is not None else {}
    if means.keys() != state.get("means", {}).keys():
        raise InputError(f"the checkpoint has running means {sorted(state.get('means', {}))}, the task {sorted(means)}")
    for name, mean in means.items():
        mean.load_state_dict(state["means"][name])
    if isinstance(trainer.run.samples, Stream):
        trainer.run.samples.load_state_dict(state["stream"])
    if trainer.monitor is not None:
        noise = state["noise" if "noise" in state else "follower"]
        trainer.monitor.load_state_dict(placed(noise, _pairs(trainer)), same_world=own is not None)
    if trainer.passes is not None:
        trainer.passes.load_state_dict((own or state)["turns"], same_world=own is not None)
    for name in _COUNTERS:
        setattr(trainer, name, state["clock"][name])
    if isinstance(trainer.optimizer, InvariantOptimizer):
        trainer.optimizer.discard()
    if own is not None:
        set_rng_state(_of_these_gpus(own["rng"]))
    else:
        seed_rng(trainer.order.seed, trainer.world.rank, trainer.seen)


def _of_these_gpus(rng: dict[str, Any]) -> dict[str, Any]:
    """Return random states for the GPUs that are here: a job may be queued again on a machine with more, or fewer."""
    stored, here = rng["cuda"], torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    if len(stored) != len(here):
        warn(f"the checkpoint has random numbers of {len(stored)} GPUs, and {len(here)} are here: the first ones go on")
    return {**rng, "cuda": [*stored[: len(here)], *here[len(stored) :]]}


def _pairs(trainer: Trainer) -> dict[str, Any]:
    """Return where a kept gradient goes: it lies over ranks as its parameter does."""
    named = trainer.run.model.named_parameters()
    return {"noise": {"tensors": {f"pair/{canonical(name)}": parameter for name, parameter in named}}}


def seed_rng(*words: int) -> None:
    """Start the global generators of Python, numpy and torch anew; equal words give equal streams, others unlike ones.

    Args:
        *words: what the streams depend on, such as seeds, rank and samples seen.
    """
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "big"))  # noqa: NPY002 - the generator that data sets use
    torch.manual_seed(int.from_bytes(digest[4:12], "big"))


Points = list[dict[str, dict[str, float]]]
"""What was measured at each stop so far: model -> metric -> value."""


class Unfinished:
    """Checkpoints of one run at its stops; a run taken up there equals the uninterrupted one bit for bit.

    Args:
        folder: of this run alone.
        trainer: at its start.

    Raises:
        InputError: another process trains this run.
    """

    def __init__(self, folder: Path, trainer: Trainer):
        self.trainer = trainer
        self.store = Checkpoints(folder, allow_nonfinite=("*",))  # what a lost run is, the comparison says

    def __enter__(self) -> Self:
        self.store.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)

    def take_up(self) -> tuple[Points, float]:
        """Set the trainer to the last stop that was kept.

        Returns:
            What was measured up to there and the seconds that it took; nothing and 0 at the start of a run, where the
            data are not those of the checkpoint, and where every checkpoint is damaged.
        """
        try:
            newest = self.store.latest(fallback=True)
        except InputError as error:
            warn(f"a run is trained from its start again: {error}")
            newest = None
        if newest is None:
            return [], 0.0
        found = self.store.load(newest)
        if found.meta["about"] != self._about():
            return [], 0.0
        restore(self.trainer, found.state, found.state)
        return found.meta["points"], float(found.meta["seconds"])

    def save(self, points: Points, seconds: float) -> None:
        """Keep the run as it stands.

        Args:
            points: what was measured so far.
            seconds: that it took.
        """
        about = {"about": self._about(), "points": points, "seconds": seconds}
        self.store.save(state_of(self.trainer), seen=self.trainer.seen, meta=about)

    def _about(self) -> dict[str, object]:
        facts = {str(name): str(value) for name, value in (self.trainer.run.facts or {}).items()}
        return {"order": self.trainer.order.fingerprint, "facts": facts}
