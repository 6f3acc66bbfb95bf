"""Where a comparison's finished runs are kept: a folder each, and a note of the seeds that were judged before."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.report import prepare, read_result, write
from isobatch.verify.cells import recipe_values
from isobatch.verify.design import Design, Rule

_NAME = "comparison.json"
_JUDGED = "judged.json"


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
        task: hash of the file of a user's task, "" for a shipped one.
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
        """Name of the question, whatever the seeds that answer it."""
        asked = {name: value for name, value in self.values.items() if name not in ("looks", "seed_from", "more")}
        return _hash(asked)


def identity(design: Design, rule: Rule, optimizer: str | None, extra: Mapping[str, Recipe] | None) -> Identity:
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
        task=_source(design.recipe),
        more=_hash(arms) if arms else "",
    )


def open_folder(out: Path | None, which: Identity) -> Path:
    """Return the folder of a comparison, made and marked as its own.

    Args:
        out: as asked; None for one under the user's cache, named by the comparison.
        which: the comparison.

    Returns:
        The folder.

    Raises:
        InputError: it holds another comparison or another result, or cannot be written.
    """
    folder = prepare(cache() / "verify" / which.key if out is None else out)
    mark = folder / _NAME
    held = _read(mark)
    if held is None:
        if read_result(folder):
            raise InputError(f"{folder} holds another result; give another --out")
        write(mark, json.dumps(which.values, indent=1, sort_keys=True) + "\n")
        return folder
    if held != which.values:
        other = sorted(name for name in which.values if held.get(name) != which.values[name])
        told = ", ".join(_told(name, held.get(name), which.values[name]) for name in other)
        raise InputError(f"{folder} holds another comparison ({told}); give another --out")
    return folder


def cache() -> Path:
    """Return the folder for what may be made again: $ISOBATCH_CACHE, or isobatch under the user's cache.

    Returns:
        The folder, which need not exist.
    """
    named = os.environ.get("ISOBATCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "isobatch"


def judged_before(which: Identity) -> dict[str, Any] | None:
    """Return an earlier judgement of the same question that used some of the same seeds in another design.

    Args:
        which: the comparison about to be judged.

    Returns:
        Its seeds, verdict and number of shared seeds; None where there is none.
    """
    mine = _seeds(which)
    for one in _read(_ledger(which)) or []:
        shared = mine & set(range(one["seed_from"], one["seed_from"] + one["seeds"]))
        if shared and (one["looks"], one["seed_from"]) != (list(which.looks), which.seed_from):
            return {**one, "shared": len(shared)}
    return None


def note_judged(which: Identity, seeds: int, verdict: str) -> None:
    """Remember that seeds were judged, so that a second call does not reuse them silently.

    Args:
        which: the comparison.
        seeds: how many of its seeds were trained.
        verdict: of its plan.
    """
    path = _ledger(which)
    entry = {"looks": list(which.looks), "seed_from": which.seed_from, "seeds": seeds, "verdict": verdict}
    known = [
        one
        for one in _read(path) or []
        if (one.get("looks"), one.get("seed_from")) != (entry["looks"], entry["seed_from"])
    ]
    try:
        write(prepare(path.parent) / path.name, json.dumps([*known, entry]))
    except InputError:
        return  # a note that cannot be kept must not cost a verdict that was reached


def _seeds(which: Identity) -> set[int]:
    return set(range(which.seed_from, which.seed_from + which.looks[-1]))


def _ledger(which: Identity) -> Path:
    return cache() / "verify" / which.question / _JUDGED


def _source(recipe: Recipe) -> str:
    """Hash of the file of a user's task: what runs were trained by."""
    if recipe.task is None or ":" not in recipe.task:
        return ""
    try:
        found = importlib.util.find_spec(recipe.task.partition(":")[0])
        path = None if found is None or found.origin is None else Path(found.origin)
        return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except Exception:  # whatever the user's package does on import: making the run says it better
        return ""


def _told(name: str, held: Any, wanted: Any) -> str:
    if name == "recipe" and isinstance(held, dict):
        return "its recipe differs in " + ", ".join(k for k in sorted({*held, *wanted}) if held.get(k) != wanted.get(k))
    if name == "task":
        return "its task's file has changed since"
    return f"{name} {held} there, {wanted} here"


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
