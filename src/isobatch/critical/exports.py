"""Runs as trackers export them: names in one spelling, settings flat, histories up to where a goal was reached."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isobatch.errors import InputError

BATCH = ("batch", "batch_size", "global_batch_size", "train_batch_size", "total_batch_size", "bs")
BATCH_TOKENS = ("batch_tokens", "tokens_per_batch", "tokens_per_step", "global_batch_tokens", "batch_size_tokens")
RUN = ("seed", "run", "run_id", "run_name", "id", "name")
CLOCKS = {
    "steps": ("global_step", "global_steps", "optimizer_step", "optimizer_steps", "steps"),
    "samples": ("samples", "samples_seen", "consumed_samples", "num_samples", "examples_seen"),
    "tokens": ("tokens", "tokens_seen", "consumed_tokens", "num_tokens", "num_input_tokens_seen", "total_tokens"),
    "epochs": ("epoch", "epochs"),
}
"""Unit -> names of what counts it in a history; a prefix such as trainer/ is passed over."""
_LOGGED = ("_step", "step")
_RATE = ("lr", "learning_rate", "peak_lr", "base_lr", "max_lr")
_PREFIX = re.compile(r"^(config|summary|summary_metrics|params|metrics)[./_]+")
_GOAL = re.compile(r"^\s*(.+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*$")
_IN_NAME = re.compile(r"(?:^|[^a-z])(?:global_?batch(?:_?size)?|batch(?:_?size)?|bs)\s*[:=_-]?\s*(\d+)", re.IGNORECASE)
_BOUND = re.compile(r"__(MIN|MAX)$")
_WIDE = " - "


@dataclass(frozen=True)
class RunGoal:
    """What a run has to reach.

    Args:
        metric: its name, as spelled by `spelled`.
        value: the bound.
        falls: whether the metric has to fall to it.
    """

    metric: str
    value: float
    falls: bool

    @classmethod
    def parse(cls, text: str) -> "RunGoal":
        """Read a goal.

        Args:
            text: such as "val/loss <= 3.2" or "accuracy >= 0.75".

        Returns:
            The goal.

        Raises:
            InputError: another form, or a bound that is no number.

        Example:
            >>> RunGoal.parse("val/loss<=3.2")
            RunGoal(metric='val/loss', value=3.2, falls=True)
        """
        match = _GOAL.match(text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise InputError(f'goal={text!r} must be a metric, <= or >=, and a number, such as "val/loss <= 3.2"')
        return cls(spelled(match[1]), bound, "<" in match[2])

    def holds(self, value: float) -> bool:
        """Whether a value is at the goal or past it.

        Args:
            value: of the metric.

        Returns:
            The answer.
        """
        return value <= self.value if self.falls else value >= self.value

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.falls else '>='} {self.value:g}"


@dataclass(frozen=True)
class _Run:
    label: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def spelled(key: str) -> str:
    """Return the name of a column in one spelling.

    Args:
        key: as the file has it.

    Returns:
        Lower case, underscores, without config. and summary.

    Example:
        >>> spelled("config.Batch Size"), spelled("val/loss")
        ('batch_size', 'val/loss')
    """
    return _PREFIX.sub("", re.sub(r"[\s\-]+", "_", str(key).strip().lower()))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with nested settings and summary beside the rest, and names in one spelling.

    Args:
        row: of a file.

    Returns:
        The row.

    Example:
        >>> flat({"config": {"batch_size": {"value": 8}}, "summary": {"Steps": 20}})
        {'batch_size': 8, 'steps': 20}
    """
    found: dict[str, Any] = {}
    for key, cell in row.items():
        if isinstance(cell, Mapping) and set(cell) != {"value"}:
            found |= flat(cell)
        else:
            found[spelled(key)] = cell["value"] if isinstance(cell, Mapping) else cell
    return found


