"""Which code a user's task is: its file, and the modules beside it or of its package that it imports."""

import ast
import hashlib
import importlib.util
from pathlib import Path

from isobatch.plan import Recipe
from isobatch.tasks.finding import from_file, named_tasks


def source_of(recipe: Recipe) -> str:
    """Return a hash of the code of a user's task, so that an edited task is another one.

    Data that it reads, and packages that it imports from elsewhere, are not seen.

    Args:
        recipe: names the task.

    Returns:
        16 digits; "" for a task of this package, or one whose file cannot be found.
    """
    module = module_of(recipe)
    if not module:
        return ""
    _, files = files_of(module)
    try:
        found = [files[name].read_bytes() for name in sorted(files)]
    except OSError:
        return ""
    return hashlib.sha256(b"\0".join(found)).hexdigest()[:16] if found else ""


def module_of(recipe: Recipe) -> str:
    """Return the module of a user's task.

    Args:
        recipe: names the task.

    Returns:
        Its dotted name; "" for a task of this package.
    """
    task = recipe.task or ""
    task = from_file(task)
    module = (task if ":" in task else named_tasks().get(task, "")).partition(":")[0]
    return "" if module.split(".")[0] == "isobatch" else module


def files_of(module: str) -> tuple[Path, dict[str, Path]]:
    """Return the files of a module: its own, and those beside it or of its package that it imports.

    Args:
        module: dotted name.

    Returns:
        The folder that imports start from, and dotted name -> file; none where the module cannot be found.
    """
    path = _origin(module)
    return (Path(), {}) if path is None else (_root(module, path), _files(module, path))


def root_of(module: str) -> Path | None:
    """Return the folder that the import of a module starts from, without reading what it imports.

    Args:
        module: dotted name.

    Returns:
        The folder; None where there is no such module in Python source.
    """
    path = _origin(module)
    return None if path is None else _root(module, path)


def _origin(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except Exception:  # whatever the user's package does on import: making the run says it better
        return None
    path = None if found is None or found.origin is None else Path(found.origin)
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _root(module: str, path: Path) -> Path:
    return path.parents[len(module.split(".")) - (0 if path.name == "__init__.py" else 1)]


def _files(module: str, path: Path) -> dict[str, Path]:
    """The modules that a module reaches without leaving its folder, or its package where others are installed there."""
    root = _root(module, path)
    installed = root.name in ("site-packages", "dist-packages")
    found, todo = {}, {module}
    while todo:
        name = todo.pop()
        place = path if name == module else _place(root, name)
        if place is None or name in found or (installed and name.split(".")[0] != module.split(".")[0]):
            continue
        found[name] = place
        todo |= {name.rpartition(".")[0]} - {""}
        todo |= _imported(place, name if place.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _place(root: Path, module: str) -> Path | None:
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py") if path.is_file()), None)


def _imported(path: Path, package: str) -> set[str]:
    """Dotted names that a file may import; `from a import b` may mean a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module or ""]))
            names |= {base, *(f"{base}.{one.name}" if base else one.name for one in node.names)} - {""}
    return names
