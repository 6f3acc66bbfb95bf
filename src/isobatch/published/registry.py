"""The registry: figures by name, a recipe from any of their batches, and how far the others lie from its plan."""

import difflib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.rules import optimizer_row

_BACKBONE = "backbone"
_DECAYS = ("momentum", "beta1", "beta2", "ema")
_READ: dict[str, Callable[[Recipe], float | None]] = {
    "lr": lambda r: r.optimizer.lr,
    "momentum": lambda r: r.optimizer.momentum,
    "beta1": lambda r: r.optimizer.betas[0],
    "beta2": lambda r: r.optimizer.betas[1],
    "eps": lambda r: r.optimizer.eps,
    "weight_decay": lambda r: r.optimizer.weight_decay,
    "clip": lambda r: r.optimizer.clip,
    "backbone_lr": lambda r: next(g.lr for g in r.groups if g.name == _BACKBONE),
    "ema": lambda r: None if r.ema is None else r.average_decay,
}
_KEYS = {"backbone_lr": f"groups.{_BACKBONE}.lr", "ema": "ema.decay", "ema_tau": "ema.ramp.tau",
         "warmup": "spans.warmup", "beta1": "optimizer.betas[0]", "beta2": "optimizer.betas[1]"}  # fmt: skip
_SOMETIMES = ("ema",)
"""What an optimizer does without, so that it is missing only where other batches of the same authors state it."""
_ORDER = (*_READ, "ema_tau", "warmup")


@dataclass(frozen=True)
class Gap:
    """One number of the authors beside the plan's.

    Args:
        batch: of the authors' own point.
        key: of the recipe; spans are in samples.
        plan: what the plan says there.
        authors: what the authors chose.
        ratio: plan over authors; of decays the ratio of their half-lives; None where one of them is 0.
    """

    batch: int
    key: str
    plan: float
    authors: float
    ratio: float | None


