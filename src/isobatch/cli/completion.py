"""isobatch completion: what a shell offers when Tab is pressed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobatch.cli.options import folder_name, say
from isobatch.installed import need

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/isobatch",
    "zsh": "a folder of $fpath, as _isobatch",
    "fish": "~/.config/fish/completions/isobatch.fish",
}


def add(commands: Any, parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
        parser: makes the whole parser, once it is asked for.
    """
    text = "print what a shell needs to complete commands, options and files"
    places = "; ".join(f"{shell}: into {place}" for shell, place in WHERE.items())
    command = commands.add_parser("completion", help=text, description=text, epilog=places)
    command.add_argument("shell", choices=list(WHERE), help="whose Tab it is")
    command.set_defaults(call=lambda chosen: complete(chosen, parser()))


def complete(chosen: argparse.Namespace, whole: argparse.ArgumentParser) -> int:
    """Print the script for a shell.

    Args:
        chosen: parsed arguments.
        whole: the parser of all commands.

    Returns:
        0.
    """
    need("completion")
    import shtab  # ty: ignore[import-not-found]

    _files(whole, {Path: shtab.FILE, folder_name: shtab.DIRECTORY})
    say(shtab.complete(whole, shell=chosen.shell).rstrip())
    return 0


def _files(parser: argparse.ArgumentParser, kinds: dict[Any, Any]) -> None:
    """Mark the arguments that are files and folders, in every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _files(child, kinds)
        elif action.type in kinds:
            setattr(action, "complete", kinds[action.type])  # noqa: B010
