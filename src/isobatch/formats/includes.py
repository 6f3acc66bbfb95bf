"""Included files: D-FINE's `__include__`, detectron2's `_BASE_`, mmengine's `_base_`; none may leave the folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts import Key, Source, leaves

NAMES = ("__include__", "_BASE_", "_base_")
_ROOTS = ("configs", "config", "conf", "cfg", "cfgs")
MOST = 40
"""Files that one recipe may be made of."""


def merged(source: Source, read: Callable[[Path], Source]) -> tuple[Source, dict[Key, str]]:
    """Return a file with what it includes below it, and where the keys that it does not say itself come from.

    Args:
        source: the file.
        read: reads an included file.

    Returns:
        The file, whose edits still touch the file alone; key -> "include NAME".

    Raises:
        InputError: an include that is missing, leaves the folder of the configs, or includes itself.
    """
    name = next((name for name in NAMES if name in source.tree), None)
    if name is None:
        return source, {}
    if source.path is None:
        raise InputError(f"{source.name} has {name}, but is no file; give the file, so that its folder is known")
    origins: dict[Key, str] = {}
    tree = _tree(source, read, root_of(source.path), [source.path.resolve()], origins)
    own = {key for key, _ in leaves(source.tree)}
    kept = {key: origin for key, origin in origins.items() if key not in own}
    for key in list(kept):
        for cut in range(1, len(key)):  # a table or a list of an included file is one too, where the file has none
            if not any(other[:cut] == key[:cut] for other in own):
                kept.setdefault(key[:cut], kept[key])
    return replace(source, tree=tree, rewrite=lambda _, changes: source.edit(changes)), kept


def root_of(path: Path) -> Path:
    """Return the folder that includes may not leave: the nearest one called configs (or the like), else the file's own.

    Args:
        path: of the recipe.

    Returns:
        The folder.
    """
    folder = path.resolve().parent
    return next((above for above in (folder, *folder.parents) if above.name in _ROOTS), folder)


def _tree(
    source: Source, read: Callable[[Path], Source], root: Path, chain: list[Path], origins: dict[Key, str]
) -> dict[str, Any]:
    name = next((name for name in NAMES if name in source.tree), None)
    own = {key: value for key, value in source.tree.items() if key != name}
    if name is None or source.path is None:
        return own
    listed = source.tree[name]
    tree: dict[str, Any] = {}
    for item in listed if isinstance(listed, list) else [listed]:
        if not isinstance(item, str) or not item:
            raise InputError(f"{source.name}: {name} holds {item!r}, which is no file name; write the path")
        target = (source.path.resolve().parent / item).resolve()
        if not target.is_relative_to(root):
            raise InputError(
                f"{source.name}: {name} {item!r} leaves the folder {root}, which is not read; copy the file into it"
            )
        if target in chain:
            raise InputError(f"{source.name}: {name} {item!r} includes itself; remove the circle")
        if len(chain) > MOST:
            raise InputError(f"{source.name}: more than {MOST} files include each other; keep fewer")
        if not target.is_file():
            raise InputError(f"{source.name}: {name} {item!r} is missing ({target}); put the file there")
        below = _tree(read(target), read, root, [*chain, target], origins)
        for key, _ in leaves(below):
            origins[key] = f"include {item}"
        tree = _over(tree, below)
    return _over(tree, own)


def _over(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Return tables laid over each other: tables merge, everything else is replaced (mmengine's _delete_ clears)."""
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not value.get("_delete_"):
            out[key] = _over(below, value)
        else:
            out[key] = {k: v for k, v in value.items() if k != "_delete_"} if isinstance(value, dict) else value
    return out
