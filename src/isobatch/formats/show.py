"""A plan of a file for people and programs: text, Markdown, JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from isobatch.formats.ledger import MOST, ONE_NODE
from isobatch.formats.lint import lint
from isobatch.formats.texts.command import lines_of
from isobatch.plan.plan import PRINTED, show

_NODE = 8
"""GPUs of a usual node."""
SCHEMA = "isobatch-plan-1"
"""Name of the JSON form; docs/plan.schema.json describes it."""


def to_dict(made: Any) -> dict[str, Any]:
    """Return a plan of a file as plain values, ready for JSON.

    Args:
        made: the plan, an `isobatch.formats.FilePlan`.

    Returns:
        Values as docs/plan.schema.json describes them.
    """
    ledger, old, new = made.ledger, made.reference.batch, made.recipe.batch
    own = ledger.own_rule
    return {
        "schema": SCHEMA,
        "file": ledger.source.name,
        "format": ledger.format,
        "kappa": made.plan.kappa,
        "was": _batch(old),
        "becomes": _batch(new),
        "own_rule": None if own is None else asdict(own),
        "reference": ledger.reference,
        "stamp": None if ledger.stamp is None else asdict(ledger.stamp),
        "lossless": ledger.lossless,
        "changes": [asdict(row) for row in made.rows],
        "keep_batch": None if made.kept is None else {change.link.name: change.becomes for change in made.kept},
        "unsaid": [asdict(row) for row in made.unsaid],
        "unread": [asdict(item) for item in ledger.unread],
        "read": [{"key": one.name, "value": one.value, "path": one.path, "origin": one.origin} for one in ledger.links],
        "notes": list(ledger.notes),
        "lint": [asdict(item) for item in lint(made.reference, ledger)],
        "plan": made.plan.to_dict(),
    }


def _batch(batch: Any) -> dict[str, Any]:
    held = {"size": batch.size, "devices": batch.devices, "micro": batch.per_device, "accumulation": batch.accumulation}
    return held | {"unit": batch.unit}


def to_json(made: Any) -> str:
    """Return a plan of a file as JSON for programs."""
    return json.dumps(to_dict(made), indent=2, default=str)


def to_markdown(made: Any) -> str:
    """Return a plan of a file as Markdown, ready to paste into an issue."""
    lines = [f"**{head(made)}**", ""]
    if made.rows:
        lines += ["| key | was | becomes | rule | because | confidence | note |", "|---|---|---|---|---|---|---|"]
    for row in made.rows:
        cells = (row.key, show(row.was), show(row.becomes), row.rule, row.because, row.confidence, row.note)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"- {text}" for text in remarks(made))])


def head(made: Any) -> str:
    """Return what a plan is of, in one line."""
    ledger, old, new = made.ledger, made.reference.batch, made.recipe.batch
    where = "x".join(str(n) for n in (new.devices, new.per_device, new.accumulation))
    name = f"{ledger.source.name} ({ledger.title})"
    if old == new:
        return f"{name}: batch {old.size} {old.unit}, nothing to change"
    return (
        f"{name}: batch {old.size} -> {new.size} {new.unit} ({where} devices x micro x n), kappa = {made.plan.kappa:g}"
    )


def remarks(made: Any) -> Iterator[str]:
    """Yield what a reader of the plan must know beside its rows."""
    ledger = made.ledger
    if made.kept:
        keys = ", ".join(
            f"{change.link.name} {show(change.link.value)} -> {show(change.becomes)}" for change in made.kept
        )
        yield f"or keep the batch (--keep-batch), and nothing else moves: {keys}"
    if ledger.stamp is not None:
        yield f"a plan already: batch {ledger.stamp.reference} -> {ledger.stamp.batch}; it goes on from there"
    yield from _crowded(made)
    own = ledger.own_rule
    if own is not None:
        yield f"the trainer's own rule stays on: {own.formula} ({own.key}); only what it leaves out is changed"
        yield from _other_rate(made)
    if made.unsaid:
        for row in made.unsaid:
            yield f"cannot be said in this file: {row.path} {show(row.was)} -> {show(row.becomes)}; it is {row.origin}"
    for item in ledger.unread:
        yield f"acts and was not read: {item.key} = {item.value!r} ({item.why})"
    yield from ledger.notes
    for finding in lint(made.reference, ledger):
        yield f"lint, {finding.name}: {finding.text}"
    if made.plan.kappa != 1:
        for warning in made.plan.warnings[:PRINTED]:
            yield f"{warning.condition} ({warning.side}): {warning.message} ({warning.source})"
        for form in made.forms:
            yield f"other form, {form.name}: {form}"


def _crowded(made: Any) -> Iterator[str]:
    """Say where a plan puts more GPUs on the one node than nodes usually have."""
    for row in made.rows:
        if row.path == "batch.devices" and row.note.startswith(ONE_NODE) and row.becomes > _NODE >= row.was:
            yield (
                f"{row.key}: {row.becomes} GPUs on one node; for nodes of {_NODE}, let the file say its nodes (1), and "
                f"plan it with --set {MOST}={_NODE}"
            )


def _other_rate(made: Any) -> Iterator[str]:
    """Say what the plan's own rule would give, where the trainer's is another one."""
    other = made.by_own_rule
    if other is not None:
        key, stated, wanted = other
        yield f"by the plan's own rule {key} would be {show(wanted)} in place of {show(stated)} (--set rules.lr=auto)"


def command(made: Any) -> str | None:
    """Return the planned command in one line, None for a file that is no command."""
    source = made.ledger.source
    if source.kind != "command":
        return None
    return lines_of(replace(source, text=made.text()))


def render(made: Any, width: int) -> Iterator[Any]:
    """Yield a plan of a file for a terminal.

    Args:
        made: the plan, an `isobatch.formats.FilePlan`.
        width: of the terminal.

    Yields:
        Renderables for rich.
    """
    from rich.table import Table
    from rich.text import Text

    from isobatch.plan.plan import WIDE

    wide = width >= WIDE
    yield Text(head(made), style="bold")
    if made.rows:
        table = Table(pad_edge=False, expand=False)
        for name in ("key", "was", "becomes", "rule", *(["because"] if wide else []), "confidence"):
            table.add_column(name, overflow="fold", no_wrap=name == "confidence")
        for row in made.rows:
            cells = (row.key, show(row.was), Text(show(row.becomes), style="bold"), row.rule)
            table.add_row(*cells, *([row.because] if wide else []), row.confidence)
        yield table
        yield from (Text(f"  {row.key}: {row.note}") for row in _noted(made))
    for text in remarks(made):
        yield Text.assemble(("! " if text.startswith(("acts", "lint", "cannot")) else "- ", "bold yellow"), text)


def _noted(made: Any) -> Iterator[Any]:
    yield from (row for row in made.rows if row.note and row.note != "added: the trainer's default stood here")
