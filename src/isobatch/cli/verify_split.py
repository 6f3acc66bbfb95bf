"""isobatch verify split: does one update depend on how its batch is split?"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isobatch.cli.options import ending, folder_name, prepare, print_table, say
from isobatch.errors import InputError

PATIENCE = 300.0
_PROMPT = 2.0  # seconds in which an answer needs no progress


def add(levels: Any) -> None:
    """Add the command.

    Args:
        levels: the sub-parsers of verify.
    """
    text = "one update of B against k x B/k on your own trainer, component by component; names the cause"
    command = levels.add_parser(
        "split",
        help=text,
        description=text,
        epilog="exit codes: 0 batch-invariant, 2 could not be checked, 3 not comparable, 4 different",
    )
    command.add_argument("target", help="module:make or path/to/file.py:make, the function that makes the trainer")
    command.add_argument(
        "--parts", type=numbers, default=(2, 4), help="numbers of equal parts (2,4); uneven ones are added"
    )
    command.add_argument("--batch-size", type=int, default=8, help="samples an update (8)")
    command.add_argument(
        "--processes", type=int, help="also spread the batch over N processes, as torchrun starts them (1)"
    )
    command.add_argument("--seed", type=int, default=0, help="under which the trainer is made (0)")
    command.add_argument("--own-types", action="store_true", help="in the trainer's own types, not in float64")
    command.add_argument(
        "--timeout", type=float, default=PATIENCE, help="seconds after which everything is ended (300)"
    )
    command.add_argument("--markdown", action="store_true", help="print Markdown, to paste into a bug report")
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.add_argument("--out", type=folder_name, help="folder for result.json, report.md and report.html")
    command.set_defaults(call=run)


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between.

    Args:
        text: such as "2,4".

    Returns:
        The numbers.

    Raises:
        ArgumentTypeError: something else.

    Example:
        >>> numbers("2,4")
        (2, 4)
    """
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between, such as 2,4") from None


def run(chosen: argparse.Namespace) -> int:
    """Check a trainer and print what was found.

    Args:
        chosen: parsed arguments.

    Returns:
        0 batch-invariant, 3 not comparable, 4 different.

    Raises:
        InputError: no time at all.
    """
    from isobatch.executors.progress import Words
    from isobatch.split import split
    from isobatch.split.run import launched, rank, target

    if chosen.json and chosen.markdown:
        raise InputError("--json and --markdown are two ways to print one report; give one")
    if rank():
        return 0  # torchrun started several of us: the first one starts the processes that it needs
    folder = prepare(chosen, "result.json", "report.md", "report.html")
    with ending(), ExitStack() as stack:
        words = Words()
        stack.callback(words.clear)

        def waits(seconds: float) -> None:
            if not chosen.json and seconds >= _PROMPT:
                words(f"checking: {seconds:.0f} s, at most {chosen.timeout:g}")

        report = split(
            _late(chosen.target, target),
            chosen.parts,
            batch_size=chosen.batch_size,
            processes=launched() if chosen.processes is None else chosen.processes,
            seed=chosen.seed,
            float64=False if chosen.own_types else None,
            timeout=chosen.timeout,
            on_wait=waits,
        )
    _print(report, chosen, folder)
    return report.exit_code


def _late(name: str, target: Any) -> Any:
    """Return a make that imports its target in the process that runs it, where a hang or a crash is survived."""

    def make(settings: Any, seed: int) -> Any:
        from isobatch.split.target import made

        return made(target(name), seed)

    return make


def _print(report: Any, chosen: argparse.Namespace, folder: Path | None) -> None:
    from isobatch.installed import MissingExtra
    from isobatch.results import dump
    from isobatch.split.result import write_report

    data = {"target": chosen.target, **report.to_dict()}
    if folder is not None:
        try:
            write_report(folder, report, chosen.target)
        except MissingExtra as error:
            sys.stderr.write(f"isobatch: no report.html: {error}\n")
    if chosen.json:
        say(dump(data).rstrip())
    elif chosen.markdown:
        say(report.to_markdown().rstrip())
    else:
        title = f"1 x {report.batch} against {', '.join(report.layouts)} ({report.types}, {report.seconds:.1f} s)"
        names = ["component", "verdict", "ratio", "distance (tolerance)", "where"]
        print_table(title, [names, *map(list, report.rows())])
        say(report.headline)
        for one in report.causes:
            say(f"  - {one.what} ({one.confidence}): {one.seen}\n    {one.advice}")
        for note in report.notes:
            say(f"  - {note}")
