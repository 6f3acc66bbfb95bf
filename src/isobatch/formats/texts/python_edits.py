"""Edits of Python configs: values in their places, arguments added to the calls and dicts that stand there."""

from collections.abc import Mapping
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.python_names import CALLED
from isobatch.formats.texts.source import Key, Source, nested, newline, replaced, spelled


def _literal(value: Any, old: str) -> str:
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_literal(item, "") for item in value)
        return f"({inside})" if old[:1] == "(" else f"[{inside}]"
    if isinstance(value, dict):
        named = all(str(name).isidentifier() for name in value)
        pairs = [f"{name}=" if named else f"{name!r}: " for name in value]
        inside = ", ".join(head + _literal(inner, "") for head, inner in zip(pairs, value.values(), strict=True))
        return f"dict({inside})" if named else f"{{{inside}}}"
    text = repr(value)
    if isinstance(value, str) and old[:1] == '"' and '"' not in value and "\\" not in text:
        return f'"{value}"'
    return text


def rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    """Return the text of a Python config with some values replaced or added.

    Args:
        source: the config.
        changes: key -> new value.

    Returns:
        The new text.

    Raises:
        InputError: a key that has no place in the file.
    """
    pieces, added = [], []
    missing: dict[Key, dict[str, Any]] = {}
    for key, value in changes.items():
        spot = source.spots.get(key)
        if spot is not None:
            pieces.append((spot.start, spot.end, _literal(value, source.text[spot.start : spot.end])))
        elif len(key) == 1 and "call" in source.extra:
            pieces.append(_inserted(source.text, source.extra["call"] - 1, f"{key[0]}={_literal(value, '')}"))
        elif len(key) == 1:
            added.append(f"{key[0]} = {_literal(value, '')}")
        elif key[:-1] in source.spots:
            pieces.append(_argument(source, key, _literal(value, "")))
        else:
            missing.setdefault(key[:-1], {})[str(key[-1])] = value
    if "_base_" in source.tree:
        pieces += _laid_over(source, missing, added)
        missing = {}
    for parent, values in missing.items():
        inside = ", ".join(f"{name}={_literal(value, '')}" for name, value in values.items())
        pieces.append(_argument(source, parent, f"{_built_elsewhere(source, parent)}({inside})"))
    text = replaced(source.text, _joined(pieces))
    if added:
        end = newline(text)
        text += ("" if text.endswith("\n") or not text else end) + end.join(added) + end
    return text


def _laid_over(source: Source, missing: Mapping[Key, dict[str, Any]], added: list[str]) -> list[tuple[int, int, str]]:
    """Return the pieces that lay keys over those of a base file, and add the tables that this file lacks."""
    grouped: dict[Key, dict[Key, Any]] = {}
    for parent, values in missing.items():
        cuts = range(len(parent), 0, -1)
        own = (cut for cut in cuts if parent[:cut] in source.spots and isinstance(source.get(parent[:cut]), dict))
        cut = next(own, 0)
        grouped.setdefault(parent[:cut], {}).update({(*parent[cut:], name): value for name, value in values.items()})
    pieces = []
    for place, values in grouped.items():
        for name, value in nested(values).items():
            if place:
                pieces.append(_argument(source, (*place, name), _literal(value, "")))
            else:
                added.append(f"{name} = {_literal(value, '')}")
    return pieces


def _built_elsewhere(source: Source, key: Key) -> str:
    """Return the call that another part of the file builds a table of this name with."""
    for table in source.tree.values():
        inner = table.get(str(key[-1])) if isinstance(table, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get(CALLED), str):
            return str(inner[CALLED])
    raise InputError(f"{spelled(key)} has no place in {source.name}, and nothing there builds one; add it by hand")


def _argument(source: Source, key: Key, value: str) -> tuple[int, int, str]:
    """Return the piece that adds an argument to a call, or a key to a dict, that stands in the file."""
    spot, table = source.spots.get(key[:-1]), source.get(key[:-1])
    if spot is None or not isinstance(table, dict):
        raise InputError(f"{spelled(key)} has no place in {source.name}; add {spelled(key)} = {value} by hand")
    text, at = source.text, spot.end - 1
    closing = text[at]
    if closing not in ")}":
        raise InputError(f"{spelled(key)} has no place in {source.name}; add {spelled(key)} = {value} by hand")
    name = f"{key[-1]}=" if closing == ")" else f"{str(key[-1])!r}: "
    return _inserted(text, at, f"{name}{value}")


def _inserted(text: str, at: int, argument: str) -> tuple[int, int, str]:
    """Return the piece that adds an argument before a closing bracket."""
    while text[at - 1] in " \t\r\n":
        at -= 1
    lead = " " if text[at - 1] == "," else "" if text[at - 1] in "({" else ", "
    return at, at, f"{lead}{argument}"


def _joined(pieces: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return pieces with those that are added at one place as one piece."""
    found: dict[tuple[int, int], str] = {}
    for start, end, new in pieces:
        before = found.get((start, end))
        if before is None or start != end:
            found[start, end] = new
        else:
            found[start, end] = before + (new if new.startswith(",") else f", {new.strip()}")
    return [(start, end, new) for (start, end), new in found.items()]
