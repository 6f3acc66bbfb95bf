"""YAML: values with the place of each, without tags, anchors or aliases; edits replace characters."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.json import object_in
from isobatch.formats.texts.source import DEEPEST, Key, Source, Spot, nested, newline, replaced, spelled
from isobatch.installed import need

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "none": None}
_WORDS |= {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLAIN = re.compile(r"([A-Za-z_][A-Za-z0-9_./-]*|[1-9][0-9]*[a-z]{2,})$")
_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str, name: str) -> Source:
    """Read YAML text.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source.

    Raises:
        InputError: no YAML, no table at the top, tags, anchors, several documents, a key that stands twice.
        MissingExtra: ruamel.yaml is not installed.
    """
    need("formats")
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    bare = text.removeprefix("\ufeff")
    shift = len(text) - len(bare)
    reader = YAML(typ="safe", pure=True)
    try:
        _refuse(bare, reader, name)
        root = reader.compose(bare)
    except (YAMLError, RecursionError, ValueError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        said = getattr(error, "problem", None) or "nested too deeply or malformed"
        raise InputError(f"{name} is not YAML:{where} {said}; mend the file") from None
    spots: dict[Key, Spot] = {}
    tree = {} if root is None else _value(root, (), spots, shift, name)
    for key, spot in list(spots.items()):
        word = spots.get((*key, "\0key"))
        if spot.start == spot.end and word is not None:  # a key without a value: its place is behind its colon
            colon = text.find(":", word.end) + 1
            spots[key] = Spot(colon, colon, spot.quote)
    if not isinstance(tree, dict):
        raise InputError(f"{name} holds no keys at its top level; give a recipe, which is a table of key: value")
    for label, held in tree.items():
        spot = spots.get((label,))
        if isinstance(held, str) and held.lstrip().startswith("{") and spot is not None and spot.quote in ("'", '"'):
            found = object_in(text, spot.start + 1, spot.end - 1, (label,), name)
            if found is not None:
                tree[label] = found[0]
                spots |= {key: place for key, place in found[1].items() if len(key) > 1}
    return Source(name, "yaml", text, tree, spots, _rewrite)


def _refuse(text: str, reader: Any, name: str) -> None:
    """Refuse what could mean or do more than it says, before anything is built from it."""
    depth, documents = 0, 0
    for token in reader.scan(text):
        kind = type(token).__name__
        line = token.start_mark.line + 1
        if kind in ("AnchorToken", "AliasToken"):
            what = "an anchor" if kind == "AnchorToken" else "an alias"
            raise InputError(f"{name} line {line}: {what} ({token.value!r}) is not read; write the value out")
        if kind == "TagToken":
            raise InputError(f"{name} line {line}: a YAML tag is not read, for it can run code; write a plain value")
        documents += kind == "DocumentStartToken"
        depth += kind in ("BlockMappingStartToken", "BlockSequenceStartToken")
        depth += kind in ("FlowMappingStartToken", "FlowSequenceStartToken")
        depth -= kind in ("BlockEndToken", "FlowMappingEndToken", "FlowSequenceEndToken")
        if depth > DEEPEST:
            raise InputError(f"{name} line {line}: nested deeper than {DEEPEST} levels; flatten it")
        if documents > 1:
            raise InputError(f"{name} line {line}: a second YAML document; keep one recipe in a file")


def _value(node: Any, key: Key, spots: dict[Key, Spot], shift: int, name: str) -> Any:
    quote = getattr(node, "style", None) or ""
    spots[key] = Spot(node.start_mark.index + shift, node.end_mark.index + shift, quote if quote in "'\"" else "|")
    if node.id == "scalar":
        return plain(node.value) if not quote else node.value
    if node.id == "sequence":
        return [_value(child, (*key, index), spots, shift, name) for index, child in enumerate(node.value)]
    table: dict[str, Any] = {}
    for word, child in node.value:
        label = str(word.value) if word.id == "scalar" else None
        line = word.start_mark.line + 1
        if label is None or label == "<<":
            raise InputError(f"{name} line {line}: a key must be a plain word; write the merged or nested keys out")
        if label in table:
            raise InputError(f"{name} line {line}: {spelled((*key, label))} stands twice; remove one of them")
        spots[(*key, label, "\0key")] = Spot(word.start_mark.index + shift, word.end_mark.index + shift)
        table[label] = _value(child, (*key, label), spots, shift, name)
    return table


def plain(text: str) -> Any:
    """Return an unquoted scalar as the value that trainers take it for, 1e-5 and yes included.

    Args:
        text: as it stands.

    Returns:
        None, a bool, a number, or the text.

    Example:
        >>> plain("1e-5"), plain("2_048"), plain("off"), plain("adamw")
        (1e-05, 2048, False, 'adamw')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.match(text):
        return int(text.replace("_", "")) if len(text) < 400 else text
    return float(text.replace("_", "")) if _FLOAT.match(text) and text.strip("+-._") else text


