"""Histories as trackers export them: each run up to where it reached a goal, and what cannot be counted by name."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from isobatch.critical.settings import (
    BATCH,
    BATCH_TOKENS,
    Several,
    blank,
    check_whole_batch,
    flat,
    number,
    spelled,
    told_number,
    told_once,
    whole_name,
)
from isobatch.errors import InputError

CLOCKS = {
    "steps": ("global_step", "global_steps", "optimizer_step", "optimizer_steps", "steps"),
    "samples": ("samples", "samples_seen", "consumed_samples", "num_samples", "examples_seen"),
    "tokens": ("tokens", "tokens_seen", "consumed_tokens", "num_tokens", "num_input_tokens_seen", "total_tokens"),
    "epochs": ("epoch", "epochs"),
}
"""Unit -> names of what counts it in a history; a prefix such as trainer/ is passed over."""
_LOGGED = ("_step", "step")
_RATE = ("lr", "learning_rate", "peak_lr", "base_lr", "max_lr")
_GOAL = re.compile(r"^\s*(.+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*$")
_IN_NAME = re.compile(
    r"(?:^|[^a-z])(?:global_?batch(?:_?size)?|batch(?:_?size)?|bs)\s*[:=_-]?\s*(\d+)"
    r"(?P<more>\d|[.,]\d|\s*[x*]\s*\d|e\d|[kmg](?![a-z]))?",
    re.IGNORECASE,
)
_NOT_OF_AN_UPDATE = re.compile(
    r"(?:micro|device|gpu|local|eval|val|valid|validation|test)(?:_?train)?[_\s-]?$", re.IGNORECASE
)
_BOUND = re.compile(r"__(MIN|MAX)$")
_WIDE = " - "
_A_CURVE = 3  # different values, below which two histories may be alike by chance
_LASTS = 1.2
SINCE = "the evaluation before"  # no column of a file is spelled with spaces


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

    Where runs at one batch differ in their learning rate, those of the fastest rate are kept, as in a sweep. A rate at
    which most runs never get there does not count: the lucky ones say how fast luck is.

    Args:
        rows: rows of all runs with a run column, runs with a history each, or one column a run.
        goal: to be reached.
        unit: of the clock, where its column does not declare it.
        batch: column of the batch.
        value: column of the clock.
        where: the file, for messages.

    Returns:
        Rows of run, batch, value and the evaluation before it (`SINCE`); the unit; and notes on what was left out.

    Raises:
        InputError: no such metric, batch or clock, a clock whose unit is not declared, a batch that changes within a
            run, one history under two batches, or no run at the goal.
    """
    chosen = {whole_name(name) for name in (batch, value) if name is not None}
    runs = list(_runs(rows, goal, batch, chosen, where))
    column, declared = _clock(runs, unit, value, where)
    notes: list[str] = []
    found: dict[tuple[float, Any], list[dict[str, Any]]] = {}
    tried: Counter[tuple[float, Any]] = Counter()
    from_zero = False
    known: dict[tuple[tuple[float, float], ...], tuple[str, float]] = {}
    for run in runs:
        size, key, told = _batch(run, batch, where)
        notes += told
        seen = _evaluations(run, goal, column, where)
        if len({metric for _, metric in seen}) >= _A_CURVE:
            first, other = known.setdefault(tuple(seen), (run.label, size))
            if other != size:
                raise InputError(
                    f"{where}: runs {first!r} and {run.label!r} have one and the same history at batch {other:g} and "
                    f"{size:g}; one of them is named wrongly: leave it out, or correct its batch"
                )
            if first != run.label:
                notes.append(f"run {run.label!r}, batch {size:g}: left out, its history is that of run {first!r}")
                continue
        from_zero |= bool(seen) and seen[0][0] == 0 and all(clock == int(clock) for clock, _ in seen)
        amount, since, told = _first(seen, goal)
        notes += [f"run {run.label!r}, batch {size:g}: {note}" for note in told]
        at = (size, _rate(run))
        tried[at] += 1
        if amount is not None:
            found.setdefault(at, []).append({"run": run.label, key: size, declared: amount, SINCE: since})
    if not found:
        raise InputError(f"{where}: no run reaches {goal}; " + "; ".join(notes[:3]))
    if declared == "epochs" and from_zero:
        notes.append("epochs are counted from 0: where that is the first one trained, values are one too few")
    kept, more = _fastest(found, tried, declared)
    return kept, declared, [*notes, *more]


