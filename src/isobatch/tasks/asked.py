"""A task's [options], with a note of which ones the task has looked at."""

from collections.abc import Iterator
from typing import Any

from isobatch.errors import InputError


class Asked(dict[str, Any]):
    """Options that remember which keys they were asked for; whoever takes them all has seen them all.

    Args:
        options: as in the recipe.

    Example:
        >>> options = Asked({"width": 8, "widht": 9})
        >>> options.get("width", 64)
        8
        >>> sorted(options.unread)
        ['widht']
    """

    def __init__(self, options: dict[str, Any]):
        super().__init__(options)
        self.read: set[str] = set()

    @property
    def unread(self) -> set[str]:
        """Keys that nobody asked for."""
        return set(super().keys()) - self.read

    def refuse_unread(self, task: str) -> None:
        """Refuse options that the task did not read.

        Args:
            task: its name, for the message.

        Raises:
            InputError: names one of them, and the options that the task reads.
        """
        if unread := sorted(self.unread):
            known = ", ".join(sorted(self.read)) or "none"
            raise InputError(
                f"options.{unread[0]} is not an option of task={task!r}, which looks for: {known}; correct or remove it"
            )

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def get(self, key: object, default: Any = None, /) -> Any:
        """Return an option, as a dict does.

        Args:
            key: its name.
            default: the answer where the recipe does not set it.

        Returns:
            The value.
        """
        self.read.add(str(key))
        return super().get(key, default)

    def keys(self) -> Any:
        """Return all keys, as a dict does."""
        self.read.update(super().keys())
        return super().keys()

    def values(self) -> Any:
        """Return all values, as a dict does."""
        self.read.update(super().keys())
        return super().values()

    def items(self) -> Any:
        """Return all pairs, as a dict does."""
        self.read.update(super().keys())
        return super().items()
