"""The command line: parse, call, print. Exit codes: 0 done or SAME, 1 internal error, 2 bad input, 3 UNDECIDED,
4 DIFFERENT, 130 interrupted."""

import sys
from pathlib import Path

import click
import typer

from isobatch.cli import plan, verify
from isobatch.errors import IsobatchError

EXIT_INTERNAL, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="isobatch",
    help="The same training run, at any batch size.",
    epilog="Exit codes: 0 done or SAME, 1 internal error, 2 bad input, 3 UNDECIDED, 4 DIFFERENT, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan.plan)
app.add_typer(verify.app, name="verify")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    """The same training run, at any batch size: plan every number, and check that the run stayed the same."""
    if version:
        from isobatch import __version__

        typer.echo(f"isobatch {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: as after the program's name.

    Returns:
        The exit code.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        code = app(arguments, standalone_mode=False)
    except (IsobatchError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        typer.echo(f"isobatch: {message}", err=True)
        return EXIT_INPUT
    except (KeyboardInterrupt, click.Abort):
        typer.echo("isobatch: interrupted; nothing half-written was left", err=True)
        return EXIT_INTERRUPTED
    except click.exceptions.Exit as leave:
        return leave.exit_code
    return code if isinstance(code, int) else 0
