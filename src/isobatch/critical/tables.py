"""Tables of (batch, how much to the goal, seeds) from CSV and JSON files, in a declared unit or not at all."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from isobatch.critical.exports import SINCE, RunGoal, is_history, reached
from isobatch.critical.mlperf import is_reference, reference_rows, reference_unit
from isobatch.critical.settings import (
    BATCH,
    BATCH_TOKENS,
    RUN,
    blank,
    check_whole_batch,
    flat,
    spelled,
    told_once,
    whole_name,
)
from isobatch.errors import InputError, unreadable
from isobatch.units import finite

UNITS = ("steps", "samples", "tokens", "epochs")
_VALUE = re.compile(r"^(steps|samples|tokens|epochs)(_to_(target|goal|loss|accuracy|converge|convergence))?$")
_PLAIN = ("value", "to_target", "to_goal")
_ENDED = ("finished", "completed", "complete", "done", "succeeded", "")
_REACHED = ("reached", "reached_goal", "goal_reached", "reached_target", "target_reached", "converged", "success")
_NOT_REACHED = ("censored", "diverged", "timed_out", "timeout")
_SAYS = {"true": True, "yes": True, "y": True, "1": True, "1.0": True,
         "false": False, "no": False, "n": False, "0": False, "0.0": False}  # fmt: skip
_JUMP, _FALL = 10.0, 1.2


@dataclass(frozen=True)
class TablePoint:
    """What runs at one batch took to the goal.

    Args:
        batch: samples of an update.
        values: one for each seed, in the table's unit.
        since: the evaluation before each value, short of the goal; empty where only the values are known.
    """

    batch: float
    values: tuple[float, ...]
    since: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of batches, sorted, each once.

    Args:
        name: of the file or benchmark.
        unit: steps, samples, tokens or epochs.
        points: by rising batch.
        size: samples in one unit; None where unknown, and of no use for steps.
        notes: what was left out on the way, and what looks odd.
        batch_unit: samples or tokens, what a batch counts.
    """

    name: str
    unit: str
    points: tuple[TablePoint, ...]
    size: float | None = None
    notes: tuple[str, ...] = ()
    batch_unit: str = "samples"

    @property
    def amount(self) -> str:
        """The unit of what grows with the batch: that of the batch for steps."""
        return self.batch_unit if self.unit == "steps" else self.unit

    @property
    def scale(self) -> float | None:
        """How much of a batch is one unit of `amount`, None where unknown."""
        return 1.0 if self.unit in ("steps", self.batch_unit) else self.size


def read_table(
    path: Path,
    *,
    unit: str | None = None,
    batch: str | None = None,
    value: str | None = None,
    size: float | None = None,
    edition: str | None = None,
    goal: str | None = None,
) -> Table:
    """Read a table from CSV, JSON or JSON lines.

    Rows hold a batch, a value named by its unit (steps, samples, tokens, epochs, also as steps_to_target) and a seed
    or run; JSON values may be lists of seeds. Columns of exported runs (`config.batch_size`, `summary.steps`) are
    found, and MLPerf's files of reference convergence points are known by their form. Rows of runs that did not end
    (state, status) or did not get there (reached, converged, diverged, ...) are left out, and a batch at which most did
    not. With a goal, the file holds histories, and each run counts up to its first evaluation at the goal.

    Args:
        path: a .csv, .json or .jsonl file.
        unit: of the values, where no column or benchmark declares it.
        batch: column of the batch.
        value: column of the values.
        size: samples in one unit: of an epoch, or 1/2048 for tokens in sequences of 2048.
        edition: MLPerf round, such as training_4.1.0; read off the folder unless given.
        goal: of histories, such as "val/loss <= 3.2".

    Returns:
        The table.

    Raises:
        InputError: an unreadable file, no declared unit, mixed units, a batch twice, values that are not positive
            numbers, one batch only, or samples that fall as the batch grows.
    """
    if unit is not None and unit not in UNITS:
        raise InputError(f"unit={unit!r} must be one of {', '.join(UNITS)}")
    if size is not None:
        finite("size", size, 0, open_low=True)
    aim = None if goal is None else RunGoal.parse(goal)
    content = _content(path)
    if is_reference(content):
        if aim is not None:
            raise InputError(f"{path} holds reference convergence points, which are at their goal; drop the goal {aim}")
        declared, known = (unit, None) if unit is not None else reference_unit(content, path, edition)
        rows = reference_rows(content, declared)
        table = _collected(rows, path.stem, declared, batch=None, value=None, where=str(path))
        size = size if size is not None else known
    else:
        if isinstance(content, Mapping):
            unit = unit if unit is not None else content.get("unit")
            known = ("points", "rows", "runs", *(() if aim is None else ("history",)))
            content = [content] if isinstance(content.get("values"), list) else next(
                (content[key] for key in known if key in content), content)  # fmt: skip
        if not content or not isinstance(content, Sequence) or not all(isinstance(row, Mapping) for row in content):
            raise InputError(f"{path} must hold rows of named values, a list of them or under 'points'")
        notes: list[str] = []
        if aim is not None:
            content, unit, notes = reached(content, aim, unit=unit, batch=batch, value=value, where=str(path))
            batch, value = None, unit
        elif is_history(content):
            raise InputError(f'{path} holds histories; say what a run has to reach, such as --goal "val/loss <= 3.2"')
        else:
            chosen = {whole_name(given) for given in (batch, value) if given is not None}
            content = [flat(row, chosen) for row in content]
        table = _collected(content, path.stem, unit, batch=batch, value=value, where=str(path))
        table = replace(table, notes=(*notes, *table.notes))
    return checked(replace(table, size=size))


