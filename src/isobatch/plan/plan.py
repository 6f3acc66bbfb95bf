"""Plan: rows of key, was, becomes and why, with the warnings and the scaled recipe."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from isobatch.markup import panel
from isobatch.plan.settings import lr_rule_of
from isobatch.recipe import RecipeData, Split
from isobatch.rules import Confidence, Severity, Side

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console, ConsoleOptions, RenderResult

R = TypeVar("R", bound=RecipeData)
WIDE = 120
"""Columns of a terminal from which the reasons fit into the table."""
PRINTED = 5
"""Cautions that are printed; programs get them all."""
_STYLE = {"theorem": "green", "derived": "cyan", "measured": "cyan", "convention": "yellow", "unknown": "magenta"}


@dataclass(frozen=True)
class Row:
    """One setting of a plan.

    Args:
        key: the setting, as in the recipe.
        was: its value at the old batch.
        becomes: its value at the new batch.
        rule: the formula.
        because: why, with the source.
        confidence: how sure the rule is.
        note: horizons, other forms, consequences.
        unit: of a span, samples or tokens; "" for a plain number.
        steps: whole optimizer steps that a span takes, before and after; None where it is no span.
        said: was as the recipe says it, such as "10 epochs", and becomes likewise; "" for the number itself.
    """

    key: str
    was: object
    becomes: object
    rule: str
    because: str
    confidence: Confidence
    note: str = ""
    unit: str = ""
    steps: tuple[int, int] | None = None
    said: tuple[str, str] = ("", "")

    @property
    def kept(self) -> bool:
        """Whether nothing changed, to rounding."""
        was, becomes = self.was, self.becomes
        if isinstance(was, (int, float)) and isinstance(becomes, (int, float)):
            return math.isclose(was, becomes, rel_tol=1e-12)
        return was == becomes

    @property
    def text(self) -> tuple[str, str]:
        """What was and what it becomes, for people; "kept" where nothing changed."""
        was, becomes = (
            said or (f"{count(value)} {self.unit}" if self.unit else show(value))
            for said, value in zip(self.said, (self.was, self.becomes), strict=True)
        )
        return was, "kept" if self.kept else becomes


@dataclass(frozen=True)
class PlanWarning:
    """Why the scaled run may not be the same run.

    Args:
        condition: the quantity and its bound.
        message: what to expect and what to do.
        source: where the condition comes from.
        side: of kappa = 1 on which it holds: kappa > 1, kappa < 1 or any other batch.
        severity: 0 where the run may fail, 1 where it may be another run, 2 where it is only weaker or not known.
    """

    condition: str
    message: str
    source: str
    side: Side = Side.BOTH
    severity: Severity = Severity.ANOTHER


@dataclass(frozen=True)
class Form:
    """Another form of the optimizer's rules that is right as well, with all its numbers.

    Args:
        name: what is done otherwise.
        how: what to set, in the recipe or on the command line.
        values: setting -> its number at the new batch.
        because: where it is the better one, and what authors chose.
    """

    name: str
    how: str
    values: Mapping[str, object]
    because: str

    def __str__(self) -> str:
        numbers = ", ".join(f"{key.removeprefix('optimizer.')} {show(value)}" for key, value in self.values.items())
        return f"{numbers}: {self.because}"


@dataclass(frozen=True)
class Remedy:
    """One way to keep a batch useful that is larger than the noise scale.

    Args:
        name: what it is called.
        how: where it is switched on.
        cost: what it takes.
        evidence: who says that it helps, and which study here asks again.
    """

    name: str
    how: str
    cost: str
    evidence: str


@dataclass(frozen=True)
class Plan(Generic[R]):
    """The same run at another batch; printing it gives a table.

    Args:
        kappa: new batch / old batch.
        rows: row 0 is always "keep the batch, accumulate".
        warnings: conditions under which the rules are weak, the worst first; five of them are printed.
        recipe: the scaled recipe.
        kept: the other answer: the reference batch on the same devices, by accumulation.
        forms: other forms that are right as well, each with all its numbers.
        remedies: what applies past the noise scale, where that is known.
        length: new length over old; not 1 where another one was asked for.
    """

    kappa: float
    rows: tuple[Row, ...]
    warnings: tuple[PlanWarning, ...]
    recipe: R
    kept: Split
    remedies: tuple[Remedy, ...] = ()
    forms: tuple[Form, ...] = ()
    length: float = 1.0

    def row(self, key: str) -> Row:
        """Return the row of a setting.

        Args:
            key: as in the recipe, such as "optimizer.lr".

        Returns:
            The row.

        Raises:
            KeyError: a setting that the plan does not touch.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise KeyError(f"no row {key!r}; rows: {', '.join(row.key for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON.

        Returns:
            kappa, goal, length (new over old), kept (the reference batch on the devices), rows, forms, warnings,
            remedies and the scaled recipe.
        """
        return {
            "kappa": self.kappa,
            "goal": "equivalence" if lr_rule_of(self.recipe).length is None else "speed",
            "length": self.length,
            "kept": asdict(self.kept),
            "rows": [asdict(row) | {"kept": row.kept, "text": list(row.text)} for row in self.rows],
            "forms": [asdict(form) for form in self.forms],
            "warnings": [asdict(warning) for warning in self.warnings],
            "remedies": [asdict(remedy) for remedy in self.remedies],
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
        }

    def to_json(self) -> str:
        """Return the plan as JSON for programs.

        Returns:
            JSON text.
        """
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the plan as a Markdown table, ready to paste into an issue.

        Returns:
            Markdown text.
        """
        lines = ["| key | was | becomes | rule | because | confidence | note |", "|---|---|---|---|---|---|---|"]
        for row in self.rows:
            cells = (row.key, *row.text, row.rule, row.because, row.confidence, row.note)
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        lines += [f"- other form, **{form.name}** ({form.how}): {form}" for form in self.forms]
        lines += [f"- **{w.condition}** ({w.side}): {w.message} ({w.source})" for w in self.warnings[:PRINTED]]
        lines += [f"- past the noise scale, **{r.name}**: {r.how}; {r.cost} ({r.evidence})" for r in self.remedies]
        return "\n".join(lines)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        rows = [["key", "was", "becomes", "because", "confidence"]]
        rows += [[row.key, *row.text, row.because, str(row.confidence)] for row in self.rows]
        notes = [f"{one.condition} ({one.side}): {one.message} ({one.source})" for one in self.warnings[:PRINTED]]
        return panel(f"kappa = {self.kappa:g}, batch {self.recipe.batch.size}", rows, notes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from render(self, options.max_width)


def show(value: object) -> str:
    """Return a setting's value for people: six significant digits, more where a decay close to 1 needs them.

    A decay is shown with the digits that keep its half-life to 0.05%, so that it can be copied.

    Args:
        value: a number, a list of numbers or text.

    Returns:
        Text.

    Example:
        >>> show([0.9, 0.999]), show(0.98411912), show(5542.0)
        ('[0.9, 0.999]', '0.984119', '5542')
        >>> show(0.9998 ** (1 / 64))
        '0.999996875'
    """
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if not isinstance(value, float):
        return str(value)
    digits = 6
    if 0.5 < value < 1:
        while digits < 17 and not _same_half_life(float(f"{value:.{digits}g}"), value):
            digits += 1
    return f"{value:.{digits}g}"


def _same_half_life(copied: float, decay: float) -> bool:
    return copied < 1 and math.isclose(math.log(copied), math.log(decay), rel_tol=5e-4)


def count(value: object) -> str:
    """Return samples or steps for people: whole where there are many.

    Args:
        value: a number.

    Returns:
        Text.

    Example:
        >>> count(677770454.672), count(93.05033), count(1250)
        ('677,770,455', '93.0503', '1,250')
    """
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and abs(value) >= 1e5):
        return f"{round(value):,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def render(plan: Plan[R], width: int) -> Iterator[Any]:
    """Yield a table of the plan's rows, its warnings and its notes.

    Args:
        plan: the plan.
        width: of the terminal; in a narrow one the reasons stand below the table.

    Yields:
        Renderables for rich.
    """
    from rich.table import Table
    from rich.text import Text

    run = lr_rule_of(plan.recipe).run if plan.length == 1 else f"another run, {plan.length:g} times as long,"
    title = f"kappa = {plan.kappa:g}: {run} at batch {plan.recipe.batch.size}"
    now, unit = plan.recipe.batch, plan.recipe.batch.unit
    yield Text(f"devices x micro x n: {plan.kept} keeps the batch of {plan.kept.size} {unit} and every other number,")
    yield Text(f"or {now.devices} x {now.per_device} x n = {now.accumulation} is a batch of {now.size}, by these rows:")
    table = Table(title=title, title_style="bold", show_lines=False, pad_edge=False, expand=False)
    wide = width >= WIDE
    for name in ("key", "was", "becomes", "rule", *(["because"] if wide else []), "confidence"):
        table.add_column(name, overflow="fold", no_wrap=name in ("key", "confidence"))
    for row in plan.rows:
        was, becomes = row.text
        table.add_row(
            row.key,
            was,
            Text(becomes, style="" if row.kept else "bold"),
            row.rule,
            *([row.because] if wide else []),
            Text(row.confidence, style=_STYLE[row.confidence]),
        )
    yield table
    for row in plan.rows:
        text = row.note if wide else "; ".join(part for part in (row.because, row.note) if part)
        if text:
            yield Text.assemble(("  ", ""), (row.key, "bold"), f": {text}")
    for form in plan.forms:
        yield Text.assemble(("= ", "bold green"), (form.name, "bold"), f" ({form.how}): {form}")
    for warning in plan.warnings[:PRINTED]:
        told = f" ({warning.side}): {warning.message} ({warning.source})"
        yield Text.assemble(("! ", "bold yellow"), (warning.condition, "bold"), told)
    if len(plan.warnings) > PRINTED:
        yield Text(f"  {len(plan.warnings) - PRINTED} weaker cautions more in --json")
    if plan.remedies:
        yield Text("past the noise scale: keep the batch smaller, or", style="bold")
    for remedy in plan.remedies:
        yield Text.assemble(("+ ", "bold cyan"), (remedy.name, "bold"), f": {remedy.how}; {remedy.cost}")
        yield Text(f"    {remedy.evidence}")
