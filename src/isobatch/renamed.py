"""Old names: they still answer, and warn of the new one."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

_Kind = TypeVar("_Kind")


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module some of whose names have changed.

    Args:
        module: its `__name__`.
        names: old name -> "module:new name".

    Returns:
        A function of a name: what has it now, with a DeprecationWarning.

    Example:
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     found = old_names("isobatch.units", {"entire": "isobatch.units:whole"})("entire")
        >>> found.__name__, str(said[0].message)
        ('whole', 'isobatch.units.entire is now isobatch.units.whole')
    """

    def answer(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].partition(":")
        warnings.warn(f"{module}.{name} is now {home}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), new)

    return answer


class OldAttribute:
    """An attribute of a class under its old name.

    Args:
        new: the name that has its value now.

    Example:
        >>> class Box:
        ...     size = 3
        ...     extent = OldAttribute("size")
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
        warnings.warn(f"{kind}.{self.old} is now {kind}.{self.new}", DeprecationWarning, stacklevel=2)
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
                    warnings.warn(text, DeprecationWarning, stacklevel=2)
                    named[new] = named.pop(old)
            made(self, *values, **named)

        setattr(kind, "__init__", init)  # noqa: B010
        return kind

    return decorate
