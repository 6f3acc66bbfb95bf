"""isobatch noise fit: the critical batch of a table that somebody measured."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobatch.cli.noise_advice import add_advise
from isobatch.cli.options import folder_name, prepare, print_table, say
from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.critical import TableFit

_UNITS = ("steps", "samples", "tokens", "epochs")


def add_fit(levels: Any) -> None:
    """Add the command.

    Args:
        levels: the sub-parsers.
    """
    text = "critical batch from a table: batch, steps or samples to the goal, seeds"
    command = levels.add_parser("fit", help=text, description=text)
    command.add_argument("table", type=Path, metavar="FILE", help="CSV, JSON, exported runs, MLPerf's rcps_*.json")
    command.add_argument("--unit", choices=_UNITS, help="of the values, where no column declares it")
    command.add_argument("--batch", help="column of the batch (batch, batch_size, global_batch_size)")
    command.add_argument("--value", help="column of the values (steps, samples, tokens, epochs, steps_to_target)")
    text = 'of histories: what a run has to reach, "val/loss <= 3.2"; its first evaluation there counts'
    command.add_argument("--goal", help=text)
    command.add_argument("--size", type=float, help="samples in one unit: of an epoch; 1/length for tokens as a number")
    command.add_argument("--round", help="MLPerf round, such as training_4.1.0; read off the folder unless given")
    command.add_argument("--level", type=float, default=0.95, help="of the intervals (0.95)")
    command.add_argument("--keep-outliers", action="store_true", help="leave nothing out")
    command.add_argument("--draws", type=int, default=1000, help="bootstrap draws over seeds (1000)")
    command.add_argument("--advise", metavar="RECIPE", help='go on to advise; options too: "recipe.toml --devices 8"')
    command.add_argument("--out", type=folder_name, help="folder for result.json, picture and page")
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.set_defaults(call=fit)


def fit(chosen: argparse.Namespace) -> int:
    """Fit a table.

    Args:
        chosen: parsed arguments.

    Returns:
        0.

    Raises:
        InputError: --advise beside --json, or with a critical batch that is not identified.
    """
    from isobatch import critical
    from isobatch.critical.pages import fit_rows, write_fit
    from isobatch.results import dump

    if chosen.advise is not None and chosen.json:
        raise InputError("--advise beside --json prints two results; leave one out")
    folder = prepare(chosen, "result.json", "fit.png", "report.html")
    table = critical.read_table(
        chosen.table,
        unit=chosen.unit,
        batch=chosen.batch,
        value=chosen.value,
        size=chosen.size,
        edition=chosen.round,
        goal=chosen.goal,
    )
    found = critical.fit_table(table, level=chosen.level, outliers=not chosen.keep_outliers, draws=chosen.draws)
    then = _next(found)
    data = found.to_dict() | {"next": then}
    files = write_fit(folder, data) if folder is not None else []
    if chosen.json:
        say(dump(data).rstrip())
        return 0
    print_table(f"{found.name}: {found.amount} to the goal", fit_rows(data))
    for line in found.sentences:
        say(line)
    for note in found.notes:
        say(f"  - {note}")
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps a report")
    if chosen.advise is None:
        say(then)
        return 0
    if not found.hyperbola.identified:
        raise InputError(f"{found.sentences[0]}; advise needs one that is identified")
    return _advise([*shlex.split(chosen.advise), *_words(found)])


def _words(found: "TableFit") -> list[str]:
    """The fit as options of advise."""
    interval, scale = found.hyperbola.critical, found.scale
    words = ["--critical", ",".join(f"{v:.6g}" for v in (interval.low, interval.value, interval.high))]
    if scale is not None:
        words += ["--samples", f"{found.hyperbola.samples.value * scale:.6g}"]
    return words


def _next(found: "TableFit") -> str:
    if not found.hyperbola.identified:
        return "not identified: no advice follows from it"
    return f"which batch pays: isobatch noise advise RECIPE {' '.join(_words(found))}"


def _advise(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="isobatch noise")
    add_advise(parser.add_subparsers(required=True, metavar="LEVEL"))
    chosen = parser.parse_args(["advise", *words])
    return int(chosen.call(chosen))
