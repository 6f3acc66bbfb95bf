"""The errors and warnings that users meet: each says the value, the allowed range and the way out."""

import os
import sys
import warnings
from pathlib import Path


class IsobatchError(Exception):
    """Base of every error that the library raises on purpose."""


class InputError(IsobatchError, ValueError):
    """A value, key or file that cannot be honoured; the command line exits with 2."""


def unreadable(what: str, path: object, error: Exception) -> InputError:
    """Return the error for a user's file that cannot be read: what is wrong with it, and the way out.

    Args:
        what: the file is, such as "the recipe"; "" where only its name is known.
        path: of the file.
        error: what reading it raised.

    Returns:
        The error, to be raised.

    Example:
        >>> str(unreadable("the recipe", "new.toml", FileNotFoundError(2, "No such file or directory")))
        'cannot read the recipe new.toml: No such file or directory; correct the path'
    """
    ways = (
        (FileNotFoundError, "correct the path"),
        (IsADirectoryError, "name a file in it"),
        (PermissionError, "let yourself read it (chmod u+r), or give another file"),
        (UnicodeDecodeError, "save it as text in UTF-8, or give another file"),
    )
    way = next((way for kind, way in ways if isinstance(error, kind)), "give another file")
    why = "it is not a text file in UTF-8" if isinstance(error, UnicodeDecodeError) else None
    said = why or getattr(error, "strerror", None) or error
    return InputError(f"cannot read {what}{' ' if what else ''}{path}: {said}; {way}")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's that led here, through however many calls, hooks and context managers it did.

    Args:
        message: what is the matter, and what was done.
        category: of the warning.

    Example:
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     warn("the average starts again")
        >>> str(said[0].message)
        'the average starts again'
    """
    ours, python = str(Path(__file__).parent) + os.sep, str(Path(os.__file__).parent) + os.sep
    frames = [sys._getframe()]
    while frames[-1].f_back is not None:
        frames.append(frames[-1].f_back)
    outside = [one for one in frames if not one.f_code.co_filename.startswith((ours, "<frozen "))]
    installed = (python, f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
    users = (one for one in outside if not any(part in one.f_code.co_filename for part in installed))
    frame = next(users, outside[0] if outside else frames[-1])
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__", "<unknown>"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


class SaveError(IsobatchError):
    """A checkpoint could not be written; the older ones are untouched and the run may go on."""


class NonFiniteError(IsobatchError, ArithmeticError):
    """A loss or gradient that is not finite stopped the run; nothing was applied.

    Args:
        message: what happened, with step and samples seen.
        seen: samples of applied updates when the run stopped.
        parameter: name of the first parameter with a bad gradient, None when only the loss was bad.
    """

    def __init__(self, message: str, seen: int = 0, parameter: str | None = None):
        super().__init__(message)
        self.seen = seen
        self.parameter = parameter


class PeerError(IsobatchError):
    """A node of decentralized training is gone or silent; this node's weights are those of its last whole step.

    Args:
        message: who, at which step, and what to do.
        node: the lost node, None where it is not known.
        step: steps that were complete.
    """

    def __init__(self, message: str, node: int | None = None, step: int = 0):
        super().__init__(message)
        self.node = node
        self.step = step


class WorkerLost(IsobatchError):
    """The process or machine that made a call is gone; the call may be made again elsewhere."""


class EngineError(IsobatchError):
    """What spreads runs over machines is gone; finished runs are kept, and the command line exits with 1."""
