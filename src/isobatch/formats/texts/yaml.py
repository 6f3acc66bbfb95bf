"""YAML: values with the place of each, anchors and merges followed, no tags; edits replace characters."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.json import object_in
from isobatch.formats.texts.source import DEEPEST, Key, Source, Spot, leaves, nested, newline, replaced, spelled
from isobatch.installed import need

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "none": None}
_WORDS |= {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLAIN = re.compile(r"([A-Za-z_][A-Za-z0-9_./-]*|[1-9][0-9]*[a-z]{2,})$")
_ANCHOR = re.compile(r"&[^\s,\[\]{}]+(?:\s|#[^\n]*)*")
_ANCHORED = re.compile(r"[ \t]*&[^\s,\[\]{}]+")
_ALIAS = "*"
MOST_VALUES = 100_000
"""Values of the largest file once its aliases are followed; ten lines can stand for billions."""


def read_yaml(text: str, name: str) -> Source:
    """Read YAML text.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source.

    Raises:
        InputError: no YAML, no table at the top, tags, aliases without end, several documents, a key that stands twice.
        MissingExtra: ruamel.yaml is not installed.
    """
    need("formats")
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    bare = text.removeprefix("\ufeff")
    shift = len(text) - len(bare)
    reader = YAML(typ="safe", pure=True)
    try:
        walk = _Walk(bare, shift, _refuse(bare, reader, name), name)
        root = reader.compose(bare)
    except (YAMLError, RecursionError, ValueError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        said = getattr(error, "problem", None) or "nested too deeply or malformed"
        raise InputError(f"{name} is not YAML:{where} {said}; mend the file") from None
    tree, spots = {} if root is None else walk.value(root, ()), walk.spots
    for key, spot in list(spots.items()):
        word = spots.get((*key, "\0key"))
        if spot.start == spot.end and word is not None:  # a key without a value: its place is behind colon and anchor
            colon = text.find(":", word.end) + 1
            anchor = _ANCHORED.match(text, colon)
            at = anchor.end() if anchor else colon
            spots[key] = Spot(at, at, spot.quote)
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


def _refuse(text: str, reader: Any, name: str) -> list[tuple[int, int]]:
    """Refuse what could mean or do more than it says, before anything is built from it; return where aliases stand."""
    depth, documents = 0, 0
    aliases: list[tuple[int, int]] = []
    anchors: set[str] = set()
    for token in reader.scan(text):
        kind = type(token).__name__
        line = token.start_mark.line + 1
        if kind == "AliasToken":
            aliases.append((token.start_mark.index, token.end_mark.index))
        if kind == "AnchorToken":
            if token.value in anchors:
                raise InputError(f"{name} line {line}: the anchor {token.value!r} stands twice; rename one of them")
            anchors.add(token.value)
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
    return aliases


class _Walk:
    """Nodes to plain values, and where each stands: an alias where its `*name` does, what a merge brings nowhere."""

    def __init__(self, text: str, shift: int, aliases: list[tuple[int, int]], name: str) -> None:
        self.spots: dict[Key, Spot] = {}
        self._text, self._shift, self._aliases, self._name = text, shift, iter(aliases), name
        self._met: dict[int, Any] = {}
        self._above: list[int] = []
        self._values = 0

    def value(self, node: Any, key: Key, placed: bool = True) -> Any:
        self._values += 1
        line = node.start_mark.line + 1
        if self._values > MOST_VALUES:
            raise InputError(
                f"{self._name} line {line}: its aliases stand for over {MOST_VALUES:,} values; write out what is meant"
            )
        if id(node) in self._above:
            raise InputError(f"{self._name} line {line}: an anchor holds its own alias; write the value out")
        if placed and id(node) in self._met:
            start, end = next(self._aliases)
            self.spots[key] = Spot(start + self._shift, end + self._shift, _ALIAS)
            placed = False
        elif placed:
            self._met[id(node)] = node
            self.spots[key] = self._place(node)
        if node.id == "scalar":
            return plain(node.value) if not node.style else node.value
        self._above.append(id(node))
        if node.id == "sequence":
            found: Any = [self.value(child, (*key, index), placed) for index, child in enumerate(node.value)]
        else:
            found = self._table(node, key, placed)
        self._above.pop()
        return found

    def _table(self, node: Any, key: Key, placed: bool) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for word, child in node.value:
            label = str(word.value) if word.id == "scalar" and (not placed or id(word) not in self._met) else None
            line = word.start_mark.line + 1
            if label is None:
                raise InputError(f"{self._name} line {line}: a key must be a plain word; write the nested keys out")
            if label in own:
                raise InputError(f"{self._name} line {line}: {spelled((*key, label))} stands twice; remove one of them")
            if placed:
                self._met[id(word)] = word
                self.spots[(*key, label, "\0key")] = self._place(word)
            found = self.value(child, (*key, label), placed)
            if label == "<<" and not word.style:
                tables = found if isinstance(found, list) else [found]
                if merged or not all(isinstance(table, dict) for table in tables):
                    raise InputError(
                        f"{self._name} line {line}: << takes a table or a list of them; write the keys out"
                    )
                merged = {label: inner for table in reversed(tables) for label, inner in table.items()}
            else:
                own[label] = found
        return merged | own

    def _place(self, node: Any) -> Spot:
        start, end = node.start_mark.index, node.end_mark.index
        anchor = _ANCHOR.match(self._text, start, end) if node.anchor else None
        start = anchor.end() if anchor else start
        quote = getattr(node, "style", None) or ""
        return Spot(start + self._shift, end + self._shift, quote if quote in "'\"" else "|")


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
    """Edit, and where values are shared give every key that was not to change its old value in words of its own."""
    if not any(spot.quote == _ALIAS for spot in source.spots.values()):
        return _edited(source, changes)
    wanted: Any = deepcopy(source.tree)
    for key, value in changes.items():
        table = wanted
        for part in key[:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else table[part]
        table[key[-1]] = list(value) if isinstance(value, tuple) else value
    own = {key: value for key, value in changes.items() if key in source.spots and not _shared(source, key)}
    for _ in range(2):
        text = _edited(source, own)
        got = read_yaml(text, source.name)
        wrong = {key: value for key, value in leaves(wanted) if got.get(key) != value}
        if not wrong:
            return text
        for key in wrong:
            parts = [key[:n] for n in range(1, len(key) + 1)]
            whole = next((part for part in parts if part not in source.spots or _shared(source, part)), key)
            own[whole] = _at(wanted, whole)
    raise InputError(f"{source.name}: {spelled(next(iter(wrong)))} stands behind an anchor; write its value out")


def _shared(source: Source, key: Key) -> bool:
    spot = source.spots.get(key)
    return spot is not None and spot.quote == _ALIAS


def _at(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree[part]
    return tree


def _edited(source: Source, changes: Mapping[Key, Any]) -> str:
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
            text = _flow(value) if isinstance(value, dict) else literal(value, old, mark)
            pieces.append((spot.start, spot.end, gap + text))
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
    if (spot is None and parent) or _shared(source, parent):
        raise InputError(f"{spelled(parent)} stands behind an anchor; write {', '.join(values)} in a table of its own")
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
        column = len(text[text.rfind("\n", 0, start) + 1 : start].removeprefix("\ufeff"))
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
