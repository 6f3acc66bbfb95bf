"""isobatch noise branch and advise: how large a batch may be, and which one pays."""

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from isobatch.errors import InputError
from isobatch.units import whole

if TYPE_CHECKING:
    from isobatch.critical import Interval
    from isobatch.plan import Recipe

_TIMED = (1, 4, 16, 64, 256)


def add_branch(levels: Any) -> None:
    """Add the command.

    Args:
        levels: the sub-parsers.
    """
    text = "from one state of a run, go on at larger batches by the plan; the largest that loses nothing"
    command = levels.add_parser("branch", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML) with a task")
    command.add_argument("--span", required=True, help='samples of every branch, such as "2 epochs" or "8192 samples"')
    command.add_argument("--start", help='samples of the main run, such as "4 epochs"; or --checkpoint')
    command.add_argument("--checkpoint", type=Path, help="folder of a run's checkpoints: DIR/checkpoints of train")
    command.add_argument("--factors", default="1,2,4,8,16", help="times the batch, separated by commas (1,2,4,8,16)")
    command.add_argument("--seeds", type=int, default=5, help="main runs, or sample orders from one checkpoint (5)")
    command.add_argument("--tolerance", type=float, default=0.01, help="what counts as no worse, in the metric (0.01)")
    command.add_argument("--smoothing", type=float, default=0.5, help="weight of the past in the smoothed metric (0.5)")
    command.add_argument("--metric", default="loss", help="metric to follow (loss)")
    command.add_argument("--budget", help="start nothing new after this time (30m, 2h); the same --out again goes on")
    add_output(command)
    command.add_argument("--device", default="cpu", help=DEVICE)
    command.set_defaults(call=branch)


def branch(chosen: argparse.Namespace) -> int:
    """Branch a run.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch import critical
    from isobatch.critical.pages import branch_table, write_branch

    recipe, budget = load_recipe(chosen.recipe), seconds(chosen.budget)
    folder = prepare(chosen, "result.json", "branches.png", "report.html", CELLS)
    with executor_of(chosen) as executor, progress(chosen.json) as (estimated, done):
        found = critical.branch(
            recipe,
            start=None if chosen.start is None else math.ceil(recipe.samples(chosen.start, "--start")),
            span=math.ceil(recipe.samples(chosen.span, "--span")),
            factors=[int(k) for k in numbers("--factors", chosen.factors, whole=True)],
            seeds=chosen.seeds,
            tolerance=chosen.tolerance,
            smoothing=chosen.smoothing,
            metric=chosen.metric,
            checkpoint=chosen.checkpoint,
            out=runs_kept(chosen, folder, recipe),
            workers=chosen.workers,
            executor=executor,
            budget=budget,
            device=chosen.device,
            on_estimate=estimated,
            on_done=done,
        )
    data = found.to_dict()
    files = write_branch(folder, data) if folder is not None else []
    if chosen.json:
        return _json(data)
    print_table(f"branches of {found.span:,} {data['unit']} from {found.start:,} on", branch_table(data))
    say(found.sentence)
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps runs and a report")
    return 0


def add_advise(levels: Any) -> None:
    """Add the command.

    Args:
        levels: the sub-parsers.
    """
    text = "time and compute of every batch and number of devices, and which batch pays"
    command = levels.add_parser("advise", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML); its [critical] is used unless given")
    command.add_argument("--critical", help="critical batch, or low,value,high; from `noise sweep`")
    command.add_argument("--noise-scale", type=float, help="noise scale, turned into one by the recipe's stored ratio")
    command.add_argument("--samples", type=float, help="fewest samples to the goal (E_min), for absolute times")
    command.add_argument("--throughput", type=Path, help="CSV: batch, and seconds_per_step or samples_per_second")
    command.add_argument("--devices", default="1", help="numbers of devices, separated by commas (1)")
    command.add_argument("--extra", type=float, default=0.1, help="share of compute beyond the cheapest (0.1)")
    command.add_argument("--fits", type=int, help="samples that fit into one pass of a device; more are accumulated")
    command.add_argument("--most", type=int, help="largest batch considered (64 critical batches)")
    command.add_argument("--gradient-bytes", type=float, help="bytes a device sends; 4 a parameter unless given")
    command.add_argument("--latency", type=float, default=20e-6, help="seconds a message, assumed (20e-6)")
    command.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second and device, assumed (25e9)")
    command.add_argument("--overlap", type=float, default=0.0, help="share of compute that hides communication (0)")
    command.add_argument("--out", type=folder_name, help="folder for result.json, picture and page")
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.add_argument("--device", default="cpu", help=DEVICE)
    command.set_defaults(call=advise)


def advise(chosen: argparse.Namespace) -> int:
    """Advise on the batch.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch import critical
    from isobatch.critical.machine import gradient_bytes, measure_steps, read_steps
    from isobatch.critical.pages import advice_table, write_advice

    recipe, folder = load_recipe(chosen.recipe), prepare(chosen, "result.json", "advice.png", "report.html")
    interval, samples, origin = _critical(chosen, recipe)
    counts = [int(n) for n in numbers("--devices", chosen.devices, whole=True)]
    if chosen.throughput is not None:
        timed, where = read_steps(chosen.throughput), f"read from {chosen.throughput}"
    else:
        sizes = _TIMED if recipe.batch.unit == "samples" else [recipe.batch.size * k for k in (1, 2, 4, 8)]
        top = recipe.data_size or sizes[-1]
        timed, where = (
            measure_steps(recipe, [b for b in sizes if b <= top], device=chosen.device),
            f"timed on this machine, one process, {chosen.device}",
        )
    size = chosen.gradient_bytes
    if size is None:
        size = gradient_bytes(recipe) if max(counts) > 1 else 0.0
    network = critical.Network(size, chosen.latency, chosen.bandwidth, chosen.overlap)
    found = critical.advise(
        interval,
        timed,
        now=recipe.batch.size,
        devices=counts,
        network=network if max(counts) > 1 else None,
        samples=chosen.samples if chosen.samples is not None else samples,
        extra=chosen.extra,
        largest_local=None if chosen.fits is None else whole("--fits", chosen.fits),
        most=chosen.most,
        unit=recipe.batch.unit,
    )
    about = [origin, f"step times: {where}"]
    data = {"recipe": recipe.model_dump(mode="json", exclude_none=True), "origin": about, **found.to_dict()}
    files = write_advice(folder, data) if folder is not None else []
    if chosen.json:
        return _json(data)
    print_table("which batch pays", advice_table(data))
    for line in found.sentences:
        say(line)
    for line in (*about, *found.assumptions):
        say(f"  - {line}")
    say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps a report")
    return 0