@dataclass(frozen=True)
class Published:
    """What authors chose at each of their batches.

    Args:
        name: in the registry.
        title: for a page.
        optimizer: as a recipe calls it.
        points: batch -> its numbers (lr, momentum, beta1, beta2, eps, weight_decay, clip, ema, backbone_lr; warmup and
            ema_tau in samples).
        source: repository, commit and path.
        critical: B_crit with its 95% interval, fitted from the same runs (docs/evidence.md); None where there is none.
    """

    name: str
    title: str
    optimizer: str
    points: dict[int, dict[str, float]]
    source: str
    critical: tuple[float, float, float] | None = None

    @property
    def assumed(self) -> tuple[str, ...]:
        """What the source does not say of the optimizer at some batch: the recipe's own is taken, and not compared."""
        row = optimizer_row(self.optimizer)
        moments = [key for name in row.moments for key in (("beta1", "beta2") if name == "betas" else (name,))]
        found = []
        for key in (*moments, *(("eps",) if row.adaptive else ()), "weight_decay", "clip", *_SOMETIMES):
            silent = [batch for batch, told in self.points.items() if key not in told]
            if not silent or (key in _SOMETIMES and len(silent) == len(self.points)):
                continue
            value = _READ[key](self.recipe(silent[0])) if key in _READ else None
            taken = "none" if not value else f"{value:g}"
            where = "" if len(silent) == len(self.points) else f" at {', '.join(map(str, silent))}"
            found.append(f"{key}{where}; {taken} taken, not compared")
        return tuple(found)

    def nearest(self, batch: int) -> int:
        """Return the authors' batch that lies nearest by ratio.

        Args:
            batch: asked for, positive.

        Returns:
            One of `points`; the smaller of two that are as near.

        Raises:
            InputError: a batch that is not positive.

        Example:
            >>> load("llama31-8b").nearest(512)
            128
        """
        if batch < 1:
            raise InputError(f"batch size={batch} must be at least 1")
        return min(self.points, key=lambda own: (abs(math.log(own / batch)), own))

    def recipe(self, batch: int) -> Recipe:
        """Return the recipe of one of the authors' points.

        Args:
            batch: one of `points`.

        Returns:
            The recipe; it states no length, and the warm-up is a named span.

        Raises:
            InputError: a batch that the authors did not publish.

        Example:
            >>> load("llama31-8b").recipe(16).at(64).recipe.optimizer.lr
            0.0008
        """
        if batch not in self.points:
            known = ", ".join(str(own) for own in self.points)
            raise InputError(f"{self.name} has no batch {batch}; its authors' are {known}")
        at = self.points[batch]
        optimizer: dict[str, Any] = {"name": self.optimizer}
        optimizer |= {key: at[key] for key in ("lr", "momentum", "eps", "weight_decay", "clip") if at.get(key)}
        if "beta1" in at or "beta2" in at:
            optimizer["betas"] = [at.get("beta1", 0.9), at.get("beta2", 0.999)]
        data: dict[str, Any] = {"batch": {"size": batch}, "optimizer": optimizer}
        if at.get("warmup"):
            data["spans"] = {"warmup": f"{at['warmup']:.0f} samples"}
        if "backbone_lr" in at:
            data["groups"] = [{"name": _BACKBONE, "match": _BACKBONE, "lr": at["backbone_lr"]}]
        if "ema" in at:
            average: dict[str, Any] = {"decay": at["ema"]}
            if "ema_tau" in at:
                average["ramp"] = {"by": "exp", "tau": f"{at['ema_tau']:.0f} samples"}
            data["ema"] = average
        if self.critical is not None:
            value, low, high = self.critical
            told = {"batch": value, "low": low, "high": high, "goal": self.title, "source": "docs/evidence.md"}
            data["critical"] = told
        return Recipe.parse(data)

    def gaps(self, batch: int, **how: Any) -> tuple[Gap, ...]:
        """Return how far the authors' other points lie from the plan that starts at one of them.

        Args:
            batch: one of `points`, where the plan starts.
            **how: as for `Recipe.at`: noise_scale, optimizer, rule, goal.

        Returns:
            A row for each other batch and number that both points state.

        Raises:
            InputError: a batch that the authors did not publish.

        Example:
            >>> [(g.batch, round(g.ratio, 2)) for g in load("llama31-8b").gaps(16) if g.key == "optimizer.lr"]
            [(32, 0.71), (64, 1.0), (96, 0.98), (128, 0.57)]
        """
        start, recipe = self.points.get(batch, {}), self.recipe(batch)
        found = []
        for other, numbers in self.points.items():
            planned = recipe.at(other, **how).recipe if other != batch else recipe
            for key in () if other == batch else sorted(numbers.keys() & start.keys(), key=_ORDER.index):
                plan = start[key] if key not in _READ else _READ[key](planned)
                if plan is not None:
                    name, theirs = _KEYS.get(key, f"optimizer.{key}"), numbers[key]
                    found.append(Gap(other, name, plan, theirs, _ratio(key, plan, theirs)))
        return tuple(found)


def _ratio(key: str, plan: float, authors: float) -> float | None:
    if plan <= 0 or authors <= 0:
        return None
    return math.log(authors) / math.log(plan) if key in _DECAYS else plan / authors


@cache
def _registry() -> dict[str, Published]:
    found = {}
    for entry in json.loads(files("isobatch.published").joinpath("figures.json").read_text("utf-8")):
        same = entry["same"]
        points = {p["batch"]: same | {k: v for k, v in p.items() if k != "batch"} for p in entry["points"]}
        critical = tuple(entry["critical"]) if "critical" in entry else None
        told = (entry["name"], entry["title"], entry["optimizer"], points, entry["source"])
        found[entry["name"]] = Published(*told, critical)
    return found


def names() -> tuple[str, ...]:
    """Return the names of the registry.

    Returns:
        Names for `load` and for `isobatch plan --like`.

    Example:
        >>> "llama31-8b" in names()
        True
    """
    return tuple(_registry())


def load(name: str) -> Published:
    """Return published settings by name.

    Args:
        name: one of `names()`.

    Returns:
        The settings with their source.

    Raises:
        InputError: a name that is not known; the nearest known ones are named.

    Example:
        >>> load("llama31-8b").title
        'Llama 3.1 8B, MLPerf 6.1'
    """
    registry = _registry()
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        raise InputError(f"{name!r} is not a published recipe{hint} Known: {', '.join(registry)}")
    return registry[name]
