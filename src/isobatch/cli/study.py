"""isobatch study: re-run a published claim, and say whether it held."""

import argparse
import json
from pathlib import Path
from typing import Any

from isobatch.cli.options import DEVICE, add_output, prepare, print_table, progress, say, seconds
from isobatch.errors import InputError
from isobatch.units import whole


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
    """
    text = "re-run published claims and say whether they held; without a name, list the studies"
    command = commands.add_parser("study", help=text, description=text)
    command.add_argument("name", nargs="?", help="which study")
    command.add_argument("--quick", action="store_true", help="the small grid; some claims stay without a verdict")
    command.add_argument("--budget", help="begin no further cell after 30m, 2h; a second call goes on")
    command.add_argument("--device", default="cpu", help=f"of the studies where the average teaches: {DEVICE}")
    command.add_argument("--simulate-nodes", type=int, help="decentlam: extrapolate the cost of exchanges to these")
    add_output(command)
    command.set_defaults(call=study)


def _check_free(folder: Path | None, name: str, *, quick: bool) -> None:
    """Refuse a folder with the result of another study, or of its other grid."""
    from isobatch.report import read_result

    held = {} if folder is None else read_result(folder)
    if held and (held.get("study"), held.get("quick")) != (name, quick):
        what = (
            f"study {held['study']}{' --quick' if held.get('quick') else ''}" if "study" in held else "another result"
        )
        raise InputError(f"{folder} holds {what}; give another --out")


def study(chosen: argparse.Namespace) -> int:
    """Run a study, or list them.

    Args:
        chosen: parsed arguments.

    Returns:
        0, whether or not the claims held.
    """
    from isobatch.studies.catalogue import STUDIES, find, on_device, on_nodes
    from isobatch.studies.pages import HELD

    if chosen.name is None:
        if chosen.json:
            say(json.dumps(STUDIES, indent=1))
            return 0
        print_table("studies", [["name", "question"], *([name, text] for name, text in STUDIES.items())])
        return 0
    module, budget, folder = find(chosen.name), seconds(chosen.budget), prepare(chosen.out)
    if chosen.workers is not None:
        whole("workers", chosen.workers)
    _check_free(folder, chosen.name, quick=chosen.quick)
    extra = on_device(chosen.name, chosen.device) | on_nodes(chosen.name, chosen.simulate_nodes)
    with progress(chosen.json) as (estimated, done):
        data = module.run(
            quick=chosen.quick,
            out=folder,
            workers=chosen.workers,
            budget=budget,
            on_estimate=estimated,
            on_done=done,
            **extra,
        )
    if chosen.json:
        from isobatch.report import dump

        say(dump(data).rstrip())
        return 0
    rows = [["claim", "", "evidence"], *([c["id"], HELD[c["held"]], c["evidence"]] for c in data["claims"])]
    if data["claims"]:
        print_table(data["title"], rows)
    for table in data.get("tables", []):
        print_table(table["title"], table["rows"])
    say(f"written: {folder}" if folder else "no files written; --out DIR keeps cells and a report")
    return 0
