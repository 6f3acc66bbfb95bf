"""The plan as people read it in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from isobatch.plan.plan import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.plan import Plan

_STYLE = {"theorem": "green", "derived": "cyan", "measured": "cyan", "convention": "yellow", "unknown": "magenta"}


def render(plan: Plan) -> Iterator[Any]:
    """Yield a table of the plan's rows, its warnings and its notes.

    Args:
        plan: the plan.

    Yields:
        Renderables for rich.
    """
    run = "the fastest run" if plan.recipe.rules.lr == "speed" else "the same run"
    title = f"kappa = {plan.kappa:g}: {run} at batch {plan.recipe.batch.size}"
    table = Table(title=title, title_style="bold", show_lines=False, pad_edge=False, expand=False)
    for name, least in (("key", 12), ("was", 8), ("becomes", 8), ("rule", 8), ("because", 20), ("confidence", 10)):
        table.add_column(name, overflow="fold", min_width=least)
    for row in plan.rows:
        changed = row.was != row.becomes
        table.add_row(
            row.key,
            show(row.was),
            Text(show(row.becomes), style="bold" if changed else ""),
            row.rule,
            row.because,
            Text(row.confidence, style=_STYLE[row.confidence]),
        )
    yield table
    for row in plan.rows:
        if row.note:
            yield Text.assemble(("  ", ""), (row.key, "bold"), f": {row.note}")
    for warning in plan.warnings:
        yield Text.assemble(
            ("! ", "bold yellow"), (warning.condition, "bold"), f": {warning.message} ({warning.source})"
        )
    if plan.remedies:
        yield Text("past the noise scale: keep the batch smaller, or", style="bold")
    for remedy in plan.remedies:
        yield Text.assemble(("+ ", "bold cyan"), (remedy.name, "bold"), f": {remedy.how}; {remedy.cost}")
        yield Text(f"    {remedy.evidence}")
