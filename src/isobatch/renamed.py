"""Old public names: they answer with the new one and a DeprecationWarning that says it."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def old_names(module: str, moved: Mapping[str, str], gone: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that knows its old names.

    Args:
        module: name of the module.
        moved: old name -> dotted new one.
        gone: name of what is no more -> what to use instead.

    Returns:
        The function.

    Example:
        >>> look = old_names("isobatch.rules", {}, {"Staff": "nothing; it had no use"})
        >>> look("Staff")
        Traceback (most recent call last):
        AttributeError: isobatch.rules.Staff is gone; use nothing; it had no use
    """

    def look(name: str) -> Any:
        if name in moved:
            home, _, new = moved[name].rpartition(".")
            warnings.warn(f"{module}.{name} is now {moved[name]}", DeprecationWarning, stacklevel=2)
            return getattr(import_module(home), new)
        if gone is not None and name in gone:
            raise AttributeError(f"{module}.{name} is gone; use {gone[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look
