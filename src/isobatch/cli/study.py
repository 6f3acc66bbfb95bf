"""isobatch study: re-run a published claim, and say whether it held."""

import argparse
import json
from pathlib import Path
from typing import Any, Protocol

from isobatch.cli.options import CELLS, DEVICE, add_output, executor_of, prepare, print_table, progress, say, seconds
from isobatch.errors import InputError
from isobatch.installed import announced
from isobatch.units import whole

_INSTALL = "pip install isobatch-studies"


class Study(Protocol):
    """What an entry point of the group "isobatch.studies" gives: cheap to load, its work imported when it runs."""

    question: str
    takes: frozenset[str]

    def run(self, **options: Any) -> dict[str, Any]:
        """Train, judge, write, and return what goes into result.json."""
        ...


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
    """
    text = "re-run published claims and say whether they held; without a name, list the studies"
    command = commands.add_parser("study", help=text, description=text, epilog=f"The studies come with: {_INSTALL}")
    command.add_argument("name", nargs="?", help="which study")
    command.add_argument("--quick", action="store_true", help="the small grid; some claims stay without a verdict")
    command.add_argument("--grid", default="", help="a further grid of the study, with claims of its own")
    command.add_argument("--budget", help="start nothing new after this time, such as 30m or 2h; call again to go on")
    command.add_argument("--device", default="cpu", help=f"for studies whose average is a teacher: {DEVICE}")
    command.add_argument("--simulate-nodes", type=int, help="decentlam: nodes to extrapolate the cost of exchanges to")
    add_output(command)
    command.set_defaults(call=study)


def studies() -> dict[str, Study]:
    """Return the studies of all installed distributions.

    Returns:
        Name -> study.

    Raises:
        InputError: none is installed.
    """
    found = {name: point.load() for name, point in announced("isobatch.studies").items()}
    if not found:
        raise InputError(f"no studies are installed; they are a distribution of their own: {_INSTALL}")
    return found


def find(name: str) -> Study:
    """Return a study.

    Args:
        name: of the study.

    Returns:
        The study.

    Raises:
        InputError: no such study, or none is installed.
    """
    known = studies()
    if name not in known:
        raise InputError(f"study={name!r} must be one of {', '.join(known)}")
    return known[name]


def options(
    name: str, takes: frozenset[str], device: str, nodes: int | None, grid: str = "", *, quick: bool = False
) -> dict[str, Any]:
    """Return the arguments that only some studies take.

    Args:
        name: of the study.
        takes: which of them it takes.
        device: device and its options in one word.
        nodes: how many to simulate, None for the study's own.
        grid: a further grid, "" for the study's own.
        quick: whether its small grid is asked for.

    Returns:
        Arguments of its `run`, none for the CPU, the study's own nodes and its own grid.

    Raises:
        InputError: a device for a study of the CPU, nodes or a further grid for a study without, two grids at once.

    Example:
        >>> options("progressive", frozenset(), "cpu", None)
        {}
        >>> options("decentlam", frozenset({"simulate_nodes"}), "cpu", 1024)
        {'simulate_nodes': 1024}
    """
    found: dict[str, Any] = {}
    if device != "cpu":
        if "device" not in takes:
            raise InputError(f"study {name} runs on the CPU only; leave --device {device} out")
        found["device"] = device
    if nodes is not None:
        if "simulate_nodes" not in takes:
            raise InputError(f"study {name} has no nodes; leave --simulate-nodes {nodes} out")
        found["simulate_nodes"] = nodes
    if grid:
        if "grid" not in takes:
            raise InputError(f"study {name} has one grid; leave --grid {grid} out")
        if quick:
            raise InputError(f"--quick is a grid of its own; leave it or --grid {grid} out")
        found["grid"] = grid
    return found


def _check_free(folder: Path | None, name: str, grid: str, *, quick: bool) -> None:
    """Refuse a folder with the result of another study, or of another grid of it."""
    from isobatch.results import read_result

    held = {} if folder is None else read_result(folder)
    if held and (held.get("study"), held.get("quick"), held.get("grid", "")) != (name, quick, grid):
        size = " --quick" if held.get("quick") else f" --grid {held['grid']}" if held.get("grid") else ""
        what = f"study {held['study']}{size}" if "study" in held else "another result"
        raise InputError(f"{folder} holds {what}; give another --out")


def study(chosen: argparse.Namespace) -> int:
    """Run a study, or list them.

    Args:
        chosen: parsed arguments.

    Returns:
        0, whether or not the claims held.
    """
    if chosen.name is None:
        listed = {name: one.question for name, one in studies().items()}
        if chosen.json:
            say(json.dumps(listed, indent=1))
            return 0
        print_table("studies", [["name", "question"], *([name, text] for name, text in listed.items())])
        return 0
    one, budget, folder = (
        find(chosen.name),
        seconds(chosen.budget),
        prepare(chosen, "result.json", "report.html", "pictures", CELLS),
    )
    if chosen.workers is not None:
        whole("workers", chosen.workers)
    extra = options(chosen.name, one.takes, chosen.device, chosen.simulate_nodes, chosen.grid, quick=chosen.quick)
    _check_free(folder, chosen.name, chosen.grid, quick=chosen.quick)
    with executor_of(chosen) as executor, progress(chosen.json) as (estimated, done):
        data = one.run(
            quick=chosen.quick,
            out=folder,
            workers=chosen.workers,
            executor=executor,
            budget=budget,
            on_estimate=estimated,
            on_done=done,
            **extra,
        )
    _show(data, folder, as_json=chosen.json)
    return 0


def _show(data: dict[str, Any], folder: Path | None, *, as_json: bool) -> None:
    from isobatch.results import HELD, dump

    if as_json:
        say(dump(data).rstrip())
        return
    rows = [["claim", "", "evidence"], *([c["id"], HELD[c["held"]], c["evidence"]] for c in data["claims"])]
    if data["claims"]:
        print_table(data["title"], rows)
    for table in data.get("tables", []):
        print_table(table["title"], table["rows"])
    say(f"written: {folder}" if folder else "no files written; --out DIR keeps cells and a report")
