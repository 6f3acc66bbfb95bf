"""isobatch noise: how large a batch is worth it, measured and turned into advice."""

import argparse
from pathlib import Path
from typing import Any

from isobatch.cli.noise_advice import add_advise, add_branch
from isobatch.cli.noise_fit import add_fit
from isobatch.cli.options import (
    CELLS,
    DEVICE,
    add_output,
    executor_of,
    folder_name,
    load_recipe,
    numbers,
    prepare,
    print_table,
    progress,
    runs_kept,
    say,
    seconds,
)
from isobatch.units import whole


def add(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the sub-parsers.
    """
    text = "how large a batch is worth it?"
    noise = commands.add_parser("noise", help=text, description=text)
    levels = noise.add_subparsers(required=True, metavar="LEVEL")
    _add_measure(levels)
    _add_sweep(levels)
    add_branch(levels)
    add_fit(levels)
    add_advise(levels)


def _add_measure(levels: Any) -> None:
    text = "train a recipe and measure its gradient noise scale on the way"
    command = levels.add_parser("measure", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML) with a task")
    command.add_argument("--marks", type=int, default=10, help="readings over the run (10)")
    command.add_argument("--samples", type=int, default=1024, help="samples measured for each reading (1024)")
    command.add_argument(
        "--geometry",
        choices=["euclidean", "adam", "sign"],
        default="euclidean",
        help="norm of gradients (euclidean)",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of weights and sample order (0)")
    command.add_argument("--out", type=folder_name, help="folder for result.json, picture and page")
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.add_argument("--device", default="cpu", help=DEVICE)
    command.set_defaults(call=measure)


def measure(chosen: argparse.Namespace) -> int:
    """Measure the noise scale over a run.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch import critical
    from isobatch.critical.pages import noise_table, write_noise
    from isobatch.results import dump

    recipe, folder = load_recipe(chosen.recipe), prepare(chosen, "result.json", "noise.png", "report.html")
    with progress(chosen.json) as (estimated, done):
        estimated(0.0, whole("marks", chosen.marks, 2), "readings of one run")
        found = critical.measure(
            recipe,
            marks=chosen.marks,
            seed=chosen.seed,
            samples=chosen.samples,
            geometry=chosen.geometry,
            device=chosen.device,
            on_done=done,
        )
    data = found.to_dict()
    files = write_noise(folder, data) if folder is not None else []
    if chosen.json:
        say(dump(data).rstrip())
        return 0
    print_table(f"noise scale over training, {found.geometry}", noise_table(data))
    say(
        "a noise scale is not a critical batch; `isobatch noise sweep --calibrate` measures how far they are apart here"
    )
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps a report")
    return 0


def _add_sweep(levels: Any) -> None:

    text = "train at several batches, each at its fastest learning rate, and fit the critical batch"
    command = levels.add_parser("sweep", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML) with a task")
    command.add_argument("--batches", required=True, help="separated by commas: 4,8,16,32,64,128")
    command.add_argument("--goals", required=True, help="values of the metric to reach, separated by commas: 0.5,0.3")
    command.add_argument("--metric", default="loss", help="metric to follow to its goals (loss)")
    command.add_argument("--lrs", help="learning rates at every batch, separated by commas; searched for unless given")
    command.add_argument("--seeds", type=int, default=3, help="runs at each batch and learning rate (3)")
    command.add_argument("--limit", type=int, help="steps of one run at most; the recipe's own unless given")
    command.add_argument("--smoothing", type=float, default=0.5, help="weight of the past in the smoothed metric (0.5)")
    command.add_argument("--budget", help="start nothing new after this time (30m, 2h); the same --out again goes on")
    text = "measure the noise scale too, and store [critical] with the ratio in the recipe file"
    command.add_argument("--calibrate", action="store_true", help=text)
    add_output(command)
    command.add_argument("--device", default="cpu", help=DEVICE)
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
    from isobatch.results import dump

    recipe, budget = load_recipe(chosen.recipe), seconds(chosen.budget)
    folder = prepare(chosen, "result.json", "front.png", "report.html", CELLS)
    batches = [int(b) for b in numbers("--batches", chosen.batches, whole=True)]
    rates = numbers("--lrs", chosen.lrs) if chosen.lrs is not None else None
    with executor_of(chosen) as executor, progress(chosen.json) as (estimated, done):
        found = critical.sweep(
            recipe,
            goals=numbers("--goals", chosen.goals),
            batches=batches,
            lrs=dict.fromkeys(batches, rates) if rates is not None else None,
            seeds=chosen.seeds,
            limit=chosen.limit,
            metric=chosen.metric,
            smoothing=chosen.smoothing,
            out=runs_kept(chosen, folder, recipe),
            workers=chosen.workers,
            executor=executor,
            budget=budget,
            device=chosen.device,
            on_estimate=estimated,
            on_done=done,
        )
    data = found.to_dict()
    files = write_sweep(folder, data) if folder is not None else []  # before what may fail
    known = critical.calibrate(found, device=chosen.device) if chosen.calibrate else None
    if known is not None:
        data |= {"critical": known.model_dump(mode="json")}
        files = write_sweep(folder, data) if folder is not None else []
        known.store(chosen.recipe)
    if chosen.json:
        say(dump(data).rstrip())
        return 0
    print_table(f"fastest runs, {found.seeds} seeds, {len(found.tracks)} runs", sweep_table(data))
    for goal in found.goals:
        say(goal.sentence)
    if known is not None:
        say(f"stored in {chosen.recipe}:\n{known.to_toml().rstrip()}")
    if found.left:
        say(f"not begun within the budget: batches {', '.join(map(str, found.left))}; call again to go on")
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps runs and a report")
    return 0
