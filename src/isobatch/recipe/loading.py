"""Reading recipes: every complaint names the key, the value, the range and the way out."""

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from isobatch.errors import InputError, unreadable

_Model = TypeVar("_Model", bound=BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.

    Returns:
        Its tables.

    Raises:
        InputError: no such file, or not TOML.
    """
    file = Path(path)
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))  # some editors put a byte-order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("the recipe", file, error) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML: {error}; mend the file") from None


def validate(model: type[_Model], values: dict[str, Any]) -> _Model:
    """Build a model from nested plain values.

    Args:
        model: the class to build.
        values: its tables and keys.

    Returns:
        The model.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a bad value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(_complaints(model, error))) from None


def _complaints(root: type[BaseModel], error: ValidationError) -> Iterator[str]:
    told: set[str] = set()
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        if parts[:1] == ["options"] and len(parts) > 1:  # one complaint for each type that an option may have
            if parts[1] not in told:
                yield f"options.{parts[1]}={item['input']!r} must be a bool, a finite number or text"
            told.add(parts[1])
            continue
        key = ".".join(part for part in parts if not part.startswith(("function-", "constrained-")))
        if item["type"] == "extra_forbidden":
            known = _known(root, parts[:-1])
            close = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"unknown key {key}; {hint}known here: {', '.join(known)}"
        elif item["type"] == "missing":
            yield f"{key} is missing; add it to the recipe"
        elif item["type"] == "model_type":
            yield f"{key}={item['input']!r} must be a table; write [{key}] with its keys below"
        elif item["type"] == "value_error":
            yield str(item["ctx"]["error"])
        else:
            value = item["input"]
            shown = f"={value!r}" if isinstance(value, (bool, int, float, str)) else ""
            yield f"{key}{shown}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _known(root: type[BaseModel], path: list[str]) -> list[str]:
    model = root
    for part in path:
        if part in model.model_fields:  # others are places in a list, and names in a table of one's own
            model = next(_models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
