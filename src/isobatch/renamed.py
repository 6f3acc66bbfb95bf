"""Old public names: they answer with the new one and a DeprecationWarning that says it."""

from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

from isobatch.errors import warn

_Kind = TypeVar("_Kind")


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
            warn(f"{module}.{name} is now {moved[name]}", DeprecationWarning)
            return getattr(import_module(home), new)
        if gone is not None and name in gone:
            raise AttributeError(f"{module}.{name} is gone; use {gone[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look


class OldAttribute:
    """An attribute of a class under its old name.

    Args:
        new: the name that has its value now.

    Example:
        >>> class Box:
        ...     size = 3
        ...     extent = OldAttribute("size")
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     found = Box().extent
        >>> found, str(said[0].message)
        (3, 'Box.extent is now Box.size')
    """

    def __init__(self, new: str):
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        """Return the value under the new name, with a DeprecationWarning."""
        kind = owner.__name__
        warn(f"{kind}.{self.old} is now {kind}.{self.new}", DeprecationWarning)
        return getattr(owner if instance is None else instance, self.new)


def old_arguments(**names: str) -> Callable[[type[_Kind]], type[_Kind]]:
    """Return a decorator of a class whose arguments may still be given under old names.

    Args:
        **names: old name = "new name".

    Returns:
        The decorator; an old name is handed on under the new one, with a DeprecationWarning.

    Example:
        >>> @old_arguments(extent="size")
        ... class Box:
        ...     def __init__(self, size):
        ...         self.size = size
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     found = Box(extent=3).size
        >>> found, str(said[0].message)
        (3, 'Box(extent=...) is now Box(size=...)')
    """

    def decorate(kind: type[_Kind]) -> type[_Kind]:
        made: Callable[..., None] = kind.__init__

        @wraps(made)
        def init(self: _Kind, *values: Any, **named: Any) -> None:
            for old, new in names.items():
                if old in named:
                    text = f"{kind.__name__}({old}=...) is now {kind.__name__}({new}=...)"
                    warn(text, DeprecationWarning)
                    named[new] = named.pop(old)
            made(self, *values, **named)

        setattr(kind, "__init__", init)  # noqa: B010
        return kind

    return decorate