def _critical(chosen: argparse.Namespace, recipe: "Recipe") -> tuple["Interval", float | None, str]:
    """The critical batch with its interval, E_min where it is known, and where they come from."""
    from isobatch.critical import Interval

    if chosen.critical is not None:
        values = numbers("--critical", chosen.critical)
        rising = all(low <= high for low, high in pairwise(values))  # which nan is not
        if len(values) not in (1, 3) or not rising or values[0] < 0:
            words = "must be a batch, or low,value,high in rising order, none below 0"
            raise InputError(f"--critical {chosen.critical!r} {words}")
        low, value, high = values if len(values) == 3 else values * 3
        return Interval(value, low, high), None, "critical batch given on the command line"
    known = recipe.critical
    if chosen.noise_scale is not None:
        if known is None or known.ratio is None:
            raise InputError(
                f"--noise-scale {chosen.noise_scale:g} is not a critical batch: it was up to 20 times off, and orders "
                "of magnitude under Adam. Store a ratio with `isobatch noise sweep --calibrate`, or give --critical"
            )
        from isobatch.units import finite

        known = known.calibrated(finite("--noise-scale", chosen.noise_scale, 0, open_low=True))
    if known is None:
        raise InputError(
            "the recipe has no [critical]; measure it with `isobatch noise sweep --calibrate`, or give --critical"
        )
    low = known.low if known.low is not None else 0.0
    high = known.high if known.high is not None else math.inf
    samples = known.samples if chosen.noise_scale is None else None
    return Interval(known.batch, low, high), samples, known.about(recipe.batch.unit)


def _json(data: dict[str, Any]) -> int:
    from isobatch.results import dump

    say(dump(data).rstrip())
    return 0
