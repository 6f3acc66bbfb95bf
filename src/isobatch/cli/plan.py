"""isobatch plan: every number to change, and why."""

import argparse
import sys
from pathlib import Path
from typing import Any

from isobatch.cli.options import add_recipe, say
from isobatch.errors import InputError


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
    """
    text = "print every number that changes with the batch: key, was, becomes, why, confidence"
    command = commands.add_parser("plan", help=text, description=text)
    add_recipe(command, required=False, recipe="?")
    command.add_argument("--micro", type=int, help="samples per device and forward pass")
    command.add_argument("--devices", type=int, help="data-parallel devices, in place of a batch or beside it")
    command.add_argument(
        "--noise-scale",
        type=float,
        help="gradient noise scale in samples, for the Adam family or a goal of speed; past it remedies are listed",
    )
    command.add_argument("--optimizer", choices=["invariant"], help="plan for the batch-size invariant form")
    command.add_argument("--rule", choices=["legw"], help="LEGW: square root, warm-up linear in epochs")
    text = "equivalence: the same run; speed: the fastest to the same loss, by [critical] or --noise-scale"
    command.add_argument("--goal", choices=["equivalence", "speed"], default="equivalence", help=text)
    text = "write the planned recipe to a new TOML file, stamped so that a plan of it goes on from there"
    command.add_argument("--write", type=Path, metavar="FILE", help=text)
    command.add_argument("--overwrite", action="store_true", help="let --write replace a file that exists")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON for programs")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table to paste")
    text = "print a script with the planned numbers in that library's names"
    form.add_argument("--snippet", choices=["torch", "hf", "lightning"], help=text)
    text = "print every key of a recipe, what it means, its unit, and what a plan does to it (no recipe needed)"
    form.add_argument("--keys", action="store_true", help=text)
    command.set_defaults(call=plan)


def plan(chosen: argparse.Namespace) -> int:
    """Print a plan.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch.plan import Recipe
    from isobatch.units import finite

    if chosen.keys:
        from isobatch.export import keys_table

        say(keys_table())
        return 0
    if chosen.recipe is None:
        raise InputError("plan needs a recipe file: isobatch plan recipe.toml --batch-size 512; or --keys alone")
    if chosen.noise_scale is not None:
        finite("noise scale", chosen.noise_scale, 0, open_low=chosen.goal == "speed")
    made = Recipe.load(chosen.recipe).at(
        chosen.batch_size,
        micro=chosen.micro,
        devices=chosen.devices,
        noise_scale=chosen.noise_scale,
        optimizer=chosen.optimizer,
        rule=chosen.rule,
        goal=chosen.goal,
    )
    if chosen.write is not None:
        from isobatch.export import write_plan

        write_plan(made, chosen.write, source=chosen.recipe.name, overwrite=chosen.overwrite)
        sys.stderr.write(f"isobatch: written {chosen.write}\n")
    if chosen.json:
        say(made.to_json())
    elif chosen.snippet is not None:
        from isobatch.export import snippet

        say(snippet(made, chosen.snippet).rstrip())
    elif chosen.markdown:
        say(made.to_markdown())
    else:
        from rich.console import Console

        Console().print(made)
    return 0
