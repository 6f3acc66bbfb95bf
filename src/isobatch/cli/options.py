"""What several commands share: options, progress, tables."""

import argparse
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobatch.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from isobatch.plan import Recipe

STYLES = {
    "SAME": "green", "IDENTICAL": "green", "EQUIVALENT": "green", "DIFFERENT": "red", "UNDECIDED": "yellow",
    "NOT COMPARABLE": "yellow", "identified": "green", "not identified": "yellow",
}  # fmt: skip
DEVICE = "cpu, cuda or cuda:1, then options after commas: bf16, channels-last, compile; such as cuda,bf16,compile (cpu)"
CELLS = "cells/ (finished runs: the same command goes on from there)"
_LEAST, _MOST = 6, 20
_BUDGET = re.compile(r"^([0-9]+(?:\.[0-9]+)?)([smh])$")


def add_recipe(command: argparse.ArgumentParser, *, required: bool = True, recipe: str | None = None) -> None:
    """Add the recipe file and the batch size.

    Args:
        command: the command's parser.
        required: whether the batch size must be given.
        recipe: "?" where the recipe may be left out.
    """
    text = "recipe file: isobatch's own TOML; plan reads the files of other stacks too (docs/formats.md)"
    command.add_argument("recipe", type=Path, nargs=recipe, help=text)
    command.add_argument("--batch-size", type=int, required=required, help="new global batch, in the recipe's unit")


def add_output(command: argparse.ArgumentParser) -> None:
    """Add where results go and how they look.

    Args:
        command: the command's parser.
    """
    command.add_argument("--workers", type=int, help="processes; one a core, or a GPU, unless given")
    text = "where runs train: local, dask://host:8786, ray, ray://host:10001, slurm:partition=NAME, module:executor"
    command.add_argument("--on", default="local", metavar="WHERE", help=f"{text} (local)")
    command.add_argument("--out", type=folder_name, help="folder for result.json, pictures and pages")
    command.add_argument("--json", action="store_true", help="print JSON for programs")


def folder_name(text: str) -> Path:
    """Return a folder given on the command line.

    Args:
        text: its name.

    Returns:
        The folder.

    Raises:
        ArgumentTypeError: no name at all, which would be the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty folder name; give one, or leave the option out")
    return Path(text)


def prepare(chosen: argparse.Namespace, *names: str) -> Path | None:
    """Make the folder of --out, prove that it can be written, and say what it will hold, all before any work.

    Args:
        chosen: parsed arguments.
        *names: of the files and folders that the command writes.

    Returns:
        The folder, or None.
    """
    if chosen.out is None:
        return None
    from isobatch.results import prepare as make

    folder = make(chosen.out)
    if names and not chosen.json:
        sys.stderr.write(f"isobatch: {folder} will hold {', '.join(names)}\n")
    return folder


def load_recipe(path: Path) -> "Recipe":
    """Read a recipe that is trained: its own task is looked for beside it too, as a file or as a module.

    Args:
        path: of the recipe.

    Returns:
        The recipe, its task by the name under which workers import it.
    """
    from isobatch.plan import Recipe

    recipe = Recipe.load(path)
    if recipe.task is None or ":" not in recipe.task:
        return recipe
    from isobatch.tasks import beside

    return beside(recipe, path.parent)


def runs_kept(chosen: argparse.Namespace, folder: Path | None, recipe: "Recipe") -> Path:
    """Return where finished runs are kept, so that whatever fails after them costs none; said where nobody chose it.

    Args:
        chosen: parsed arguments.
        folder: that of --out, None without one.
        recipe: whose runs they are.

    Returns:
        The folder: under the user's cache unless given.
    """
    if folder is not None:
        return folder
    from isobatch.verify.store import runs_folder

    kept = runs_folder(chosen.call.__name__, recipe)
    if not chosen.json:
        sys.stderr.write(f"isobatch: finished runs are kept in {kept}; the same command goes on from there\n")
    return kept


def seconds(budget: str | None) -> float | None:
    """Return a time such as 10m in seconds.

    Args:
        budget: number and s, m or h; None for none.

    Returns:
        Seconds, or None.

    Raises:
        InputError: not a time.

    Example:
        >>> seconds("10m")
        600.0
    """
    if budget is None:
        return None
    match = _BUDGET.match(budget)
    if match is None:
        raise InputError(f"--budget {budget!r} must be a number and s, m or h, such as 10m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class Ended(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


@contextmanager
def ending() -> Generator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with what is finished kept; outside the main thread nothing changes."""

    def end(*_: object) -> None:
        raise Ended

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def executor_of(chosen: argparse.Namespace) -> "Generator[Executor | None]":
    """Open what `--on` names, and end what it runs where the process is asked to end (SIGTERM).

    Args:
        chosen: parsed arguments.

    Yields:
        The executor; None for processes of this machine.
    """
    with ending():
        if chosen.on == "local":
            yield None
            return
        from isobatch.executors import opened

        with opened(chosen.on, workers=chosen.workers, device=chosen.device) as executor:
            yield executor