def checked(table: Table) -> Table:
    """Return a table with what looks odd in its notes, or refuse it.

    Args:
        table: any.

    Returns:
        The table.

    Raises:
        InputError: fewer than three batches, samples that fall over the whole range, or jumps of a factor of 10 that
            no batch explains, which mixed units do.
    """
    points, amount = table.points, table.amount
    if len(points) < 3:
        raise InputError(
            f"{table.name}: {len(points)} batch{'es' if len(points) != 1 else ''}; a fit takes at least 3 different "
            "ones, an identified critical batch 4" + "".join(f"; {note}" for note in table.notes[:3])
        )
    middle = [_median(p.values) * (p.batch if table.unit == "steps" else 1) for p in points]
    words = [f"{value:,.6g} at batch {p.batch:,.6g}" for value, p in zip(middle, points, strict=True)]
    jumps, notes = [], []
    for i, (one, two) in enumerate(pairwise(points)):
        rise = middle[i + 1] / middle[i]
        if rise > _JUMP * two.batch / one.batch or rise < 1 / _JUMP:
            jumps.append(i)
        if rise < 1 / _FALL:
            notes.append(f"{amount} fall from {words[i]} to {words[i + 1]}: settings differ, or a batch was not tuned")
    one_odd = jumps in ([0], [len(points) - 2]) or (len(jumps) == 2 and jumps[1] == jumps[0] + 1)
    if jumps and not (one_odd and len(points) > 4):
        raise InputError(
            f"{table.name}: {amount} go from {words[jumps[0]]} to {words[jumps[0] + 1]}, which no batch explains: "
            "mixed units? A table holds one; leave the batch out if it is a typing error"
        )
    falls = sum(later < sooner for sooner, later in combinations(middle, 2))
    if not jumps and middle[-1] < 0.95 * middle[0] and falls > len(points) * (len(points) - 1) / 4:
        raise InputError(
            f"{table.name}: {amount} fall as the batch grows, from {words[0]} to {words[-1]}; a larger batch needs no "
            "fewer at its best. If these are steps, declare the unit as steps"
        )
    return replace(table, notes=(*table.notes, *notes))


def _content(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("the table", path, error) from None
    if path.suffix.lower() in (".csv", ".tsv"):
        return table_rows(text, str(path), "batch,seed,samples")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is neither CSV by its name nor JSON: {error}; name it .csv or .tsv, or mend the file"
        ) from None


