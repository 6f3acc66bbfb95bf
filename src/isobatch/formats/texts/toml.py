"""TOML: read by the standard library, edited by tomlkit, which keeps every other character."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.source import DEEPEST, Key, Source, leaves, newline, spelled
from isobatch.installed import need


def read_toml_text(text: str, name: str) -> Source:
    """Read TOML text.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source.

    Raises:
        InputError: no TOML.
    """
    try:
        tree = tomllib.loads(text.removeprefix("\ufeff"))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{name} is not TOML: {said}; mend the file") from None
    deepest = max((len(key) for key, _ in leaves(tree)), default=0)
    if deepest > DEEPEST:
        raise InputError(f"{name}: nested deeper than {DEEPEST} levels; flatten it")
    return Source(name, "toml", text, tree, {}, _rewrite)


def _rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    need("formats")
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    mark = "\ufeff" if source.text.startswith("\ufeff") else ""
    try:
        document: Any = tomlkit.parse(source.text.removeprefix("\ufeff"))
        for key, value in changes.items():
            table = document
            for part in key[:-1]:
                if isinstance(part, str) and part not in table:
                    table[part] = tomlkit.table()
                table = table[part]
            table[key[-1]] = str(value) if isinstance(source.get(key), str) else value
    except (TOMLKitError, TypeError, KeyError, ValueError) as error:
        keys = ", ".join(spelled(key) for key in changes)
        raise InputError(f"{source.name}: cannot write {keys}: {error}; change them by hand") from None
    text = mark + tomlkit.dumps(document)
    one = not re.search(r"(?<!\r)\n", source.text)  # tomlkit ends the lines that it adds in its own way
    return re.sub(r"(?<!\r)\n", newline(source.text), text) if one else text
