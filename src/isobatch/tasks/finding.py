"""Which function a name means: a task that is shipped, one that is installed, or your own in a module or a file."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isobatch.errors import InputError
from isobatch.installed import announced, import_from
from isobatch.plan import Recipe

SHIPPED = {
    "digits": "isobatch.tasks.digits:make",
    "digits-cnn": "isobatch.tasks.digits:make_cnn",
    "digits-lstm": "isobatch.tasks.digits:make_lstm",
    "quadratic": "isobatch.tasks.quadratic:make",
    "text": "isobatch.tasks.text:make",
    "text-lstm": "isobatch.tasks.text:make_lstm",
}
"""Tasks of this package; others are found by their entry points, see `named_tasks`."""
WHOLE = "the environment variable ISOBATCH_TRACEBACK=1 shows the whole traceback"
_NOBODYS = ("/torch/", "<frozen ", "/importlib/", __file__)
"""Places of frames that say nothing about a user's code."""


class MakeError(InputError):
    """A user's function that makes runs has failed; its cause is what it raised."""


def named_tasks() -> dict[str, str]:
    """Return every task that has a name: those of this package, and those that installed distributions announce.

    Returns:
        Name -> "module:function", from SHIPPED and the entry points "isobatch.tasks".
    """
    return {name: point.value for name, point in announced("isobatch.tasks").items()} | SHIPPED


def find(name: str, said: str = "task") -> Callable[..., Any]:
    """Return the function that makes a task's runs, or another one of a user's that is named the same way.

    Args:
        name: a shipped task, one of an installed distribution, "my_pkg.mod:make", or "path/to/file.py:make".
        said: what the name is of, for messages.

    Returns:
        For a task, make(settings, seed) -> Run.

    Raises:
        InputError: no such task, or a module or function that cannot be imported.
    """
    target = from_file(SHIPPED.get(name, name), said=said)
    if ":" not in target:
        known = named_tasks()
        if name not in known:
            raise InputError(f"{said}={name!r} {_unknown(known)}")
        target = known[name]
    module, _, function = target.rpartition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's module does on import
        raise InputError(f"{said}={name!r} cannot be imported: {told(error)}; {_importable(module, error)}") from error
    make = getattr(found, function, None)
    if not callable(make):
        where = getattr(found, "__file__", None) or "part of Python"
        raise InputError(
            f"{said}={name!r}: {module} has no function {function!r} ({where}); name one that is there, or say "
            '"path/to/file.py:make"'
        )
    return make


def from_file(task: str, *folders: Path, said: str = "task") -> str:
    """Return the name that a task in a file is imported by, here and in workers; its folder joins the import path.

    Args:
        task: such as "path/to/own.py:make"; any other name is given back.
        *folders: where a relative path starts; the current folder unless given.
        said: what the name is of, for messages.

    Returns:
        Such as "own:make".

    Raises:
        InputError: no such file, or one whose name is that of another module.

    Example:
        >>> from_file("examples/own_task.py:make"), from_file("digits")
        ('own_task:make', 'digits')
    """
    place, _, function = task.rpartition(":")
    if not place.endswith(".py"):
        return task
    tried = [(folder / place).resolve() for folder in (*folders, Path())]
    path = next((one for one in tried if one.is_file()), None)
    if path is None:
        raise InputError(f"{said}={task!r}: no file {' or '.join(dict.fromkeys(map(str, tried)))}; correct the path")
    import_from(path.parent)
    importlib.invalidate_caches()
    if "." in path.stem:  # the only thing that the name of an imported file cannot hold
        raise InputError(f"{said}={task!r}: {path.name} has a dot in its name, which parts packages; rename the file")
    other = _origin(path.stem)
    if other != str(path):
        raise InputError(f"{said}={task!r}: {path.stem} is the name of another module, {other}; rename the file")
    return f"{path.stem}:{function}"


def beside(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe whose own task is looked for in a folder too, as a file or as a module.

    Args:
        recipe: any.
        folder: that of the recipe's file.

    Returns:
        The recipe, its own task by the name under which workers import it.

    Raises:
        InputError: a file that is in neither folder, or whose name is that of another module.

    Example:
        >>> recipe = Recipe.load("examples/digits.toml").model_copy(update={"task": "own_task.py:make"})
        >>> beside(recipe, Path("examples")).task
        'own_task:make'
    """
    if recipe.task is None or ":" not in recipe.task:
        return recipe
    if str(folder.resolve()) not in sys.path:
        import_from(folder)
    return recipe.model_copy(update={"task": from_file(recipe.task, folder)})


def told(error: BaseException) -> str:
    """Return an exception in one line: type, message, place in the user's code, and a way out where one is known.

    Args:
        error: what was raised.

    Returns:
        Text.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if not any(part in f.filename for part in _NOBODYS)), None)
    where = f" ({place.filename}:{place.lineno}, in {place.name})" if place is not None else ""
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    return f"{type(error).__name__}: {text}{where}{_way_out(error)}"


def _way_out(error: BaseException) -> str:
    text = str(error).lower()
    full = ("not enough memory", "out of memory", "allocate memory", "invalid buffer size")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in full):
        return "; out of memory: check a smaller model or a smaller --batch-size"
    if any(word in text for word in ("cuda", "nvidia", "gpu", "hip")) and not torch.cuda.is_available():
        return "; it needs a GPU and there is none here: let make choose the device (cpu where cuda is not available)"
    return ""


def _origin(module: str) -> str:
    """The file that a name is imported from, or what is known of it otherwise."""
    try:
        found = importlib.util.find_spec(module)
    except ValueError:  # a module that was made in no file, such as __main__ of python -c
        return "which this process holds"
    if found is None or found.origin is None:
        return "which has no file"
    return str(Path(found.origin).resolve()) if Path(found.origin).exists() else found.origin


def _importable(module: str, error: BaseException) -> str:
    """The way out where a module cannot be imported: it is not found, or it fails."""
    absent = isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}.")
    if absent or not module.strip("."):
        return 'is its folder on PYTHONPATH? or say "path/to/file.py:make"'
    return f"mend what it does when it is imported; {WHOLE}"


def _unknown(known: dict[str, str]) -> str:
    here = any(target.startswith("isobatch_studies.") for target in known.values())
    more = "" if here else "; the tasks of the studies come with: pip install isobatch-studies"
    return (
        f'is not installed ({", ".join(sorted(known))}){more}; your own is "my_pkg.mod:make" or "path/to/file.py:make"'
    )