def literal(value: Any, old: str = "", quote: str = "") -> str:
    """Return a value as YAML that every reader takes for the same value.

    A float keeps all its digits and, beside an exponent, its point: YAML 1.1 reads 1e-05 as text.

    Args:
        value: plain value.
        old: the text that it replaces, whose case of true and false is kept.
        quote: the quote around the old text.

    Returns:
        Text.

    Example:
        >>> literal(1e-05), literal(0.98000001), literal([0.9, 0.95])
        ('1.0e-05', '0.98000001', '[0.9, 0.95]')
    """
    if isinstance(value, bool):
        return str(value) if old[:1].isupper() else str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        text = repr(value)
        head, mark, power = text.partition("e")
        text = f"{head if '.' in head else head + '.0'}e{power}" if mark else text
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(_flow(item) for item in value) + "]"
    else:
        text = str(value)
        if not quote and not (_PLAIN.match(text) and isinstance(plain(text), str)):
            quote = '"'
        escaped = text.replace("'", "''") if quote == "'" else text.replace("\\", "\\\\").replace('"', '\\"')
        return f"{quote}{escaped}{quote}" if quote in ("'", '"') else text
    return f"{quote}{text}{quote}" if quote in ("'", '"') else text


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return tables of plain values as YAML, lists and what is in them on one line.

    Args:
        values: text, numbers, booleans, lists and tables; None is left out.

    Returns:
        YAML that every reader takes for the same values.

    Example:
        >>> print(yaml_text({"task": "digits", "optimizer": {"lr": 1e-05, "betas": [0.9, 0.95]}}), end="")
        task: digits
        optimizer:
          lr: 1.0e-05
          betas: [0.9, 0.95]
    """
    return "\n".join(_block(_stated(values), 0)) + "\n"


def _stated(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _stated(inner) for name, inner in value.items() if inner is not None}
    return [_stated(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    pieces: list[tuple[int, int, str]] = []
    fresh: dict[Key, dict[Key, Any]] = {}
    for key, value in changes.items():
        spot = source.spots.get(key)
        if spot is not None:
            old = source.text[spot.start : spot.end]
            if spot.quote == "|" and not isinstance(source.get(key), (dict, list)):
                raise InputError(f"{spelled(key)} is a block of text; write it on one line")
            mark = spot.quote if spot.quote in ("'", '"') else ""
            gap = " " if spot.start == spot.end else ""  # a key without a value
            pieces.append((spot.start, spot.end, gap + literal(value, old, mark)))
            continue
        parent = key[:-1]
        while parent and not isinstance(source.get(parent), dict):
            if source.get(parent) is not None:
                raise InputError(
                    f"{spelled(parent)} holds no keys, so that {spelled(key)} has no place; write it there"
                )
            parent = parent[:-1]
        fresh.setdefault(parent, {})[key[len(parent) :]] = value
    pieces += [_added(source, parent, nested(values)) for parent, values in fresh.items()]
    return replaced(source.text, pieces)


def _added(source: Source, parent: Key, values: dict[str, Any]) -> tuple[int, int, str]:
    """Return the piece of text that adds keys at the end of a table."""
    text, line_end = source.text, newline(source.text)
    spot = source.spots.get(parent)
    if spot is not None and spot.quote in ("'", '"'):
        raise InputError(f"{spelled(parent)} is an object in quotes; write {', '.join(values)} into it")
    if spot is not None and text[spot.start : spot.start + 1] == "{":
        inside = ", ".join(f"{name}: {_flow(value)}" for name, value in values.items())
        at = spot.end - 1
        while text[at - 1] in " \n\r\t":
            at -= 1
        return at, at, f"{inside}" if text[at - 1] == "{" else f", {inside}"
    keys = [s.start for key, s in source.spots.items() if key[-1:] == ("\0key",) and key[:-2] == parent]
    column = 0
    if keys:
        start = keys[0]
        column = start - (text.rfind("\n", 0, start) + 1)
    ends = [s.end for key, s in source.spots.items() if key[: len(parent)] == parent and _is_leaf(source, key)]
    at = max(ends, default=len(text))
    if text[at - 1 : at] != "\n":
        stop = text.find("\n", at)
        at = len(text) if stop < 0 else stop + 1
    lines = line_end.join(_block(values, column)) + line_end
    lead = "" if at == 0 or text[at - 1] == "\n" else line_end
    return at, at, lead + lines


def _is_leaf(source: Source, key: Key) -> bool:
    return key[-1:] != ("\0key",) and not (isinstance(source.get(key), dict) and source.get(key))


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {_flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    return literal(value)


def _block(values: dict[str, Any], column: int) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{' ' * column}{literal(name)}:"
            yield from _block(value, column + 2)
        else:
            yield f"{' ' * column}{literal(name)}: {_flow(value)}"
