"""isobatch plan: every number to change, and why."""

import argparse
import sys
from pathlib import Path
from typing import Any

from isobatch.cli.options import add_recipe, say
from isobatch.cli.plan_file import add_file_options, devices_of, is_own, plan_file
from isobatch.cli.plan_html import write_page
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
    text = "data-parallel devices, in place of a batch or beside it; '32->4' says what the file is for as well"
    command.add_argument("--devices", help=text)
    command.add_argument(
        "--noise-scale",
        type=float,
        help="gradient noise scale in samples, for the Adam family or a goal of speed; past it remedies are listed",
    )
    command.add_argument("--optimizer", choices=["invariant"], help="plan for the batch-size invariant form")
    command.add_argument("--rule", choices=["legw"], help="LEGW: square root, warm-up linear in epochs")
    text = "equivalence: the same run; speed: the fastest to the same loss, by [critical] or --noise-scale"
    command.add_argument("--goal", choices=["equivalence", "speed"], default="equivalence", help=text)
    text = "another length beside the batch, 2x or '60 epochs': not the same run, by rows that say so"
    command.add_argument("--length", metavar="TIMES", help=text)
    text = "write the planned recipe to a new TOML file, stamped so that a plan of it goes on from there"
    command.add_argument("--write", type=Path, metavar="FILE", help=text)
    text = "write a page with a plan for each batch of a slider, with curves, cautions and the planned file to copy"
    command.add_argument("--html", type=Path, metavar="FILE", help=text)
    text = "let --write, --html, --plot and --patch OUT replace a file that exists"
    command.add_argument("--overwrite", action="store_true", help=text)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON for programs")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table to paste")
    text = "print a script with the planned numbers in that library's names"
    form.add_argument("--snippet", choices=["torch", "hf", "lightning"], help=text)
    text = "print every key of a recipe, what it means, its unit, and what a plan does to it (no recipe needed)"
    form.add_argument("--keys", action="store_true", help=text)
    text = "start from a published recipe instead of a file, at its batch nearest to --batch-size or at BATCH"
    command.add_argument("--like", metavar="NAME[@BATCH]", help=text + "; --like list prints the names")
    add_file_options(command)
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
    if chosen.length is not None and chosen.html is not None:
        raise InputError("--length moves no slider; plan the length with --write, then --html of that file")
    if chosen.check and chosen.html is not None:
        raise InputError("--check says where FILE departs from --reference, and writes no page; leave --html out")
    if chosen.reference is not None and not chosen.check:
        raise InputError("--reference is what --check compares with; say --check, or leave --reference out")
    others = ("batch_size", "micro", "keep_batch", "patch", "diff", "explain", "plot")
    beside = [f"--{name.replace('_', '-')}" for name in others if getattr(chosen, name) not in (None, False)]
    if chosen.check and beside:  # an empty --patch is in place
        raise InputError(f"--check compares FILE as it stands; leave {' and '.join(beside)} out")
    if chosen.noise_scale is not None:
        finite("noise scale", chosen.noise_scale, 0, open_low=chosen.goal == "speed")
    if chosen.like is not None:
        return _plan_like(chosen)
    if chosen.recipe is None:
        raise InputError("plan needs a recipe file: isobatch plan recipe.toml --batch-size 512; or --keys alone")
    if chosen.format is not None or not is_own(chosen.recipe):
        if chosen.length is not None:
            raise InputError("--length is for isobatch's own TOML and for --like; set the length in the file itself")
        if chosen.write is not None:
            raise InputError(f"--write writes isobatch's own TOML; {chosen.recipe} is written back by --patch")
        if chosen.snippet is not None:
            raise InputError(f"--snippet is for isobatch's own TOML; {chosen.recipe} is written back by --patch")
        return plan_file(chosen)
    recipe = Recipe.load(chosen.recipe)
    if chosen.html is not None and write_page(
        chosen, recipe, _devices(chosen, recipe.batch.devices, str(chosen.recipe))
    ):
        return 0
    devices = _devices(chosen, recipe.batch.devices, str(chosen.recipe))
    made = recipe.at(chosen.batch_size, micro=chosen.micro, devices=devices, **_how(chosen))
    _write(chosen, made, chosen.recipe.name)
    if chosen.json:
        say(made.to_json())
    else:
        _print(chosen, made)
    return 0


def _plan_like(chosen: argparse.Namespace) -> int:
    """Plan from a published recipe."""
    from isobatch.cli.plan_like import add_gaps, like, listed, say_gaps

    if chosen.recipe is not None:
        raise InputError(f"--like {chosen.like} takes the place of the recipe file {chosen.recipe}; give one of them")
    if chosen.like == "list":
        say(listed())
        return 0
    found, start = like(chosen.like, chosen.batch_size)
    recipe, how = found.recipe(start), _how(chosen)
    devices = _devices(chosen, recipe.batch.devices, f"--like {chosen.like}")
    if chosen.html is not None and write_page(chosen, recipe, devices, like=f"{found.name}@{start}"):
        return 0
    made = recipe.at(chosen.batch_size, micro=chosen.micro, devices=devices, **how)
    _write(chosen, made, f"{found.name}@{start}")
    gaps = found.gaps(start, **how | {"length": None})
    if chosen.json:
        say(add_gaps(made.to_dict(), found, start, gaps))
        return 0
    _print(chosen, made)
    if chosen.snippet is None:
        say_gaps(found, start, gaps, markdown=chosen.markdown)
    return 0


def _how(chosen: argparse.Namespace) -> dict[str, Any]:
    names = ("noise_scale", "optimizer", "rule", "goal", "length")
    return {name: getattr(chosen, name) for name in names}


def _write(chosen: argparse.Namespace, made: Any, source: str) -> None:
    if chosen.write is not None:
        from isobatch.export import write_plan

        write_plan(made, chosen.write, source=source, overwrite=chosen.overwrite)
        sys.stderr.write(f"isobatch: written {chosen.write}\n")


def _print(chosen: argparse.Namespace, made: Any) -> None:
    if chosen.snippet is not None:
        from isobatch.export import snippet

        say(snippet(made, chosen.snippet).rstrip())
    elif chosen.markdown:
        say(made.to_markdown())
    else:
        from rich.console import Console

        Console().print(made)


def _devices(chosen: argparse.Namespace, have: int, source: str) -> int | None:
    """Return the devices of a plan of isobatch's own TOML, which says those that it is for."""
    for name in ("set", "patch", "diff", "explain", "check", "plot", "keep_batch"):
        if getattr(chosen, name) not in (None, False, []):  # an empty --patch is in place
            raise InputError(f"--{name.replace('_', '-')} is for files of other stacks; {source} is isobatch's own")
    old, new = devices_of(chosen.devices)
    if new is None:
        return old
    if old not in (None, have):
        raise InputError(f"--devices {chosen.devices}: {source} is for {have} devices, not {old}")
    return new
