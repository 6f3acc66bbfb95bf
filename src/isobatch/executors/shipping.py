"""What travels to a worker: the user's own modules, by value, so that no shared disk is needed."""

import importlib
import sys
import sysconfig
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from isobatch.errors import InputError
from isobatch.tasks.sources import files_of, root_of

_INSTALLED = ("site-packages", "dist-packages")
LARGEST = 8 * 2**20
"""Bytes of source that travel at most."""


@dataclass(frozen=True)
class Bundle:
    """Modules by value.

    Args:
        files: path inside their folder, and text, in order of the paths.
    """

    files: tuple[tuple[str, bytes], ...] = ()

    @property
    def digest(self) -> str:
        """Name of the content."""
        return sha256(repr(self.files).encode()).hexdigest()[:16]

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted names."""
        plain = (name.removesuffix(".py").removesuffix("/__init__") for name, _ in self.files)
        return tuple(name.replace("/", ".") for name in plain)


def bundle(*modules: str) -> Bundle:
    """Return the modules that workers cannot be expected to have.

    A module of an installed distribution (under site-packages), of Python or of this package is not sent: workers have
    it installed, in the same version. Any other is sent with the modules of its folder that it imports.

    Args:
        *modules: dotted names.

    Returns:
        Their files.

    Raises:
        InputError: more than LARGEST bytes.
    """
    found: dict[str, bytes] = {}
    for module in modules:
        root = root_of(module)
        if root is not None and root.name not in _INSTALLED and root != Path(sysconfig.get_path("stdlib")):
            files = files_of(module)[1]
            mine = {name: path for name, path in files.items() if not _another(name, path)}
            found |= {path.relative_to(root).as_posix(): path.read_bytes() for path in mine.values()}
    size = sum(map(len, found.values()))
    if size > LARGEST:
        raise InputError(
            f"the code of task module {', '.join(modules)} has {size:,} bytes and is sent to every worker; at most "
            f"{LARGEST:,}: install it on the workers as a package instead"
        )
    return Bundle(tuple(sorted(found.items())))


_FOLDERS: dict[str, tempfile.TemporaryDirectory[str]] = {}
_LOADED: dict[str, dict[str, ModuleType]] = {}
"""Modules of each bundle, kept between calls."""


@contextmanager
def unpacked(sent: Bundle) -> Generator[None]:
    """Make modules importable while the block runs; others of their names that this process has are put aside.

    A worker may serve other people's calls too, whose modules have the same names.

    Args:
        sent: the modules.

    Yields:
        None.
    """
    if not sent.files:
        yield
        return
    if sent.digest not in _FOLDERS:
        _FOLDERS[sent.digest] = _written(sent)  # whole: where the disk was full, the next call tries again
    folder, names = _FOLDERS[sent.digest].name, {module.partition(".")[0] for module in sent.modules}
    before = _taken(names)
    sys.modules.update(_LOADED.get(sent.digest, {}))
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        _LOADED[sent.digest] = _taken(names)
        sys.modules.update(before)


def _written(sent: Bundle) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="isobatch-task-")
    try:
        for name, content in sent.files:
            path = Path(folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except BaseException:
        folder.cleanup()
        raise
    return folder


def _taken(names: set[str]) -> dict[str, ModuleType]:
    """Modules of some names, and those below them, taken out of the loaded ones."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}


def _another(module: str, path: Path) -> bool:
    """Whether a name means another file than the one beside the task: a `types.py` there is not Python's."""
    loaded = sys.modules.get(module)
    return loaded is not None and getattr(loaded, "__file__", None) != str(path) and module in sys.stdlib_module_names
