"""isobatch study: re-run a published claim, and say whether it held."""

import argparse
from typing import Any

from isobatch.cli.options import DEVICE, add_output, prepare, print_table, progress, say, seconds


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
        print_table("studies", [["name", "question"], *([name, text] for name, text in STUDIES.items())])
        return 0
    module, budget, folder = find(chosen.name), seconds(chosen.budget), prepare(chosen.out)
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
