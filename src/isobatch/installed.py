"""What is installed beside the base: the extras of this package, and what other distributions announce."""

import sys
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
    """Whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a.b
        return False


def import_from(folder: Path) -> None:
    """Let modules of a folder be imported: before what is installed, behind the standard library.

    A file random.py beside a user's task then is no other module's random.

    Args:
        folder: any.
    """
    place = str(folder.resolve())
    paths = [path for path in sys.path if path not in ("", place)]
    installed = [index for index, path in enumerate(paths) if Path(path).name in ("site-packages", "dist-packages")]
    paths.insert(installed[0] if installed else len(paths), place)
    sys.path[:] = paths


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
