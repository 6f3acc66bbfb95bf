"""A recipe file as text: plain values, where each of them stands, and edits that touch nothing else."""

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobatch.errors import InputError, unreadable
from isobatch.results import write

Key = tuple[str | int, ...]
"""Where a value stands in a file: names of tables and positions in lists."""
LARGEST = 1_000_000
"""Bytes of the largest file that is read; recipes are a hundred times smaller."""
DEEPEST = 60
"""Levels of the deepest nesting that is read."""


@dataclass(frozen=True)
class Unknown:
    """A value that only running the file would tell.

    Args:
        text: as it stands in the file.
    """

    text: str


@dataclass(frozen=True)
class Spot:
    """Where a value stands in the text.

    Args:
        start: first character.
        end: one past the last character.
        quote: the quote around it, "" for none.
    """

    start: int
    end: int
    quote: str = ""


@dataclass(frozen=True)
class Source:
    """A file, read and never executed.

    Args:
        name: for messages.
        kind: yaml, json, toml, command or python.
        text: what stands in it.
        tree: its values as nested plain ones; `Unknown` for what would have to be run.
        spots: where values stand, for edits.
        rewrite: the edit of this kind of text.
        extra: what a kind adds: the launcher of a command.
        path: the file, None for text.
    """

    name: str
    kind: str
    text: str
    tree: dict[str, Any]
    spots: Mapping[Key, Spot]
    rewrite: Callable[["Source", Mapping[Key, Any]], str]
    extra: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def edit(self, changes: Mapping[Key, Any]) -> str:
        """Return the text with some values replaced or added, every other character as it was.

        Args:
            changes: key -> new value.

        Returns:
            The new text; the same one where nothing changes.

        Raises:
            InputError: a value that cannot be written in this text.
        """
        return self.rewrite(self, changes) if changes else self.text

    def get(self, key: Key, default: Any = None) -> Any:
        """Return a value, or the default where the file does not have it."""
        found: Any = self.tree
        for part in key:
            if (isinstance(found, dict) and part in found) or (
                isinstance(found, list) and isinstance(part, int) and part < len(found)
            ):
                found = found[part]
            else:
                return default
        return found


def read_text(path: str | Path) -> str:
    """Return the text of a recipe file, line ends as they are.

    Args:
        path: the file.

    Returns:
        Its text.

    Raises:
        InputError: no file, a folder, no text, or larger than any recipe.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise InputError(f"{file} has {size:,} bytes; a recipe has at most {LARGEST:,}. Give the recipe alone")
        if not file.is_file():
            raise IsADirectoryError(errno.EISDIR, "it is not a file")
        return file.read_bytes().decode("utf-8")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable("the recipe", file, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, its mode kept.

    Args:
        path: the file.
        text: what it shall hold.

    Raises:
        InputError: it cannot be written.
    """
    target = path.resolve()
    mode = target.stat().st_mode & 0o7777 if target.exists() else None
    try:
        write(target, text)
        if mode is not None:
            target.chmod(mode)
    except (InputError, OSError) as error:
        first = error if isinstance(error, OSError) else error.__context__
        said = getattr(first, "strerror", None) or error
        raise InputError(f"cannot write {path}: {said}; give --patch another file") from None


def replaced(text: str, pieces: list[tuple[int, int, str]]) -> str:
    """Return a text with some spans replaced.

    Args:
        text: the text.
        pieces: (start, end, new) that do not overlap; start = end inserts.

    Returns:
        The new text.

    Raises:
        InputError: two of them stand at the same place, such as one variable that two flags use.
    """
    out, at = [], 0
    for start, end, new in sorted(set(pieces)):
        if start < at:
            line = text.count("\n", 0, start) + 1
            raise InputError(f"line {line}: one value serves two settings that part; write each of them out")
        out += [text[at:start], new]
        at = end
    return "".join([*out, text[at:]])


def newline(text: str) -> str:
    """Return the line end that a text uses."""
    return "\r\n" if "\r\n" in text else "\n"


def leaves(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every plain value of nested ones; a list of plain values counts as one.

    Args:
        tree: nested values.
        key: where they stand.

    Yields:
        Pairs (key, value).
    """
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*key, name))
    elif isinstance(tree, list) and any(isinstance(value, (dict, list)) for value in tree):
        for index, value in enumerate(tree):
            yield from leaves(value, (*key, index))
    else:
        yield key, tree


def spelled(key: Key) -> str:
    """Return a key as people write it.

    Args:
        key: the key.

    Returns:
        Text.

    Example:
        >>> spelled(("optimizer", "params", 0, "lr"))
        'optimizer.params[0].lr'
    """
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nested(changes: Mapping[Key, Any]) -> dict[str, Any]:
    """Return keys of several parts as nested tables.

    Args:
        changes: key -> value.

    Returns:
        Nested values.
    """
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        table = tree
        for part in key[:-1]:
            table = table.setdefault(str(part), {})
        table[str(key[-1])] = value
    return tree
