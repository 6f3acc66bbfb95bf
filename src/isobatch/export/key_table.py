"""Every key of a recipe in one table: what it takes, its unit, what it means, and what a plan does to it."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from isobatch.export.effects import effect_of
from isobatch.recipe import RecipeData

HEAD = """\
# Recipe keys

What a recipe file (TOML) may say, as `isobatch plan --keys` prints it. A span is a number with a unit: "30 epochs",
"20_000 samples", "500 steps" (of this recipe's batch), or tokens where the clock counts them. kappa is the new batch
over the old one; letters are those of the plan."""

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Args:
        name: dotted, "[]" behind a list of tables and NAME for a name of one's own: "groups[].lr", "curves.NAME[].by".
        takes: what may be written there.
        default: what holds without it, "" where it must be written.
        unit: of a number or span, "" for words.
        means: its meaning.
        effect: what a plan does to it.
    """

    name: str
    takes: str
    default: str
    unit: str
    means: str
    effect: str


def keys() -> tuple[Key, ...]:
    """Return every key that a recipe may have, in the order of its tables.

    Returns:
        The keys, read from the models and their docstrings.

    Example:
        >>> next(key for key in keys() if key.name == "batch.size").takes
        'whole number >= 1'
    """
    return tuple(_walk(RecipeData, ""))


def keys_table() -> str:
    """Return the table of all keys as Markdown, one table a part of the recipe.

    Returns:
        Markdown.
    """
    lines, part = [HEAD], None
    for key in keys():
        head = key.name.rpartition(".")[0]
        if head != part:
            part = head
            lines += ["", f"## `[{head}]`" if head else "## Top of the file", ""]
            lines += ["| key | takes | default | unit | means | what a plan does |", "|---|---|---|---|---|---|"]
        short = key.name.rpartition(".")[2]
        cells = (f"`{short}`", key.takes, key.default, key.unit, key.means, key.effect)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _walk(model: type[BaseModel], place: str) -> Iterator[Key]:
    """Yield a table's own keys, then those of the tables inside it."""
    inner = []
    said = _arguments(model)
    for name, field in model.model_fields.items():
        found = next(_tables(field.annotation, f"{place}{name}"), None)
        if found is not None:
            inner.append(found)
            continue
        key = f"{place}{name}"
        unit, effect = effect_of(key)
        yield Key(key, _takes(field), _default(field), unit, said[name], effect)
    for table, where in inner:
        yield from _walk(table, f"{where}.")


def _tables(annotation: Any, place: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the model inside an annotation, with its place: a table, a list of tables, or tables by name."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation, place
        return
    mark = {tuple: "[]", list: "[]", dict: ".NAME"}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        yield from _tables(part, f"{place}{mark}")


def _arguments(model: type[BaseModel]) -> dict[str, str]:
    """Return the meaning of each field, from the Args of a docstring."""
    text = inspect.getdoc(model) or ""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].split("\n") if section else ():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        else:
            found[name] += " " + line.strip()
    return found


def _takes(field: FieldInfo) -> str:
    words = _kinds(field.annotation)
    bounds = [
        text.format(f"{bound:g}")
        for rule in _rules(field)
        for name, text in _BOUNDS.items()
        if (bound := getattr(rule, name, None)) is not None
    ]
    return " ".join([" or ".join(dict.fromkeys(words)), ", ".join(bounds)]).strip()


def _rules(field: FieldInfo) -> Iterator[Any]:
    """Yield the bounds of a field, also of one that may be left out."""
    yield from field.metadata
    for part in get_args(field.annotation):
        yield from getattr(part, "__metadata__", ())


def _kinds(annotation: Any) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return []
    if origin is Literal:
        return [f'"{word}"' for word in parts]
    if origin in (Union, UnionType):
        return [word for part in parts for word in _kinds(part)]
    if origin is tuple:
        inner = " and ".join(" or ".join(_kinds(part)) for part in parts if part is not Ellipsis)
        return [f"list of {inner}"]
    if origin is dict:
        return ["table of " + " or ".join(_kinds(parts[1]))]
    if getattr(annotation, "__metadata__", ()):  # Annotated, such as pydantic's strict types
        return _kinds(annotation.__origin__)
    return [_NAMES.get(annotation, "value")]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
