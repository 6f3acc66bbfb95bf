"""Where a comparison's finished runs are kept: a folder each, and a note of the seeds that were judged before."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.installed import VERSION
from isobatch.plan import Recipe
from isobatch.report import prepare, write
from isobatch.tasks.sources import source_of
from isobatch.verify.cells import recipe_values
from isobatch.verify.design import Criteria, Design

_NAME = "comparison.json"
_JUDGED = "judged.json"
_REPORT = ("result.json", "report.html", "overlay.png", "mended.toml")
_RUNS = ("recipe", "batch_size", "optimizer", "device", "task")
"""What decides the runs of a comparison but for their seeds; the rest decides how they are judged."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides a comparison: another value is another comparison, with a folder of its own.

    Args:
        recipe: the reference, as plain values without defaults.
        batch_size: of the plan.
        optimizer: form that the plan takes, "" for the recipe's own.
        looks: numbers of seeds after which it may stop.
        seed_from: the first seed.
        metric: that is judged.
        margins: model -> margin instead of the fixed one.
        allow_failures: failed seeds that are allowed.
        device: where runs are trained.
        task: hash of the code of a user's task, "" for a shipped one.
        version: of isobatch, whose runs they are.
        more: hash of further arms, "" without.
    """

    recipe: dict[str, Any]
    batch_size: int
    optimizer: str
    looks: tuple[int, ...]
    seed_from: int
    metric: str
    margins: dict[str, float]
    allow_failures: int
    device: str
    task: str
    version: str
    more: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """As plain values, in the form in which JSON gives them back."""
        return json.loads(json.dumps(vars(self)))

    @property
    def key(self) -> str:
        """Name of the comparison."""
        return _hash(self.values)

    @property
    def question(self) -> str:
        """Name of the question, whatever the seeds that answer it and the margins they are judged by."""
        values = self.values
        return _hash({name: values[name] for name in _RUNS})


def identity(design: Design, rule: Criteria, optimizer: str | None, extra: Mapping[str, Recipe] | None) -> Identity:
    """Return what decides a comparison.

    Args:
        design: of the comparison.
        rule: that judges it.
        optimizer: form that the plan takes, None for the recipe's own.
        extra: further arms.

    Returns:
        The identity, with the hash of a user's task file.
    """
    arms = {name: recipe_values(arm) for name, arm in (extra or {}).items()}
    return Identity(
        recipe=recipe_values(design.recipe),
        batch_size=design.plan.recipe.batch.size,
        optimizer=optimizer or "",
        looks=design.looks.seeds,
        seed_from=design.seed_from,
        metric=rule.metric,
        margins=rule.margins,
        allow_failures=rule.allow_failures,
        device=design.device,
        task=source_of(design.recipe),
        version=VERSION,
        more=_hash(arms) if arms else "",
    )


def place(out: Path | None, which: Identity, *, chosen: bool = False) -> Path:
    """Return where a comparison is kept, without making it.

    Args:
        out: as asked; None for one under the user's cache, named by the comparison.
        which: the comparison.
        chosen: whether its number of seeds was chosen from a budget: the name is then the same for any number.

    Returns:
        The folder.
    """
    if out is not None:
        return out
    values = which.values
    return cache() / "verify" / (_hash({**values, "looks": "budget"}) if chosen else which.key)


def held_looks(folder: Path, which: Identity) -> tuple[int, ...] | None:
    """Return the looks of a folder that holds this comparison, whatever its number of seeds.

    Args:
        folder: where it is kept.
        which: the comparison; its looks do not count.

    Returns:
        Numbers of seeds, None where the folder holds no such comparison.
    """
    held, values = _read(folder / _NAME), which.values
    if not isinstance(held, dict) or not isinstance(held.get("looks"), list):
        return None
    return tuple(held["looks"]) if {**held, "looks": 0} == {**values, "looks": 0} else None


def open_folder(folder: Path, which: Identity, *, own: bool) -> Path:
    """Make the folder of a comparison, marked as its own.

    Args:
        folder: where it is to be kept.
        which: the comparison.
        own: whether the folder is named by the comparison, under the user's cache.

    Returns:
        The folder.

    Raises:
        InputError: it holds another comparison or another result, or cannot be written.
    """
    mark = prepare(folder) / _NAME
    held = _read(mark)
    if held is None or (own and held != which.values):
        found = [] if own else [name for name in _REPORT if (folder / name).exists()]
        if found:
            raise InputError(f"{folder} holds another result ({', '.join(found)}); give another --out")
        if mark.exists() and not own:
            raise InputError(f"{mark} cannot be read, so it may be of another comparison; give another --out")
        write(mark, json.dumps(which.values, indent=1, sort_keys=True) + "\n")
        return folder
    if held != which.values:
        known = held if isinstance(held, dict) else {}
        other = sorted(name for name in which.values if known.get(name) != which.values[name])
        told = ", ".join(_told(name, known.get(name), which.values[name]) for name in other)
        raise InputError(f"{folder} holds another comparison ({told}); give another --out")
    return folder


def cache() -> Path:
    """Return the folder for what may be made again: $ISOBATCH_CACHE, or isobatch under the user's cache.

    Returns:
        The folder, which need not exist.

    Raises:
        InputError: a user without a home.
    """
    named = os.environ.get("ISOBATCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "isobatch"
    except RuntimeError:
        raise InputError(
            "this user has no home to keep runs in: set ISOBATCH_CACHE to a folder, or give --out"
        ) from None


def runs_folder(kind: str, recipe: Recipe) -> Path:
    """Return where runs of a recipe are kept that nobody gave a folder to, under the user's cache.

    Args:
        kind: of the runs, such as "sweep".
        recipe: with the code of its task, what they are runs of.

    Returns:
        The folder, which need not exist.
    """
    values = {"recipe": recipe_values(recipe), "task": source_of(recipe), "version": VERSION}
    return cache() / kind / _hash(values)


def judged_before(which: Identity) -> dict[str, Any] | None:
    """Return an earlier judgement of the same runs in another design, or by another margin.

    Args:
        which: the comparison about to be judged.

    Returns:
        Its seeds, verdict and number of shared seeds; None where there is none.
    """
    mine = set(range(which.seed_from, which.seed_from + which.looks[-1]))
    for one in _judged(which):
        shared = mine & set(range(one["seed_from"], one["seed_from"] + one["seeds"]))
        if shared and one.get("key") != which.key:
            return {**one, "shared": len(shared)}
    return None


def note_judged(which: Identity, seeds: int, verdict: str) -> None:
    """Remember that seeds were judged, so that a second call does not reuse them silently.

    Args:
        which: the comparison.
        seeds: how many of its seeds were trained.
        verdict: of its plan.
    """
    entry = {"key": which.key, "seed_from": which.seed_from, "seeds": seeds, "verdict": verdict}
    known = [one for one in _judged(which) if one.get("key") != which.key]
    try:
        write(prepare(_ledger(which).parent) / _JUDGED, json.dumps([*known, entry]))
    except InputError:
        return  # a note that cannot be kept must not cost a verdict that was reached


def _judged(which: Identity) -> list[dict[str, Any]]:
    """Notes that can be read, whoever has been at the file."""
    try:
        notes = _read(_ledger(which))
    except InputError:
        return []
    kinds = {"seed_from": int, "seeds": int, "verdict": str}
    listed = notes if isinstance(notes, list) else []
    return [n for n in listed if isinstance(n, dict) and all(type(n.get(k)) is kind for k, kind in kinds.items())]


def _ledger(which: Identity) -> Path:
    return cache() / "verify" / which.question / _JUDGED


def _told(name: str, held: Any, wanted: Any) -> str:
    if name == "recipe" and isinstance(held, dict):
        return "its recipe differs in " + ", ".join(k for k in sorted({*held, *wanted}) if held.get(k) != wanted.get(k))
    if name == "task":
        return "the code of its task has changed since"
    return f"{name} {held} there, {wanted} here"


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
