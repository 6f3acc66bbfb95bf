"""View: a recipe's numbers by the short names that files are written back from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from isobatch.plan import Recipe

FIELDS = {
    "batch": "batch.size",
    "devices": "batch.devices",
    "micro": "batch.micro",
    "lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "beta1": "optimizer.betas[0]",
    "beta2": "optimizer.betas[1]",
    "alpha": "optimizer.alpha",
    "eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "clip": "optimizer.clip",
    "ema": "ema.decay",
    "ema_final": "ema.final",
    "batch_norm": "batch_norm.momentum",
    "length": "schedule.length",
    "warmup": "schedule.warmup",
}
"""Short name -> where the recipe holds it."""


class View:
    """A recipe as files see it.

    Args:
        recipe: the recipe.
        spans: samples of named spans at the batch that was read.
        base: the recipe that was read, whose spans these are; the recipe itself unless given.
    """

    def __init__(self, recipe: Recipe, spans: Mapping[str, float], base: Recipe | None = None):
        self.recipe, self._spans, self._base = recipe, spans, base or recipe

    @property
    def batch(self) -> int:
        """Samples (or tokens) per optimizer step."""
        return self.recipe.batch.size

    @property
    def devices(self) -> int:
        """Data-parallel devices."""
        return self.recipe.batch.devices

    @property
    def micro(self) -> int:
        """Samples per device and forward pass."""
        return self.recipe.batch.per_device

    @property
    def accumulation(self) -> int:
        """Passes of each device in one update."""
        return self.recipe.batch.accumulation

    def __getitem__(self, name: str) -> Any:
        """Return a number by its short name."""
        if name in ("batch", "devices", "micro", "accumulation"):
            return getattr(self, name)
        found: Any = self.recipe
        for part in FIELDS.get(name, name).replace("]", "").replace("[", ".").split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
            if found is None:
                break
        return found

    @property
    def kappa(self) -> float:
        """The batch by the one that was read."""
        return self.batch / self._base.batch.size

    def average(self, decay: float) -> float:
        """Return another decay of the same average, moved as the recipe's own was."""
        own, moved = self._base.ema, self.recipe.ema
        if own is None or moved is None or not own.decay or not moved.decay or own.decay == 1:
            return decay**self.kappa
        return decay ** (math.log(moved.decay) / math.log(own.decay))

    def samples(self, name: str) -> float:
        """Return a span in samples: what the recipe plans for length and warm-up, others kept."""
        schedule, base = self.recipe.schedule, self._base.schedule
        held = self._spans[name]
        if schedule is None or base is None:
            return held
        curve = self.recipe.curves.get("lr")
        if name == "warmup" and curve and curve[0].span is not None:
            return self.recipe.samples(curve[0].span, name)
        if name in ("length", "warmup"):
            return self.recipe.samples(getattr(schedule, name), name)
        stretch = self.recipe.samples(schedule.length, "length") / self._base.samples(base.length, "length")
        return held * stretch

    def steps(self, name: str) -> float:
        """Return a span in optimizer steps."""
        return self.samples(name) / self.batch