@contextmanager
def progress(quiet: bool) -> Generator[tuple[Callable[..., None], Callable[[Any], None]]]:
    """Show a bar on stderr while runs are trained; a line a minute where stderr is no terminal.

    Args:
        quiet: show nothing.

    Yields:
        A function for the estimate and one for each finished run.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from isobatch.executors.progress import Line, State, watching

    console = Console(stderr=True, quiet=quiet)
    hidden = quiet or not console.is_terminal
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("training runs", total=None)

        line = Line(sys.stderr)

        def estimated(expected: float, runs: int, what: str = "runs") -> None:
            about = f"estimated {expected / 60:.1f} minutes for " if expected else ""
            console.print(f"{about}{runs} {what}")
            bar.update(task, total=runs)
            line.start(runs)

        def show(state: State) -> None:
            found = max(0, int(bar.tasks[task].completed) - line.over(state).done)
            whole = line.over(state, found)
            failed = f", {whole.failed} failed" if whole.failed else ""
            bar.update(task, description=f"{whole.running} running, {whole.waiting} waiting{failed}")
            if hidden and not quiet:
                line(state, found)

        with watching(show):
            yield estimated, lambda _: bar.advance(task)


def print_table(title: str, rows: list[list[str]]) -> None:
    """Print rows of cells as a table, verdicts in colour.

    Args:
        title: above the table.
        rows: the first one is the header.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table(title=title, title_style="bold")
    widths, least = [], []
    for index, name in enumerate(rows[0]):
        cells = [row[index] for row in rows[1:]]
        words = [w for cell in cells for w in ([cell] if cell in STYLES or index == 0 else cell.split())]
        least.append(min(max([_LEAST, *map(len, words), *map(len, name.split())]), _MOST))
        widths.append(max([least[-1], len(name), *map(len, cells)]))
    room = console.width - 3 * len(widths) - 1
    while sum(widths) > room and widths != least:  # the column that is furthest above what it needs gives way
        widest = max(range(len(widths)), key=lambda index: widths[index] - least[index])
        widths[widest] -= 1
    if sum(widths) <= room:
        for name, width in zip(rows[0], widths, strict=True):
            table.add_column(name, overflow="fold", width=width)
        for row in rows[1:]:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        console.print(table)
        return
    console.print(Text(title, style="bold"))
    for row in rows[1:]:  # too narrow for columns: a line a cell, verdicts whole
        for index, (name, cell) in enumerate(zip(rows[0], row, strict=True)):
            lead = f"{'- ' if index == 0 else '  '}{name}: " if name else "  "
            console.print(Text.assemble(lead, (cell, STYLES.get(cell, ""))))


def say(text: str) -> None:
    """Print a line for people or programs.

    Args:
        text: the line, without its end.
    """
    sys.stdout.write(text + "\n")


def numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """Return a list of numbers that are separated by commas.

    Args:
        option: its name, for the message.
        text: such as "4,8,16".
        whole: whether they must be whole numbers.

    Returns:
        The numbers.

    Raises:
        InputError: not such a list.

    Example:
        >>> numbers("--goals", "0.5,0.3")
        [0.5, 0.3]
    """
    try:
        return [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise InputError(
            f"{option} {text!r} must be {kind} separated by commas, such as {'4,8,16' if whole else '0.5,0.3'}"
        ) from None
