"""What travels to a worker: the user's own modules, by value, so that no shared disk is needed."""

import importlib
import sys
import tempfile
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from isobatch.errors import InputError
from isobatch.tasks.sources import files_of

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

    A module of an installed distribution (under site-packages) or of this package is not sent: workers have it
    installed, in the same version. Any other is sent with the modules of its folder that it imports.

    Args:
        *modules: dotted names.

    Returns:
        Their files.

    Raises:
        InputError: more than LARGEST bytes.
    """
    found: dict[str, bytes] = {}
    for module in modules:
        root, files = files_of(module)
        if root.name not in ("site-packages", "dist-packages"):
            found |= {path.relative_to(root).as_posix(): path.read_bytes() for path in files.values()}
    size = sum(map(len, found.values()))
    if size > LARGEST:
        raise InputError(
            f"the code of task module {', '.join(modules)} has {size:,} bytes and is sent to every worker; at most "
            f"{LARGEST:,}: install it on the workers as a package instead"
        )
    return Bundle(tuple(sorted(found.items())))


_LOCK = threading.Lock()
_FOLDERS: dict[str, tempfile.TemporaryDirectory[str]] = {}


def unpack(sent: Bundle) -> None:
    """Make modules importable in this process; other versions of them that it has loaded are forgotten.

    Args:
        sent: the modules.
    """
    if not sent.files:
        return
    with _LOCK:
        if sent.digest not in _FOLDERS:
            _FOLDERS[sent.digest] = tempfile.TemporaryDirectory(prefix="isobatch-task-")
            for name, content in sent.files:
                path = Path(_FOLDERS[sent.digest].name, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        folder = _FOLDERS[sent.digest].name
        if sys.path[:1] == [folder]:
            return
        ours = {one.name for one in _FOLDERS.values()}
        sys.path[:] = [folder, *(path for path in sys.path if path not in ours)]
        if any(_differs(module, content) for module, (_, content) in zip(sent.modules, sent.files, strict=True)):
            for name in {part for module in sent.modules for part in _parents(module)}:
                sys.modules.pop(name, None)
        importlib.invalidate_caches()


def _differs(module: str, content: bytes) -> bool:
    """Whether this process has loaded a module from other text; a forked one has its parent's."""
    loaded = sys.modules.get(module)
    place = None if loaded is None else getattr(loaded, "__file__", None)
    return place is not None and (not Path(place).is_file() or Path(place).read_bytes() != content)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
