"""JSON: values with the place of each; edits replace characters."""

import json
from collections.abc import Mapping
from json.decoder import JSONDecodeError, scanstring  # ty: ignore[import-not-found]
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.source import DEEPEST, Key, Source, Spot, nested, newline, replaced, spelled

_SPACE = " \t\r\n"
_PLAIN = json.JSONDecoder()


def read_json(text: str, name: str) -> Source:
    """Read JSON text.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source.

    Raises:
        InputError: no JSON, no object at the top, a key that stands twice.
    """
    spots: dict[Key, Spot] = {}
    start = _skip(text, 1 if text[:1] == "\ufeff" else 0)
    try:
        tree, end = _value(text, start, (), spots, name)
        if _skip(text, end) != len(text):
            raise JSONDecodeError("something stands after the end", text, end)
    except JSONDecodeError as error:
        raise InputError(f"{name} is not JSON: line {error.lineno}: {error.msg}; mend the file") from None
    if not isinstance(tree, dict):
        raise InputError(f"{name} holds no keys at its top level; give a recipe, which is an object")
    return Source(name, "json", text, tree, spots, _rewrite)


def object_in(text: str, start: int, end: int, key: Key, name: str) -> tuple[dict[str, Any], dict[Key, Spot]] | None:
    """Return the object that a quoted text holds, such as `--lr_scheduler_kwargs '{"min_lr": 1e-6}'`.

    Args:
        text: of the file.
        start: where the quoted text begins.
        end: one past it.
        key: of the object.
        name: of the file, for messages.

    Returns:
        The object, and where it and its values stand in the file; None where the text is no object.
    """
    places = [at for at in range(start, end) if text[at] != "\\" or text[at + 1 : at + 2] != '"']
    body = "".join(text[at] for at in places)
    inner: dict[Key, Spot] = {}
    first = _skip(body, 0)
    if body[first : first + 1] != "{":
        return None
    try:
        held, stop = _value(body, first, key, inner, name)
    except (JSONDecodeError, InputError, RecursionError):
        return None
    if _skip(body, stop) != len(body):
        return None
    return held, {k: Spot(places[spot.start], places[spot.end - 1] + 1, spot.quote) for k, spot in inner.items()}


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _value(text: str, at: int, key: Key, spots: dict[Key, Spot], name: str) -> tuple[Any, int]:
    if len(key) > DEEPEST:
        raise InputError(f"{name}: nested deeper than {DEEPEST} levels; flatten it")
    head = text[at : at + 1]
    if head == "{":
        found, end = _object(text, at, key, spots, name)
    elif head == "[":
        found, end = _array(text, at, key, spots, name)
    elif head == '"':
        found, end = scanstring(text, at + 1, True)
    else:
        try:
            found, end = _PLAIN.raw_decode(text, at)
        except ValueError as error:
            raise error if isinstance(error, JSONDecodeError) else JSONDecodeError("not a number", text, at) from None
        if isinstance(found, float) and (found != found or abs(found) == float("inf")):
            raise InputError(f"{name}: {spelled(key)} is not a finite number; give one")
    spots[key] = Spot(at, end, '"' if head == '"' else "")
    return found, end


def _object(text: str, at: int, key: Key, spots: dict[Key, Spot], name: str) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {}
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        if table:
            if text[at : at + 1] != ",":
                raise JSONDecodeError("expecting ',' or '}'", text, at)
            at = _skip(text, at + 1)
        if text[at : at + 1] != '"':
            raise JSONDecodeError("expecting a name in double quotes", text, at)
        label, end = scanstring(text, at + 1, True)
        if label in table:
            raise InputError(f"{name}: {spelled((*key, label))} stands twice; remove one of them")
        at = _skip(text, end)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("expecting ':'", text, at)
        table[label], end = _value(text, _skip(text, at + 1), (*key, label), spots, name)
        at = _skip(text, end)
    return table, at + 1


def _array(text: str, at: int, key: Key, spots: dict[Key, Spot], name: str) -> tuple[list[Any], int]:
    items: list[Any] = []
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        if items:
            if text[at : at + 1] != ",":
                raise JSONDecodeError("expecting ',' or ']'", text, at)
            at = _skip(text, at + 1)
        item, end = _value(text, at, (*key, len(items)), spots, name)
        items.append(item)
        at = _skip(text, end)
    return items, at + 1


def _rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    pieces: list[tuple[int, int, str]] = []
    fresh: dict[Key, dict[Key, Any]] = {}
    for key, value in changes.items():
        spot = source.spots.get(key)
        if spot is not None:
            text = json.dumps(value)
            quoted = spot.quote and not isinstance(value, str)
            pieces.append((spot.start, spot.end, json.dumps(text) if quoted else text))
            continue
        parent = key[:-1]
        while parent and not isinstance(source.get(parent), dict):
            parent = parent[:-1]
        if not isinstance(source.get(parent), dict):
            raise InputError(f"{spelled(key)} has no place in the file; write it there")
        fresh.setdefault(parent, {})[key[len(parent) :]] = value
    pieces += [_added(source, parent, nested(values)) for parent, values in fresh.items()]
    return replaced(source.text, pieces)


def _added(source: Source, parent: Key, values: dict[str, Any]) -> tuple[int, int, str]:
    text, spot = source.text, source.spots[parent]
    at = spot.end - 1
    while text[at - 1] in _SPACE:
        at -= 1
    block = "\n" in text[at : spot.end]
    first = _skip(text, spot.start + 1)
    indent = text[text.rfind("\n", 0, first) + 1 : first] if block else ""
    gap = newline(text) + indent if block else " "
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    empty = text[at - 1] == "{"
    return at, at, ("" if empty else ",") + ("" if empty and not block else gap) + ("," + gap).join(members)
