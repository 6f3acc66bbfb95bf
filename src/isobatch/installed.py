"""What is installed beside the base: the extras of this package, and what other distributions announce."""

from importlib.util import find_spec
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
}
"""Extra -> the modules that it brings; numpy comes with torch and with scipy."""


class MissingExtra(InputError, ImportError):
    """Something was asked for that an optional part of the package brings; it says what to install."""


def need(*extras: str) -> None:
    """Refuse to go on without the modules of some extras.

    Args:
        *extras: names in EXTRAS.

    Raises:
        MissingExtra: names what is missing, and the line that installs it.

    Example:
        >>> need("torch")
    """
    missing = {extra: [name for name in EXTRAS[extra] if not _found(name)] for extra in extras}
    wanted = [extra for extra, names in missing.items() if names]
    if wanted:
        absent = dict.fromkeys(name for names in missing.values() for name in names)
        raise MissingExtra(f'not installed: {", ".join(absent)}; pip install "isobatch[{",".join(wanted)}]"')


def _found(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a.b
        return False


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
