"""The command line: parse, call, print.

Exit codes: 0 done or SAME, 1 internal error or an engine that is gone, 2 bad input, 3 UNDECIDED, 4 DIFFERENT,
130 interrupted, 143 ended by SIGTERM. argparse and late imports keep `isobatch plan` quick.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

# pydantic looks for plugins through importlib.metadata, a fifth of its start-up; this command needs none
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from isobatch.cli import noise, plan, study, train, verify
from isobatch.cli.options import Ended
from isobatch.errors import EngineError, IsobatchError
from isobatch.installed import VERSION

CODES = (
    "exit codes: 0 done or SAME, 1 internal error or an engine that is gone, 2 bad input, 3 UNDECIDED, 4 DIFFERENT, "
    "130 interrupted, 143 ended by SIGTERM"
)
GONE, INPUT, INTERRUPTED, ENDED = 1, 2, 130, 143


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(run(sys.argv[1:]))


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
    root.add_argument("--version", action="version", version=f"isobatch {VERSION}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    plan.add(commands)
    verify.add(commands)
    noise.add(commands)
    train.add(commands)
    study.add(commands)
    return root
