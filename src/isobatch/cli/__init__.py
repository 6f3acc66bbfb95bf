"""The command line: parse, call, print.

Exit codes: 0 done or SAME, 1 internal error or an engine that is gone, 2 bad input, 3 UNDECIDED, 4 DIFFERENT,
130 interrupted, 141 the reader of the output is gone, 143 ended by SIGTERM. argparse and late imports keep
`isobatch plan` quick.
"""

import argparse
import errno
import os
import select
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

# pydantic looks for plugins through importlib.metadata, a fifth of its start-up; this command needs none
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from isobatch.cli import completion, doctor, noise, plan, study, train, verify
from isobatch.cli.options import Ended
from isobatch.errors import EngineError, IsobatchError
from isobatch.installed import VERSION, import_from

CODES = (
    "exit codes: 0 done or SAME, 1 internal error or an engine that is gone, 2 bad input, 3 UNDECIDED, 4 DIFFERENT, "
    "130 interrupted, 141 the reader of the output is gone, 143 ended by SIGTERM"
)
GONE, INPUT, INTERRUPTED, CLOSED, ENDED = 1, 2, 130, 141, 143
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main() -> None:
    """Run the command line and leave with its exit code."""
    with suppress(FileNotFoundError):  # the current folder may be gone
        import_from(Path.cwd())
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    try:
        code: Any = run(sys.argv[1:])
    except SystemExit as done:  # argparse has said what there is to say
        code = done.code
    sys.exit(_delivered(code))


def _delivered(code: Any) -> Any:
    """Return the exit code once everything said has been read or written, another one where it cannot be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left goes nowhere, without a word
            if isinstance(error, BrokenPipeError):
                return CLOSED
            if code != INPUT:  # which has its line already
                sys.stderr.write(f"isobatch: the output cannot be written: {error.strerror}\n")
            return INPUT
    return code


def _gone() -> bool:
    """Whether nobody reads what is printed any more; where that cannot be asked, a broken pipe says so."""
    if getattr(select, "poll", None) is None:  # Windows
        return True
    asked = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            asked.register(stream.fileno(), 0)  # errors are told unasked
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: as after the program's name.

    Returns:
        The exit code.
    """
    try:
        chosen = parser().parse_args(arguments)
        return chosen.call(chosen)
    except IsobatchError as error:
        if os.environ.get("ISOBATCH_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exception(error)
        sys.stderr.write(f"isobatch: {error}\n")
        return GONE if isinstance(error, EngineError) else INPUT
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _gone():
            return CLOSED
        if error.errno not in _FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"isobatch: {error.strerror}{where}; free space, and give the command again\n")
        return INPUT
    except Ended:
        sys.stderr.write("isobatch: asked to end; what was finished is kept, nothing half-written was left\n")
        return ENDED
    except KeyboardInterrupt:
        sys.stderr.write("isobatch: interrupted; what was finished is kept, nothing half-written was left\n")
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command.

    Returns:
        A parser whose result holds the function to call as `call`.
    """
    root = argparse.ArgumentParser("isobatch", description="The same training run, at any batch size.", epilog=CODES)
    text = "show versions, and which extras are installed"
    root.add_argument("--version", action=_Version, nargs=0, help=text)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    plan.add(commands)
    verify.add(commands)
    noise.add(commands)
    train.add(commands)
    study.add(commands)
    doctor.add(commands)
    completion.add(commands, parser)
    return root


class _Version(argparse.Action):
    """Print the versions only where they are asked for: looking for the extras takes time that a plan does not have."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from isobatch.installed import extras

        found = extras()
        have = [name for name, missing in found.items() if not missing]
        lack = [name for name in found if name not in have]
        lines = [f"isobatch {VERSION} (Python {sys.version.split()[0]})"]
        lines.append(f"extras: {', '.join(have) or 'none'}; not installed: {', '.join(lack) or 'none'}")
        sys.stdout.write("\n".join(lines) + "\n")
        parser.exit()