def is_history(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows are histories, not one result a run.

    Args:
        rows: of a file.

    Returns:
        The answer: nested histories, one column a run, or a count of log calls.
    """
    keys = {str(key) for row in rows for key in row}
    lists = any(isinstance(row.get(key), list) and row[key] and isinstance(row[key][0], Mapping)
                for row in rows for key in ("history", "values"))  # fmt: skip
    return lists or any(_WIDE in key for key in keys) or bool(keys & {"_step", "Step"})


def reached(
    rows: Sequence[Mapping[str, Any]],
    goal: RunGoal,
    *,
    unit: str | None,
    batch: str | None,
    value: str | None,
    where: str,
) -> tuple[list[dict[str, Any]], str, list[str]]:
    """Reduce histories to what each run took to the goal: its first evaluation at the goal or past it.

    Where runs at one batch differ in their learning rate, those of the fastest rate are kept, as in a sweep.

    Args:
        rows: rows of all runs with a run column, runs with a history each, or one column a run.
        goal: to be reached.
        unit: of the clock, where its column does not declare it.
        batch: column of the batch.
        value: column of the clock.
        where: the file, for messages.

    Returns:
        Rows of run, batch and value; the unit; and notes on what was left out.

    Raises:
        InputError: no such metric, batch or clock, a clock whose unit is not declared, or no run at the goal.
    """
    runs = list(_runs(rows, goal, batch, where))
    column, declared = _clock(runs, unit, value, where)
    notes: list[str] = []
    found: dict[tuple[float, Any], list[dict[str, Any]]] = {}
    for run in runs:
        size, key, told = _batch(run, batch, where)
        notes += told
        amount, told = _first(run, goal, column, where)
        notes += [f"run {run.label!r}, batch {size:g}: {note}" for note in told]
        if amount is not None:
            rate = next((run.settings[key] for key in _RATE if run.settings.get(key) not in (None, "")), None)
            found.setdefault((size, rate), []).append({"run": run.label, key: size, declared: amount})
    if not found:
        raise InputError(f"{where}: no run reaches {goal}; " + "; ".join(notes[:3]))
    kept, more = _fastest(found, declared)
    return kept, declared, [*notes, *more]


def _fastest(
    found: Mapping[tuple[float, Any], list[dict[str, Any]]], unit: str
) -> tuple[list[dict[str, Any]], list[str]]:
    kept, notes = [], []
    for size in sorted({size for size, _ in found}):
        rates = {rate: rows for (own, rate), rows in found.items() if own == size}
        best = min(rates, key=lambda rate: sum(math.log(row[unit]) for row in rates[rate]) / len(rates[rate]))
        kept += rates[best]
        if len(rates) > 1:
            notes.append(f"batch {size:g}: {len(rates)} learning rates reach the goal, the fastest is kept: {best}")
    return kept, notes


def _runs(rows: Sequence[Mapping[str, Any]], goal: RunGoal, batch: str | None, where: str) -> Iterator[_Run]:
    """Yield runs from any of the three forms, each with the settings that do not change within it."""
    nested = [row for row in rows if any(isinstance(row.get(key), list) for key in ("history", "values"))]
    if nested:
        for index, row in enumerate(rows, start=1):
            own = {key: cell for key, cell in row.items() if key not in ("history", "values")}
            settings, history = flat(own), row.get("history", row.get("values")) or []
            if not all(isinstance(one, Mapping) for one in history):
                raise InputError(f"{where}, run {index}: its history must be a list of rows of named values")
            metric = spelled(str(row.get("metric", "")))
            named = [
                flat({(metric if key == "value" and metric else key): cell for key, cell in one.items()})
                for one in history
            ]
            label = next(
                (str(settings[key]) for key in ("run", "run_name", "name", "id", "run_id") if settings.get(key)),
                f"{index}",
            )
            yield _Run(label, settings, named)
        return
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    wide = [key for key in columns if _WIDE in key and not _BOUND.search(key)]
    wide = [key for key in wide if spelled(key.rpartition(_WIDE)[2]) == goal.metric]
    if wide:
        for key in wide:
            label = key.rpartition(_WIDE)[0]
            own = [
                {**{spelled(k): c for k, c in row.items() if _WIDE not in k}, goal.metric: row[key]}
                for row in rows
                if row.get(key) not in (None, "")
            ]
            yield _Run(label, {}, own)
        return
    named = [flat(row) for row in rows]
    keys = {key for row in named for key in row}
    by = next((key for key in ("run", "run_id", "run_name", "id", "name", "seed") if key in keys), None)
    size = spelled(batch) if batch is not None else next((key for key in (*BATCH, *BATCH_TOKENS) if key in keys), None)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in named:
        groups.setdefault((str(row.get(by, "")), str(row.get(size, "")) if by in (None, "seed") else ""), []).append(
            row
        )
    for (label, own_size), own in groups.items():
        settings = {key: cell for row in own for key, cell in row.items() if cell not in (None, "")}
        text = " ".join(part for part in (label, f"batch {own_size}" if own_size else "") if part)
        yield _Run(text or "1", settings, own)


def _clock(runs: Iterable[_Run], unit: str | None, value: str | None, where: str) -> tuple[str, str]:
    """Column and unit of the clock; refused where the file does not say what it counts."""
    columns = list(dict.fromkeys(key for run in runs for row in run.rows for key in row))
    units = {name: own for own, names in CLOCKS.items() for name in names}
    own = {key: units[key.rpartition("/")[2]] for key in columns if key.rpartition("/")[2] in units}
    if value is not None:
        column = spelled(value)
        if column not in columns:
            raise InputError(f"{where} has no column {value!r}; it has {', '.join(columns)}: name one of them")
        if own.get(column) and unit is not None and own[column] != unit:
            raise InputError(
                f"{where} mixes units: the column {value!r} beside unit {unit}; "
                "leave the unit out, or name another column"
            )
        declared = own.get(column, unit)
        if declared is None:
            raise InputError(f"{where}: the unit of {value!r} is not declared; say steps, samples, tokens or epochs")
        return column, declared
    fitting = [key for key in own if unit is None or own[key] == unit]
    if len(fitting) == 1:
        return fitting[0], own[fitting[0]]
    if len(fitting) > 1:
        raise InputError(
            f"{where} has several clocks ({', '.join(fitting)}): mixed units? Name one of them as the value"
        )
    logged = next((key for key in _LOGGED if key in columns), None)
    if logged is None:
        raise InputError(f"{where} has no column that counts steps, samples, tokens or epochs; name it as the value")
    if unit is None:
        raise InputError(
            f"{where}: {logged!r} counts calls of the logger, which need be no optimizer steps; declare the unit if "
            "they are, or name another column as the value"
        )
    return logged, unit


def _batch(run: _Run, batch: str | None, where: str) -> tuple[float, str, list[str]]:
    """Batch of a run, the key under which it goes on, and what it was read off."""
    keys = (spelled(batch),) if batch is not None else (*BATCH, *BATCH_TOKENS)
    told = {key: run.settings[key] for key in keys if run.settings.get(key) not in (None, "")}
    if len(told) > 1:
        raise InputError(f"{where}, run {run.label!r} has several columns for the batch ({', '.join(told)}); name one")
    cell = next(iter(told.values()), None)
    notes = []
    if cell is None and batch is None:
        match = _IN_NAME.search(run.label)
        if match is None:
            raise InputError(
                f"{where}: no column and no name says the batch of run {run.label!r}; export it with its settings, "
                "name the column, or call the run such as bs64"
            )
        cell, notes = match[1], [f"run {run.label!r}: batch {match[1]} read off its name"]
    size = _float(cell)
    if size is None or size <= 0:
        raise InputError(
            f"{where}, run {run.label!r}: the batch is {cell!r}, which is no positive number; "
            "correct it, or name another column"
        )
    return size, "batch_tokens" if any("token" in key for key in told) else "batch", notes


def _first(run: _Run, goal: RunGoal, column: str, where: str) -> tuple[float | None, list[str]]:
    """The clock at the first evaluation that is at the goal; None where there is none."""
    seen = []
    for row in run.rows:
        metric, clock = _float(row.get(goal.metric)), _float(row.get(column))
        if metric is not None and clock is not None:
            seen.append((clock, metric))
    if not seen:
        known = sorted({key for row in run.rows for key in row})
        raise InputError(
            f"{where}, run {run.label!r} has no {goal.metric!r} beside {column!r}; it has {', '.join(known)}: "
            "set the goal on one of them"
        )
    seen.sort()
    done = [(clock, metric) for clock, metric in seen if goal.holds(metric)]
    if not done:
        best = (min if goal.falls else max)(metric for _, metric in seen)
        return None, [f"left out, never at {goal}: its best is {best:g}"]
    first = done[0][0]
    if first <= 0:
        return None, [f"left out, at {goal} before it trained"]
    notes = ["at the goal at its first evaluation; the truth may be far sooner"] if first == seen[0][0] else []
    return first, notes


def _float(cell: Any) -> float | None:
    """A number of a history; None for gaps, NaN and texts, which trackers write between evaluations."""
    if isinstance(cell, bool) or cell is None:
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
