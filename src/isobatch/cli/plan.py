"""isobatch plan: every number to change, and why."""

from pathlib import Path
from typing import Annotated

import typer

from isobatch.errors import InputError
from isobatch.plan import Recipe


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (TOML).")],
    batch_size: Annotated[int, typer.Option(help="New global batch, in the recipe's unit.")],
    micro: Annotated[int | None, typer.Option(help="Samples per device and forward pass.")] = None,
    devices: Annotated[int | None, typer.Option(help="Data-parallel devices.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table to paste.")] = False,
) -> None:
    """Print every number that changes with the batch: key, was, becomes, because, confidence."""
    if json and markdown:
        raise InputError("--json and --markdown exclude each other; give one")
    made = Recipe.load(recipe).at(batch_size, micro=micro, devices=devices)
    if json:
        typer.echo(made.to_json())
    elif markdown:
        typer.echo(made.to_markdown())
    else:
        from rich.console import Console

        Console().print(made)
