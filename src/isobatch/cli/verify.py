"""isobatch verify: is it the same run?"""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.verify import Comparisons
    from isobatch.verify.search import Largest

EXIT = {"SAME": 0, "UNDECIDED": 3, "DIFFERENT": 4}
_BUDGET = re.compile(r"^([0-9]+(?:\.[0-9]+)?)([smh])$")

app = typer.Typer(help="Is it the same run?", no_args_is_help=True)

RecipeFile = Annotated[Path, typer.Argument(help="Recipe file (TOML) with a task.")]
BatchSize = Annotated[int, typer.Option(help="Batch of the plan.")]
Out = Annotated[Path | None, typer.Option(help="Folder for result.json, pictures and report.html.")]
Workers = Annotated[int | None, typer.Option(help="Processes; one a core unless given.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command("run")
def run(
    recipe: RecipeFile,
    batch_size: BatchSize,
    seeds: Annotated[int, typer.Option(help="Seeds per arm, at least 8; fixed before the run.")] = 10,
    ablate: Annotated[str, typer.Option(help="Ablations, by comma: lr-only,ema-only,unscaled; or none.")] = "all",
    budget: Annotated[str | None, typer.Option(help="Do not start if it would take longer: 90s, 10m, 2h.")] = None,
    margin: Annotated[float | None, typer.Option(help="Margin of the headline model; 0.03 averaged, 0.10 raw.")] = None,
    max_kappa: Annotated[bool, typer.Option("--max-kappa", help="Find the largest kappa that is SAME.")] = False,
    expect: Annotated[str | None, typer.Option(help='Fail unless these verdicts hold: "plan=SAME,...".')] = None,
    workers: Workers = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Train reference, plan and ablations over several seeds; say SAME, DIFFERENT or UNDECIDED."""
    from isobatch.plan import Recipe
    from isobatch.verify import ABLATIONS
    from isobatch.verify import run as compare

    loaded, wanted = Recipe.load(recipe), _expectations(expect)
    folder = _prepare(out)
    chosen = ABLATIONS if ablate == "all" else tuple(a for a in ablate.split(",") if a and a != "none")
    with progress(json) as (estimated, done):
        result = compare(
            loaded,
            batch_size,
            seeds=seeds,
            ablate=chosen,
            margin=margin,
            budget=_seconds(budget),
            workers=workers,
            on_estimate=estimated,
            on_done=done,
        )
    largest = None
    if max_kappa:
        from isobatch.verify.search import largest_kappa

        with progress(json) as (_, done):
            largest = largest_kappa(result, workers=workers, on_done=done)
    data = _data(result, largest)
    if folder is not None:
        from isobatch.verify.story import write_report

        files = write_report(folder, data)
    if json:
        from isobatch.report import dump

        typer.echo(dump(data), nl=False)
    else:
        _print(data)
        if folder is not None:
            typer.echo("written: " + ", ".join(str(file) for file in files))
    raise typer.Exit(_code(data["verdicts"], wanted))


@app.command("characteristic")
def characteristic(
    recipe: RecipeFile,
    batch_size: BatchSize,
    seeds: Annotated[int, typer.Option(help="Seeds per arm, at least 40.")] = 40,
    sample: Annotated[int, typer.Option(help="Seeds per simulated verdict.")] = 10,
    workers: Workers = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """How often does the test say SAME or DIFFERENT when the truth is planted?"""
    from isobatch.plan import Recipe
    from isobatch.report import dump, write_result
    from isobatch.verify.characteristic import measure, table

    folder = _prepare(out)
    with progress(json) as (estimated, done):
        data = measure(
            Recipe.load(recipe),
            batch_size,
            seeds=seeds,
            sample=sample,
            workers=workers,
            on_estimate=estimated,
            on_done=done,
        )
    if folder is not None:
        write_result(folder, data)
    if json:
        typer.echo(dump(data), nl=False)
    else:
        _table(f"verdicts of {sample} seeds drawn from {seeds}", table(data))


@contextmanager
def progress(quiet: bool) -> Generator[tuple[Callable[[float, int], None], Callable[[Any], None]]]:
    """Show a bar on stderr while runs are trained.

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

    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training runs", total=None)

        def estimated(seconds: float, runs: int) -> None:
            console.print(f"estimated {seconds / 60:.1f} minutes for {runs} runs")
            bar.update(task, total=runs)

        yield estimated, lambda _: bar.advance(task)


def _data(result: "Comparisons", largest: "Largest | None") -> dict[str, Any]:
    from isobatch.verify import to_dict

    data = to_dict(result)
    if largest is not None:
        tried = {f"{k:g}": {"verdict": str(v), "worst": largest.worst[k]} for k, v in largest.tried.items()}
        data["max_kappa"] = {"kappa": largest.kappa, "resolution": "a factor of 2", "tried": tried}
    return data


def _print(data: dict[str, Any]) -> None:
    from isobatch.verify.story import verdict_table

    model = "averaged" if data["headline"] == "average" else "raw"
    _table(f"kappa = {data['kappa']:g}, {len(data['seeds'])} seeds, {data['seconds']:g} s", verdict_table(data))
    typer.echo(f"plan: {data['verdict']} ({model} model)")
    for action in data["next"]:
        typer.echo(f"  - {action}")
    if "max_kappa" in data:
        tried = ", ".join(f"{k}: {v['verdict']}" for k, v in data["max_kappa"]["tried"].items())
        typer.echo(f"largest kappa that is SAME: {data['max_kappa']['kappa']:g} (to a factor of 2; tried {tried})")


def _table(title: str, rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    styles = {"SAME": "green", "DIFFERENT": "red", "UNDECIDED": "yellow"}
    table = Table(*rows[0], title=title, title_style="bold")
    for row in rows[1:]:
        table.add_row(*(f"[{styles[cell]}]{cell}[/]" if cell in styles else cell for cell in row))
    Console().print(table)


def _prepare(out: Path | None) -> Path | None:
    if out is None:
        return None
    from isobatch.report import prepare

    return prepare(out)


def _seconds(budget: str | None) -> float | None:
    if budget is None:
        return None
    match = _BUDGET.match(budget)
    if match is None:
        raise InputError(f"--budget {budget!r} must be a number and s, m or h, such as 10m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _expectations(expect: str | None) -> dict[str, str]:
    pairs = [part.split("=") for part in (expect or "").split(",") if part]
    if any(len(pair) != 2 or pair[1] not in EXIT for pair in pairs):
        raise InputError(f'--expect {expect!r} must be arm=VERDICT pairs, such as "plan=SAME,unscaled=DIFFERENT"')
    return {pair[0]: pair[1] for pair in pairs}


def _code(verdicts: dict[str, str], wanted: dict[str, str]) -> int:
    wrong = [
        f"{arm} is {verdicts.get(arm, 'missing')}, expected {v}" for arm, v in wanted.items() if verdicts.get(arm) != v
    ]
    for line in wrong:
        typer.echo(f"isobatch: {line}", err=True)
    if wanted:
        return EXIT["DIFFERENT"] if wrong else 0
    return EXIT[verdicts["plan"]]