def _fastest(
    found: Mapping[tuple[float, Any], list[dict[str, Any]]], tried: Mapping[tuple[float, Any], int], unit: str
) -> tuple[list[dict[str, Any]], list[str]]:
    kept, notes = [], []
    for size in sorted({size for size, _ in found}):
        rates = {rate: rows for (own, rate), rows in found.items() if own == size}
        sure = {rate: rows for rate, rows in rates.items() if 2 * len(rows) >= tried[size, rate]}
        if not sure:
            most = max(rates, key=lambda rate: len(rates[rate]))
            notes.append(
                f"batch {size:g}: left out, only {len(rates[most])} of {tried[size, most]} runs reach the goal, and "
                "the others would take longer"
            )
            continue
        best = min(sure, key=lambda rate: sum(math.log(row[unit]) for row in sure[rate]) / len(sure[rate]))
        kept += sure[best]
        if len(rates) > 1:
            notes.append(f"batch {size:g}: {len(rates)} learning rates reach the goal, the fastest is kept: {best}")
    return kept, notes


def _rate(run: _Run) -> Any:
    """The learning rate of a run: of one that moves its peak, which is what a schedule is called by."""
    for key in _RATE:
        cells = [cell for row in (run.settings, *run.rows) if not blank(cell := row.get(key))]
        cells = [one for cell in cells for one in ([c for _, c in cell.told] if isinstance(cell, Several) else [cell])]
        numbers = [found for cell in cells if (found := number(cell)) is not None]
        if cells:
            return max(numbers) if numbers else str(cells[0])
    return None


