"""The plan as people read it in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from isobatch.plan.plan import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobatch.plan.plan import Plan

WIDE = 120
"""Columns of a terminal from which the reasons fit into the table."""
_STYLE = {"theorem": "green", "derived": "cyan", "measured": "cyan", "convention": "yellow", "unknown": "magenta"}


def render(plan: Plan, width: int) -> Iterator[Any]:
    """Yield a table of the plan's rows, its warnings and its notes.

    Args:
        plan: the plan.
        width: of the terminal; in a narrow one the reasons stand below the table.

    Yields:
        Renderables for rich.
    """
    run = {"speed": "the fastest run", "legw": "LEGW"}.get(plan.recipe.rules.lr, "the same run")
    title = f"kappa = {plan.kappa:g}: {run} at batch {plan.recipe.batch.size}"
    table = Table(title=title, title_style="bold", show_lines=False, pad_edge=False, expand=False)
    wide = width >= WIDE
    for name in ("key", "was", "becomes", "rule", *(["because"] if wide else []), "confidence"):
        table.add_column(name, overflow="fold", no_wrap=name in ("key", "confidence"))
    for row in plan.rows:
        changed = row.was != row.becomes
        table.add_row(
            row.key,
            show(row.was),
            Text(show(row.becomes), style="bold" if changed else ""),
            row.rule,
            *([row.because] if wide else []),
            Text(row.confidence, style=_STYLE[row.confidence]),
        )
    yield table
    for row in plan.rows:
        text = row.note if wide else "; ".join(part for part in (row.because, row.note) if part)
        if text:
            yield Text.assemble(("  ", ""), (row.key, "bold"), f": {text}")
    for warning in plan.warnings:
        yield Text.assemble(
            ("! ", "bold yellow"), (warning.condition, "bold"), f": {warning.message} ({warning.source})"
        )
    if plan.remedies:
        yield Text("past the noise scale: keep the batch smaller, or", style="bold")
    for remedy in plan.remedies:
        yield Text.assemble(("+ ", "bold cyan"), (remedy.name, "bold"), f": {remedy.how}; {remedy.cost}")
        yield Text(f"    {remedy.evidence}")