def table_rows(text: str, where: str, example: str) -> list[dict[str, Any]]:
    """Return the rows of a table with a header, between commas, semicolons or tabs.

    Args:
        text: of the file.
        where: the file, for messages.
        example: of a header, for messages.

    Returns:
        Cells by column; rows without any cell are passed over.

    Raises:
        InputError: no rows, a column twice, or cells that no reader takes.
    """
    lines = text.splitlines()
    between = max(",;\t", key=lines[0].count) if lines else ","
    try:
        head = next(csv.reader(lines, delimiter=between), [])
        again = sorted({key for key in head if key and head.count(key) > 1})
        if again:
            raise InputError(f"{where} has several columns called {', '.join(again)}; keep one of each name")
        reader = csv.DictReader(lines, delimiter=between)
        rows = []
        for row in reader:
            more = [cell for cell in row.pop(None, None) or () if cell.strip()]
            if more:
                raise InputError(
                    f"{where}, line {reader.line_num} holds more cells than the header: {', '.join(more)} beyond "
                    f"{head[-1]!r}; where a comma stands for decimals or thousands, write 1234.5 for 1,234.5 or "
                    "1.234,5, or put such cells in quotes"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{where} cannot be read as a table: {error}; mend the file") from None
    rows = [row for row in rows if any(isinstance(cell, str) and cell.strip() for cell in row.values())]
    if not rows:
        raise InputError(f"{where} must have a header, such as {example}, and rows below it")
    return rows


def _collected(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    unit: str | None,
    *,
    batch: str | None,
    value: str | None,
    where: str,
) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    at = _column(columns, batch, (*BATCH, *BATCH_TOKENS), "batch", where)
    values, declared = _values(rows, columns, unit, value, where)
    run = next((key for key in RUN if key in columns), None)
    found: dict[float, list[float]] = {}
    since: dict[float, list[float]] = {}
    seen: set[tuple[float, str]] = set()
    tried: Counter[float] = Counter()
    notes = []
    for line, row in enumerate(rows, start=1):
        state = str(row.get("state") or row.get("status") or "")
        if state.strip().lower() not in _ENDED:
            notes.append(f"row {line} left out: state {state!r}")
            continue
        size = _number(row.get(at), f"{where}, row {line}, {at}")
        short = _short_of_goal(row, f"{where}, row {line}")
        tried[size] += 1
        if short is not None:
            notes.append(f"row {line} left out: {short}, so that it would take longer")
            continue
        if batch is None:
            check_whole_batch(at, row, f"{where}, row {line}")
        cells = row.get(values)
        several = isinstance(cells, (list, tuple))
        numbers = [_number(c, f"{where}, row {line}, {values}") for c in (cells if several else [cells])]
        if not numbers:
            raise InputError(f"{where}, row {line}, {values} is an empty list; give a value for each seed")
        key = (size, "" if several or run is None else str(row.get(run)))
        if key in seen:
            which = f"{run} {key[1]!r} of " if key[1] else ""
            way = "give each row a seed or run of its own" if run is None or several else "leave one out"
            raise InputError(f"{where}, row {line}: {which}batch {size:g} stands there twice; {way}")
        seen.add(key)
        found.setdefault(size, []).extend(numbers)
        if SINCE in row:
            since.setdefault(size, []).append(row[SINCE])
        tried[size] += len(numbers) - 1
    for size in [size for size, values in found.items() if 2 * len(values) < tried[size]]:
        notes.append(
            f"batch {size:g}: left out, only {len(found.pop(size))} of {tried[size]} runs reach the goal, and the "
            "others would take longer"
        )
    points = tuple(TablePoint(size, tuple(found[size]), tuple(since.get(size, ()))) for size in sorted(found))
    counted = "tokens" if at in BATCH_TOKENS or "token" in at else "samples"
    return Table(name, declared, points, notes=tuple(notes), batch_unit=counted)


def _short_of_goal(row: Mapping[str, Any], where: str) -> str | None:
    """The cell by which a run did not get to the goal, None where no column says so."""
    for key in (*_REACHED, *_NOT_REACHED):
        cell = told_once(row.get(key), f"{where}, {key}")
        if blank(cell):
            continue
        told = _SAYS.get(str(cell).strip().lower())
        if told is None:
            raise InputError(f"{where}, {key} is {cell!r}; write true or false, or leave the column out")
        if told is (key in _NOT_REACHED):
            return f"{key} {cell!r}"
    return None


def _column(columns: list[str], wanted: str | None, known: Iterable[str], what: str, where: str) -> str:
    columns = [key for key in columns if key != SINCE]
    if wanted is not None:
        if spelled(wanted) not in columns:
            raise InputError(f"{where} has no column {wanted!r}; it has {', '.join(columns)}: name one of them")
        return spelled(wanted)
    found = [key for key in known if key in columns]
    if len(found) != 1:
        problem = f"several columns for the {what} ({', '.join(found)})" if found else f"no column for the {what}"
        raise InputError(f"{where} has {problem}; name it, one of {', '.join(columns) or 'none'}")
    return found[0]


def _values(
    rows: Sequence[Mapping[str, Any]], columns: list[str], unit: str | None, value: str | None, where: str
) -> tuple[str, str]:
    """Column and unit of the values; exactly one unit, declared by the column, a unit column, or the caller."""
    listed = {str(row["unit"]).strip().lower() for row in rows if row.get("unit") not in (None, "")}
    if len(listed) > 1 or (unit is not None and listed and listed != {unit}):
        units = ", ".join(sorted(listed | ({unit} if unit is not None else set())))
        raise InputError(f"{where} mixes units: {units}; a table holds one: keep its rows alone")
    stated = unit if unit is not None else next(iter(listed), None)
    if stated is not None and stated not in UNITS:
        raise InputError(f"{where}: unit {stated!r} must be one of {', '.join(UNITS)}")
    named = [key for key in columns if _VALUE.match(key)]
    if value is None and len(named) > 1:
        raise InputError(f"{where} has several columns of values ({', '.join(named)}): mixed units? Name one of them")
    column = _column(columns, value, named or _PLAIN, "values (steps, samples, tokens or epochs)", where)
    match = _VALUE.match(column)
    own = match[1] if match else None
    if own is not None and stated is not None and own != stated:
        raise InputError(
            f"{where} mixes units: the column {column!r} beside unit {stated}; "
            "leave the unit out, or name another column"
        )
    if own is None and stated is None:
        raise InputError(f"{where}: the unit of {column!r} is not declared; say steps, samples, tokens or epochs")
    return column, own or str(stated)


def _number(cell: Any, where: str) -> float:
    if isinstance(told_once(cell, where), str):
        try:
            cell = float("_" if "_" in cell else cell)
        except ValueError:
            raise InputError(
                f"{where} is {cell!r}, which is no number; correct the cell, or leave the row out"
            ) from None
    return finite(where, cell, 0, open_low=True)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else math.sqrt(ordered[half - 1] * ordered[half])
