"""A plan as a recipe file: the project's own TOML, which reads back to the planned numbers exactly."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.installed import VERSION
from isobatch.plan import Plan, Row, row_of
from isobatch.recipe import Part, Planned, toml_text
from isobatch.results import write
from isobatch.rules import OPTIMIZERS

NUMBERS = frozenset(key for row in OPTIMIZERS.values() for key in row.keys)
"""Numbers of the optimizer of which each has only some."""


def plan_toml(plan: Plan[Any], source: str = "") -> str:
    """Return the recipe of a plan as TOML, each number that moved beside what it was.

    Left out are settings that stand at their default, but for the optimizer's own numbers, and numbers that it does not
    have. `[planned]` says where the
    numbers came from, so that a plan of this file goes on from its batch.

    Args:
        plan: the plan.
        source: name of the file that was planned.

    Returns:
        TOML.
    """
    recipe = plan.recipe
    origin = f" from {source}" if source else ""
    head = f"# isobatch {VERSION}: planned{origin} for batch {recipe.batch.size}, kappa = {plan.kappa:g}\n"
    return head + toml_text(plan_values(plan), _notes(plan)) + "\n"


def plan_values(plan: Plan[Any]) -> dict[str, Any]:
    """Return the recipe of a plan as plain values, as `plan_toml` writes them.

    Args:
        plan: the plan.

    Returns:
        Tables of values.

    Example:
        >>> from isobatch.plan import Recipe
        >>> plan_values(Recipe.load("examples/digits.toml").at(128))["optimizer"]["lr"]
        0.32
    """
    recipe, was = plan.recipe, plan.kept.size
    always = [key for key in _rows(plan) if key.startswith("optimizer.")]
    values, has = _stated(recipe, always), row_of(recipe).keys
    values["optimizer"] = {key: value for key, value in values["optimizer"].items() if key in has or key not in NUMBERS}
    if recipe.planned is None and recipe.batch.size != was:
        values["planned"] = Planned(batches=(was, recipe.batch.size)).model_dump()
    return values


def write_plan(plan: Plan[Any], path: str | Path, *, source: str = "", overwrite: bool = False) -> Path:
    """Write the recipe of a plan to a TOML file, whole or not at all.

    Args:
        plan: the plan.
        path: the file, its name ending with .toml.
        source: name of the file that was planned.
        overwrite: whether a file that exists is replaced.

    Returns:
        The file.

    Raises:
        InputError: another ending, a file that exists, or a place that cannot be written.
    """
    file = Path(path)
    if file.suffix != ".toml":
        raise InputError(f"{file} is written as TOML; give a name that ends with .toml")
    write(file, plan_toml(plan, source), overwrite=overwrite)
    return file


def _rows(plan: Plan[Any]) -> dict[str, list[Row]]:
    """Return the rows of each key of the recipe; betas have two."""
    found: dict[str, list[Row]] = {}
    for row in plan.rows:
        found.setdefault(row.key.partition("[")[0], []).append(row)
    return found


def _notes(plan: Plan[Any]) -> dict[str, str]:
    """Return what stood in place of each value that the file states otherwise."""
    notes, places = {}, {group.name: str(place) for place, group in enumerate(plan.recipe.groups)}
    for key, rows in _rows(plan).items():
        table, _, rest = key.partition(".")
        if table == "groups":  # rows call a group by its name, the file by its place
            name, _, field = rest.partition(".")
            key = f"groups.{places.get(name, name)}.{field}"
        said = rows[0].said[0]
        if any(not row.kept for row in rows) or (said and said != _at(plan.recipe, key)):
            before = ", ".join(row.text[0] for row in rows)
            notes[key] = f"was [{before}]" if len(rows) > 1 else f"was {before}"
    return notes


def _at(value: Any, key: str) -> Any:
    """Return what stands at a dotted key, None where nothing does."""
    for part in key.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def _stated(part: Part, always: Collection[str], place: str = "") -> dict[str, Any]:
    """Return what differs from the defaults, and the settings that `always` names, as plain values."""
    differs = part.model_dump(exclude_defaults=True)
    found: dict[str, Any] = {}
    for name in type(part).model_fields:
        value, key = getattr(part, name), f"{place}{name}"
        if isinstance(value, Part):
            inner = _stated(value, always, f"{key}.")
            found |= {name: inner} if inner or name in differs else {}
        elif name in differs or key in always:
            found[name] = differs.get(name, value)
    return found
