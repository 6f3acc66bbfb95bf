"""Learning-rate rules against the rates that authors tuned: the league of docs/evidence.md."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isobatch.critical.fitting import TableFit
from isobatch.rules import optimal_lr, surge_lr

DRAWS = 2000
MANDATED = ("Llama 3.1 405B, 5.0.0",)
"""Rates that the benchmark prescribes: no tuning, so no evidence for a rule."""

Shape = Callable[[float, float], float]
RULES: dict[str, Shape] = {
    "kept": lambda b, c: 0.0,
    "sqrt": lambda b, c: 0.5 * math.log(b),
    "linear": lambda b, c: math.log(b),
    "noise-aware": lambda b, c: 0.5 * (math.log(b) + math.log1p(b / c)),
    "saturating 1/2": lambda b, c: 0.5 * math.log(optimal_lr(1.0, 1.0, b, c)),
    "saturating 3/4": lambda b, c: 0.75 * math.log(optimal_lr(1.0, 1.0, b, c)),
    "saturating 1": lambda b, c: math.log(optimal_lr(1.0, 1.0, b, c)),
    "surge": lambda b, c: math.log(surge_lr(1.0, 1.0, b, c)),
}
"""Log of the rate at a batch, up to a constant, by the critical batch. The noise scale of "noise-aware" is B_crit."""
WHERE = ("all", "below", "above")


@dataclass(frozen=True)
class Score:
    """How one rule fares.

    Args:
        value: mean over benchmarks of the mean squared log error of the shape.
        low: 2.5% point over draws of benchmarks.
        high: 97.5% point.
    """

    value: float
    low: float
    high: float


def errors(batches: Sequence[float], rates: Sequence[float], critical: float, rule: str) -> float:
    """Mean squared log error of a rule's shape, its height free."""
    off = np.log(rates) - np.array([RULES[rule](b, critical) for b in batches])
    return float(((off - off.mean()) ** 2).mean())


def part(batches: Sequence[float], rates: Sequence[float], critical: float, where: str) -> tuple[list[float], ...]:
    """The points of one side of the critical batch."""
    sides = {"all": lambda b: True, "below": lambda b: b <= critical, "above": lambda b: b >= critical}
    kept = [(b, r) for b, r in zip(batches, rates, strict=True) if sides[where](b)]
    return [b for b, _ in kept], [r for _, r in kept]


def table(found: list[tuple[dict[str, Any], TableFit]], where: str) -> dict[str, dict[str, float]]:
    """Benchmark -> rule -> error, of benchmarks with an identified B_crit, tuned rates and two points on that side."""
    rows: dict[str, dict[str, float]] = {}
    for entry, fit in found:
        if not fit.hyperbola.identified or fit.name in MANDATED:
            continue
        batches, rates = [p["batch"] for p in entry["points"]], [p["lr"] for p in entry["points"]]
        critical = fit.hyperbola.critical.value
        if fit.name.startswith("SSD") or len(set(rates)) == 1:
            continue  # mixed units; a sweep that fixed its rate
        b, r = part(batches, rates, critical, where)
        if len(b) > 1:
            rows[fit.name] = {rule: errors(b, r, critical, rule) for rule in RULES}
    return rows


def scores(rows: dict[str, dict[str, float]], seed: int = 0) -> dict[str, Score]:
    """Mean over benchmarks, and its bootstrap interval."""
    values = np.array([[row[rule] for rule in RULES] for row in rows.values()])
    draw = values[np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))].mean(1)
    ends = np.quantile(draw, [0.025, 0.975], 0)
    means = values.mean(0)
    return {rule: Score(float(means[i]), float(ends[0, i]), float(ends[1, i])) for i, rule in enumerate(RULES)}


def against(rows: dict[str, dict[str, float]], rule: str, other: str, seed: int = 0) -> Score:
    """Error of a rule less that of another, over the same draws of benchmarks."""
    values = np.array([row[rule] - row[other] for row in rows.values()])
    draw = values[np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))].mean(1)
    low, high = np.quantile(draw, [0.025, 0.975])
    return Score(float(values.mean()), float(low), float(high))


STEP_LAW = {"kept": 0.43, "sqrt": 0.39, "linear": 0.84, "saturating 1/2": 0.24, "saturating 3/4": 0.22,
            "saturating 1": 0.27, "surge": 0.41}  # fmt: skip
"""Root mean square log error of the shape over 17 grids, the loss-optimal batch in place of B_crit."""
STEP_LAW_SOURCE = "step-law/steplaw@32a8f4cc"


def section(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """The league as lines of a page."""
    rows = {where: table(found, where) for where in WHERE}
    every = {where: scores(one) for where, one in rows.items()}
    best = min(RULES, key=lambda rule: every["all"][rule].value)
    lines = [
        "| rule | "
        + " | ".join(f"{w}: {len(rows[w])} benchmarks" for w in WHERE)
        + f" | all, less {best} | Step Law |",
        "|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        cells = [_interval(every[w][rule]) for w in WHERE]
        less = "-" if rule == best else _interval(against(rows["all"], rule, best), "+.3f")
        law = f"{STEP_LAW[rule]:.2f}" if rule in STEP_LAW else "-"
        lines.append(f"| {rule} | {' | '.join(cells)} | {less} | {law} |")
    return lines


def families(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """The rule of the smallest error in each optimizer's benchmarks, as words."""
    rows, named = table(found, "all"), {fit.name: entry["optimizer"] for entry, fit in found}
    said = []
    for family in dict.fromkeys(named[name] for name in rows):
        own = [row for name, row in rows.items() if named[name] == family]
        means = {rule: float(np.mean([row[rule] for row in own])) for rule in RULES}
        least = min(means, key=lambda rule: means[rule])
        said.append(f"{family} ({len(own)}) {least} ({means[least]:.3f}; saturating 1/2 {means['saturating 1/2']:.3f})")
    return said


def apart(found: list[tuple[dict[str, Any], TableFit]], where: str = "above", than: str = "saturating 1/2") -> int:
    """How many rules are worse or better than one of them beyond the interval of the difference."""
    differences = [against(table(found, where), rule, than) for rule in RULES if rule != than]
    return sum(one.low > 0 or one.high < 0 for one in differences)


def _interval(score: Score, form: str = ".3f") -> str:
    return f"{score.value:{form}} [{score.low:{form}} to {score.high:{form}}]"
