"""Writing recipes: plain values as TOML that the standard library reads back to the same values."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from isobatch.errors import InputError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NOTES: Mapping[str, str] = {}


def toml_text(values: Mapping[str, Any], notes: Mapping[str, str] = _NOTES) -> str:
    """Return plain values as TOML: a table's own values first, then the tables inside it.

    Args:
        values: text, finite numbers, booleans, lists of them, dicts, and lists of dicts; None is left out.
        notes: dotted key -> a comment behind its value.

    Returns:
        TOML.

    Raises:
        InputError: a value that TOML has no word for.

    Example:
        >>> print(toml_text({"task": "digits", "batch": {"size": 8}}, {"batch.size": "was 4"}))
        task = "digits"
        <BLANKLINE>
        [batch]
        size = 8  # was 4
    """
    return "\n\n".join(_blocks(values, "", "", notes))


def _blocks(
    values: Mapping[str, Any], name: str, place: str, notes: Mapping[str, str], head: str = ""
) -> Iterator[str]:
    """Yield a table and those inside it, one text each.

    Args:
        values: of the table.
        name: of the table with its dot, as headers write it.
        place: the same with the places in arrays, as notes are looked up: "groups.0.".
        notes: dotted key -> a comment.
        head: the header; one that [[repeats]] is always written, [another] where it holds values or nothing at all.

    Yields:
        TOML.
    """
    stated = {key: value for key, value in values.items() if value is not None}
    tables = {key: value for key, value in stated.items() if isinstance(value, Mapping) or _is_tables(value)}
    lines = [_line(key, value, place, notes) for key, value in stated.items() if key not in tables]
    if lines or (head and (not tables or head.startswith("[["))):
        yield "\n".join([head, *lines] if head else lines)
    for key, value in tables.items():
        inner, here = f"{name}{_key(key)}", f"{place}{key}"
        if isinstance(value, Mapping):
            yield from _blocks(value, f"{inner}.", f"{here}.", notes, f"[{inner}]")
            continue
        for number, item in enumerate(value):
            yield from _blocks(item, f"{inner}.", f"{here}.{number}.", notes, f"[[{inner}]]")


def _line(key: str, value: Any, place: str, notes: Mapping[str, str]) -> str:
    note = notes.get(f"{place}{key}")
    return f"{_key(key)} = {_value(value, place + key)}" + (f"  # {note}" if note else "")


def _is_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item, place) for item in value) + "]"
    if isinstance(value, Mapping):
        inner = (f"{_key(key)} = {_value(item, place)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(inner) + " }"
    raise InputError(f"{place}={value!r:.60} has no word in TOML; use text, finite numbers, booleans, lists, tables")


def _text(value: str) -> str:
    """Quote text; JSON's escapes are TOML's, except that TOML wants DEL escaped as well."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