def _runs(
    rows: Sequence[Mapping[str, Any]], goal: RunGoal, batch: str | None, chosen: Collection[str], where: str
) -> Iterator[_Run]:
    """Yield runs from any of the three forms, each with the settings that do not change within it."""
    nested = [row for row in rows if any(isinstance(row.get(key), list) for key in ("history", "values"))]
    if nested:
        for index, row in enumerate(rows, start=1):
            own = {key: cell for key, cell in row.items() if key not in ("history", "values")}
            settings, history = flat(own, chosen), row.get("history", row.get("values")) or []
            if not isinstance(history, list) or not all(isinstance(one, Mapping) for one in history):
                raise InputError(f"{where}, run {index}: its history must be a list of rows of named values")
            metric = spelled(str(row.get("metric", "")))
            named = [
                flat({(metric if key == "value" and metric else key): cell for key, cell in one.items()}, chosen)
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
    yield from _long([flat(row, chosen) for row in rows], batch)


def _long(named: Sequence[dict[str, Any]], batch: str | None) -> Iterator[_Run]:
    """Yield the runs of rows that name their run: by its name, and by its seed where every row has one."""
    keys = {key for row in named for key in row}
    by = next((key for key in ("run", "run_id", "run_name", "id", "name", "seed") if key in keys), None)
    size = spelled(batch) if batch is not None else next((key for key in (*BATCH, *BATCH_TOKENS) if key in keys), None)
    seeded = by != "seed" and all(not blank(row.get("seed")) for row in named)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in named:
        own = str(row.get(size, "")) if by in (None, "seed") else ""
        groups.setdefault((str(row.get(by, "")), str(row["seed"]) if seeded else "", own), []).append(row)
    names = Counter(label for label, _, _ in groups)
    for (label, seed, own_size), own in groups.items():
        settings = {key: cell for row in own for key, cell in row.items() if cell not in (None, "")}
        parts = (label, f"seed {seed}" if seed and names[label] > 1 else "", f"batch {own_size}" if own_size else "")
        yield _Run(" ".join(part for part in parts if part) or "1", settings, own)


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
    for key in told or keys:
        _check_constant(run, key, where)
    cell = next(iter(told.values()), None)
    notes = []
    if cell is None and batch is None:
        cell = _named_batch(run.label)
        if cell is None:
            raise InputError(
                f"{where}: no column and no name says the batch of run {run.label!r}, or not clearly; export it with "
                "its settings, name the column, or call the run such as bs64"
            )
        notes = [f"run {run.label!r}: batch {cell} read off its name"]
    size = number(told_once(cell, f"{where}, run {run.label!r}: the batch"))
    if size is None or size <= 0:
        raise InputError(
            f"{where}, run {run.label!r}: the batch is {cell!r}, which is no positive number; "
            "correct it, or name another column"
        )
    if batch is None and told:
        check_whole_batch(next(iter(told)), run.settings, f"{where}, run {run.label!r}")
    return size, "batch_tokens" if any("token" in key for key in told) else "batch", notes


def _named_batch(label: str) -> str | None:
    """The batch that a run's name says once, in whole samples of an update; not bs4k, bs64x8 or micro_batch 8."""
    found, clear = set(), True
    for match in _IN_NAME.finditer(label):
        start = match.start() + (not match[0][0].isalnum())
        if not _NOT_OF_AN_UPDATE.search(label[:start]):
            found.add(match[1])
            clear &= match["more"] is None
    return found.pop() if len(found) == 1 and clear else None


def _check_constant(run: _Run, key: str, where: str) -> None:
    """Refuse a batch that changes within a run: several runs under one name, or a run that belongs to no batch."""
    sizes = sorted({found for row in run.rows if (found := number(row.get(key))) is not None})
    if len(sizes) > 1:
        raise InputError(
            f"{where}: {key} of run {run.label!r} goes from {sizes[0]:g} to {sizes[-1]:g}; where these are several "
            "runs under one name, give each a run of its own; a run whose batch changes has no place in a table"
        )


def _evaluations(run: _Run, goal: RunGoal, column: str, where: str) -> list[tuple[float, float]]:
    """Clock and metric of every evaluation, in the order of the file; NaN where the metric was lost."""
    seen, lost = [], 0
    for row in run.rows:
        cell = row.get(goal.metric)
        clock = told_number(row.get(column), f"{where}, run {run.label!r}: {column}")
        if clock is None or blank(cell):
            continue
        metric = told_number(cell, f"{where}, run {run.label!r}: {goal.metric}")
        lost += metric is None
        if metric is not None:
            seen.append((clock, metric))
    if not seen and not lost:
        known = sorted({key for row in run.rows for key in row})
        raise InputError(
            f"{where}, run {run.label!r} has no {goal.metric!r} beside {column!r}; it has {', '.join(known)}: "
            "set the goal on one of them"
        )
    return seen


def _first(seen: Sequence[tuple[float, float]], goal: RunGoal) -> tuple[float | None, float, list[str]]:
    """The clock at the first evaluation that is at the goal, None where there is none, and that of the one before."""
    if not seen:
        return None, 0.0, [f"left out, never at {goal}: it is never a number"]
    seen, notes = _in_order(seen, goal)
    if not seen:
        return None, 0.0, notes
    done = [(clock, metric) for clock, metric in seen if goal.holds(metric)]
    if not done:
        best = (min if goal.falls else max)(metric for _, metric in seen)
        return None, 0.0, [f"left out, never at {goal}: its best is {best:g}"]
    first = done[0][0]
    if first <= 0:
        return None, 0.0, [f"left out, at {goal} before it trained"]
    if first == seen[0][0]:
        notes.append("at the goal at its first evaluation; the truth may be far sooner")
    off = [clock for clock, metric in seen if clock > first and not goal.holds(metric)]
    if off and off[-1] > _LASTS * first and 2 * len(off) > sum(first < clock <= off[-1] for clock, _ in seen):
        notes.append(
            f"at the goal at {first:,.12g}, and off it again for most of the way to {off[-1]:,.12g}: a moment's noise "
            "counts as its first time; smooth the metric, or set another goal"
        )
    return first, max((clock for clock, _ in seen if clock < first), default=0.0), notes


def _in_order(seen: Sequence[tuple[float, float]], goal: RunGoal) -> tuple[list[tuple[float, float]], list[str]]:
    """Evaluations by rising clock; none of a run whose clock does not say how far it was at the goal.

    Rows mostly stand in the order in which they were written. A clock that goes back there belongs to a resumed run, of
    which the evaluations past the old ones count, or to a counter that began again, or to a second run of that name.
    """
    clocks = [clock for clock, _ in seen]
    falls = [i for i, (one, two) in enumerate(pairwise(clocks), start=1) if two < one]
    rises = sum(two > one for one, two in pairwise(clocks))
    if not falls or 4 * len(falls) >= rises:  # as written, or in no order at all
        return sorted(seen), []
    there = next((i for i, (_, metric) in enumerate(seen) if goal.holds(metric)), len(seen) - 1)
    back = f"its clock goes back from {clocks[falls[0] - 1]:,.12g} to {clocks[falls[0]]:,.12g}"
    again = [i for i in falls if clocks[i] <= clocks[0]]
    if goal.holds(seen[there][1]) and (
        any(i <= there for i in again) or max(clocks[: there + 1]) > clocks[there]
    ):  # which of the two it is decides how long it took
        why = "several runs under one name, or a counter that began again"
        return [], [f"left out, {back} before the goal: {why}; give each run a name, or name a clock that goes on"]
    counted = [one for i, one in enumerate(seen) if i <= there or one[0] > clocks[there]]
    return sorted(counted), [f"{back}: several runs under one name? The first one counts"] if again else []
