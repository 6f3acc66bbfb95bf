"""isobatch noise: how large a batch is worth it, measured and turned into advice."""

import argparse
from pathlib import Path
from typing import Any

from isobatch.cli.options import add_output, prepare, print_table, progress, say, seconds
from isobatch.errors import InputError


def add(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the sub-parsers.
    """
    text = "how large a batch is worth it?"
    noise = commands.add_parser("noise", help=text, description=text)
    levels = noise.add_subparsers(required=True, metavar="LEVEL")
    _add_sweep(levels)


def _add_sweep(levels: Any) -> None:

    text = "train at several batches, each at its fastest learning rate, and fit the critical batch"
    command = levels.add_parser("sweep", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML) with a task")
    command.add_argument("--batches", required=True, help="by comma: 4,8,16,32,64,128")
    command.add_argument("--goals", required=True, help="values of the metric to reach, by comma: 0.5,0.3")
    command.add_argument("--metric", default="loss", help="loss falls to its goal, any other rises to it (loss)")
    command.add_argument("--lrs", help="learning rates to try at every batch, by comma; a search unless given")
    command.add_argument("--seeds", type=int, default=3, help="runs at each batch and learning rate (3)")
    command.add_argument("--limit", type=int, help="steps of one run at most; the recipe's own unless given")
    command.add_argument("--smoothing", type=float, default=0.5, help="share of the old in the loss's average (0.5)")
    command.add_argument("--budget", help="begin nothing new after 30m, 2h; a second call with the same --out goes on")
    add_output(command)
    command.set_defaults(call=sweep)


def sweep(chosen: argparse.Namespace) -> int:
    """Sweep batches and learning rates.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch import critical
    from isobatch.critical.pages import sweep_table, write_sweep
    from isobatch.plan import Recipe

    recipe, folder, budget = Recipe.load(chosen.recipe), prepare(chosen.out), seconds(chosen.budget)
    batches = [int(b) for b in numbers("--batches", chosen.batches, whole=True)]
    rates = numbers("--lrs", chosen.lrs) if chosen.lrs is not None else None
    with progress(chosen.json) as (estimated, done):
        found = critical.sweep(
            recipe,
            goals=numbers("--goals", chosen.goals),
            batches=batches,
            lrs=dict.fromkeys(batches, rates) if rates is not None else None,
            seeds=chosen.seeds,
            limit=chosen.limit,
            metric=chosen.metric,
            smoothing=chosen.smoothing,
            out=folder,
            workers=chosen.workers,
            budget=budget,
            on_estimate=estimated,
            on_done=done,
        )
    data = found.to_dict()
    files = write_sweep(folder, data) if folder is not None else []
    if chosen.json:
        from isobatch.report import dump

        say(dump(data).rstrip())
        return 0
    print_table(f"fastest runs, {found.seeds} seeds, {len(found.tracks)} runs", sweep_table(data))
    for goal in found.goals:
        say(goal.sentence)
    if found.left:
        say(f"not begun within the budget: batches {', '.join(map(str, found.left))}; call again to go on")
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps runs and a report")
    return 0


def numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """Return a list of numbers given by comma.

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
            f"{option} {text!r} must be {kind} by comma, such as {'4,8,16' if whole else '0.5,0.3'}"
        ) from None
