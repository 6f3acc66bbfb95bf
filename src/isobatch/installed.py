"""What is installed beside the package: what other distributions announce by entry points."""

from importlib import metadata


def announced(group: str) -> dict[str, metadata.EntryPoint]:
    """Return what installed distributions announce under a name, nothing of it loaded.

    Args:
        group: of entry points, such as "isobatch.tasks".

    Returns:
        Name -> entry point, in order of the names.

    Example:
        >>> announced("isobatch.no-such-group")
        {}
    """
    return {point.name: point for point in sorted(metadata.entry_points(group=group), key=lambda point: point.name)}
