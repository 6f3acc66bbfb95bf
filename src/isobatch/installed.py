"""What is installed beside the base: the extras of this package, and what other distributions announce."""

import re
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from isobatch.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

VERSION = "0.2.0"
"""Of isobatch; the metadata of both distributions say the same, and a test compares them."""
EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": ("torch", "numpy", "safetensors"),
    "verify": ("numpy", "scipy", "matplotlib", "jinja2"),
    "formats": ("ruamel.yaml", "tomlkit"),
    "tasks": ("sklearn",),
    "optimizers": ("pytorch_optimizer",),
    "lightning": ("lightning",),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
    "dask": ("distributed",),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "tensorboard": ("tensorboard",),
    "completion": ("shtab",),
}
"""Extra -> the modules that it brings; numpy comes with torch and with scipy."""

_INSTALLED = ("site-packages", "dist-packages")
_MODULES = (".py", ".so", ".pyd")
_OWN: set[str] = set()
"""Folders of users' files that modules may be imported from."""


class MissingExtra(InputError, ImportError):
    """Something was asked for that an optional part of the package brings; it says what to install."""


def need(*names: str) -> None:
    """Refuse to go on without the modules of some extras.

    Args:
        *names: of extras in EXTRAS.

    Raises:
        MissingExtra: names what is missing, and the line that installs it.

    Example:
        >>> need("torch")
    """
    missing = {extra: [module for module in EXTRAS[extra] if not _found(module)] for extra in names}
    wanted = [extra for extra, modules in missing.items() if modules]
    if wanted:
        absent = dict.fromkeys(module for modules in missing.values() for module in modules)
        raise MissingExtra(f'not installed: {", ".join(absent)}; pip install "isobatch[{",".join(wanted)}]"')


def extras() -> dict[str, list[str]]:
    """Return every extra with the modules of it that are missing, nothing imported.

    Returns:
        Extra -> modules; none where it is installed.

    Example:
        >>> extras()["torch"]
        []
    """
    return {extra: [module for module in modules if not _found(module)] for extra, modules in EXTRAS.items()}


def _found(module: str) -> bool:
    """Whether a module can be imported, without importing it; a user's own file of its name is not it."""
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # the parent of a.b
        return False
    return found is not None and str(Path(found.origin or "").parent) not in _OWN


def import_from(folder: Path) -> None:
    """Let modules of a folder be imported: before what is installed, behind the standard library.

    A file random.py beside a user's task then is no other module's random. A folder with a file that is named as a
    library that this package needs, or as one which that needs in turn, comes behind what is installed: nobody's
    torch is a user's torch.py.

    Args:
        folder: any.
    """
    place = str(folder.resolve())
    paths = [path for path in sys.path if path not in ("", place)]
    installed = [index for index, path in enumerate(paths) if Path(path).name in _INSTALLED]
    first = bool(installed) and not _named_like_a_library(folder, paths)
    paths.insert(installed[0] if first else len(paths), place)
    sys.path[:] = paths
    if folder.resolve().name not in _INSTALLED:
        _OWN.add(place)


def _named_like_a_library(folder: Path, paths: list[str]) -> bool:
    """Whether a module of a folder has the name of a library; the folders of a namespace hide nothing."""
    try:
        inside = [one.name.partition(".")[0] for one in folder.iterdir() if one.suffix in _MODULES or _package(one)]
    except OSError:  # a folder that is gone, or may not be read
        return False
    names = set(inside) - sys.stdlib_module_names
    needed = {
        "isobatch",
        "pydantic",
        "rich",
        *(module.partition(".")[0] for found in EXTRAS.values() for module in found),
    }
    if names & needed:
        return True
    hidden = {name for name in names if PathFinder.find_spec(name, paths) is not None}
    return bool(hidden) and not hidden.isdisjoint(_needed(needed))


def _package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def _needed(roots: set[str]) -> set[str]:
    """Modules of the distributions that bring some modules, and of those that they require in turn."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, requires

    brought = packages_distributions()
    todo, seen = [one for root in roots for one in brought.get(root, ())], set[str]()
    while todo:
        name = _plain(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        with suppress(PackageNotFoundError):
            for line in requires(name) or ():
                what, _, when = line.partition(";")
                if "extra ==" not in when:
                    todo.append(re.split(r"[^\w.-]", what.strip(), maxsplit=1)[0])
    return {module for module, by in brought.items() if not seen.isdisjoint(map(_plain, by))}


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def announced(group: str) -> dict[str, "EntryPoint"]:
    """Return what installed distributions announce under a name, nothing of it loaded.

    Args:
        group: of entry points, such as "isobatch.tasks".

    Returns:
        Name -> entry point, in order of the names.

    Example:
        >>> announced("isobatch.no-such-group")
        {}
    """
    from importlib.metadata import entry_points  # a fiftieth of a second, which `isobatch plan` does not spend

    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}
