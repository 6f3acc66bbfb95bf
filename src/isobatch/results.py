"""Results that programs can read: one folder, one result.json, written whole or not at all."""

import json
import math
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from isobatch.errors import InputError

HELD = {True: "held", False: "did not hold", None: "no verdict"}
"""What is said of a claim."""
_PACKAGES = ("isobatch", "torch", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on, and the date.

    Returns:
        Names and versions.
    """
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cores": str(os.cpu_count()),
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"date": datetime.now(UTC).strftime("%Y-%m-%d")}


def prepare(folder: str | Path) -> Path:
    """Make an output folder and prove that it can be written, before any work is spent.

    Args:
        folder: where results will go.

    Returns:
        The folder.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(folder)
    if path.is_file():
        raise InputError(f"cannot write to {path}: it is a file, and results take a folder; give another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; give another --out") from None
    return path


def write(path: Path, content: str | bytes, *, overwrite: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        content: text or bytes.
        overwrite: whether a file that exists is replaced.

    Raises:
        InputError: the folder cannot be written, or the file exists.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    name, where = None, "--out" if overwrite else "place"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        if overwrite:
            Path(name).replace(path)
        else:
            _place(Path(name), path)
    except FileExistsError:
        raise InputError(f"{path} exists; give another name, or overwrite it (--overwrite)") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another {where}") from None
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def _place(written: Path, path: Path) -> None:
    """Give a written file its name, unless somebody has it, be it since a moment ago."""
    try:
        path.hardlink_to(written)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        written.replace(path)


def write_result(folder: Path, data: dict[str, Any], name: str = "result.json") -> Path:
    """Write result.json: the data beside versions, date and command.

    Args:
        folder: an existing folder.
        data: plain values; numbers that are not finite become null.
        name: of the file.

    Returns:
        The file.
    """
    path = folder / name
    write(path, dump(data))
    return path


def read_result(folder: Path) -> dict[str, Any]:
    """Return what result.json of a folder holds.

    Args:
        folder: any.

    Returns:
        Its values, none where there is no readable one.
    """
    try:
        values = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def command() -> str:
    """Return the command line of this process, absolute paths cut to their last part.

    Returns:
        Words.
    """
    program, *words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    script = program.endswith(".py") and not program.endswith("__main__.py")
    return " ".join([f"python {program}" if script else "isobatch", *words])


def dump(data: dict[str, Any]) -> str:
    """Return data beside versions and command as JSON text.

    Args:
        data: plain values.

    Returns:
        JSON.
    """
    whole = {"versions": versions(), "command": command(), **data}
    return json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
