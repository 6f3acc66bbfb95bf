"""Learning-rate rules against the rates that authors tuned: the league of docs/evidence.md."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.prose import prose
from scipy import stats

from isobatch.critical.fitting import TableFit
from isobatch.rules import optimal_lr

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
    "surge": lambda b, c: -math.log(math.sqrt(c / b) + math.sqrt(b / c)),
}
"""Log of the rate at a batch, up to a constant, by the critical batch: the noise scale of "noise-aware", and the batch
of the highest rate of "surge" (2405.14578, eq. 13)."""
BEST = "saturating 1/2"
WHERE = ("all", "below", "above")
GROUPS = {"SGD": ("SGD",), "Adam, AdamW, Adagrad, LAMB, LARS": ("Adam", "AdamW", "Adagrad", "LAMB", "LARS")}
"""Optimizers whose step grows with the gradient, and those that divide the gradient by its own size."""

Rows = dict[str, dict[str, float]]


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


def tuned(
    found: list[tuple[dict[str, Any], TableFit]], *, fixed: bool = False
) -> Iterator[tuple[dict[str, Any], TableFit, list[float], list[float]]]:
    """Tables with an identified B_crit and tuned rates: entry, fit, batches and rates.

    A sweep that lists one rate for all batches has not tuned it, unless `fixed` takes it for one that has.
    """
    for entry, fit in found:
        batches, rates = [p["batch"] for p in entry["points"]], [p["lr"] for p in entry["points"]]
        one = len(set(rates)) == 1 and not fixed
        if fit.hyperbola.identified and not (fit.name in MANDATED or fit.name.startswith("SSD") or one):
            yield entry, fit, batches, rates


def table(found: list[tuple[dict[str, Any], TableFit]], where: str, *, fixed: bool = False) -> Rows:
    """Benchmark -> rule -> error, where a table has two points on that side; rounds of one benchmark averaged."""
    rows: dict[str, list[dict[str, float]]] = {}
    for entry, fit, batches, rates in tuned(found, fixed=fixed):
        critical = fit.hyperbola.critical.value
        b, r = part(batches, rates, critical, where)
        if len(b) > 1:
            rows.setdefault(benchmark(entry), []).append({rule: errors(b, r, critical, rule) for rule in RULES})
    return {name: {rule: _mean([one[rule] for one in several]) for rule in RULES} for name, several in rows.items()}


def benchmark(entry: dict[str, Any]) -> str:
    """What is drawn as one: a benchmark with all its rounds; models of different sizes have different names."""
    return str(entry["name"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def exponents(found: list[tuple[dict[str, Any], TableFit]]) -> list[tuple[dict[str, Any], Score]]:
    """Tables and the alpha of (1 + B_crit/B)^-alpha that fits its rates by least squares in logs.

    The interval is Student's t at B_crit, and at both ends of its interval: the widest. Three points and more.
    """
    rows = []
    for entry, fit, batches, rates in tuned(found):
        c = fit.hyperbola.critical
        fits = [_slope([-math.log1p(end / b) for b in batches], np.log(rates)) for end in (c.low, c.value, c.high)]
        rows.append((entry, Score(fits[1].value, min(f.low for f in fits), max(f.high for f in fits))))
    return rows


def title(entry: dict[str, Any]) -> str:
    """Name and round of a table."""
    return f"{entry['name']}, {entry['round']}"


def _slope(x: Sequence[float], y: np.ndarray) -> Score:
    found = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * found.stderr
    return Score(float(found.slope), float(found.slope - half), float(found.slope + half))


def pooled(found: list[tuple[dict[str, Any], TableFit]], group: str) -> tuple[int, Score]:
    """Number of benchmarks, mean alpha over them and Student's interval; with one benchmark its own interval."""
    by_name: dict[str, list[Score]] = {}
    for entry, score in exponents(found):
        if entry["optimizer"] in GROUPS[group]:
            by_name.setdefault(benchmark(entry), []).append(score)
    if len(by_name) == 1:
        return 1, next(iter(by_name.values()))[0]
    values = np.array([_mean([s.value for s in several]) for several in by_name.values()])
    half = float(stats.t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return len(values), Score(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def scores(rows: Rows, seed: int = 0) -> dict[str, Score]:
    """Mean over benchmarks, and its bootstrap interval."""
    values = np.array([[row[rule] for rule in RULES] for row in rows.values()])
    draw = values[np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))].mean(1)
    ends = np.quantile(draw, [0.025, 0.975], 0)
    means = values.mean(0)
    return {rule: Score(float(means[i]), float(ends[0, i]), float(ends[1, i])) for i, rule in enumerate(RULES)}


def against(rows: Rows, rule: str, other: str, seed: int = 0) -> Score:
    """Error of a rule less that of another, over the same draws of benchmarks."""
    values = np.array([row[rule] - row[other] for row in rows.values()])
    draw = values[np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))].mean(1)
    low, high = np.quantile(draw, [0.025, 0.975])
    return Score(float(values.mean()), float(low), float(high))


def wins(found: list[tuple[dict[str, Any], TableFit]], rule: str, than: str = BEST) -> list[str]:
    """Where a rule beats another by more than the interval of the difference: sides of B_crit, and optimizers."""
    named = {benchmark(e): e["optimizer"] for e, _ in found}
    places = {where: table(found, where) for where in WHERE}
    for family in dict.fromkeys(named.values()):
        places[family] = {name: row for name, row in places["all"].items() if named[name] == family}
    return [place for place, rows in places.items() if len(rows) > 1 and against(rows, rule, than).high < 0]


STEP_LAW = {"kept": 0.43, "sqrt": 0.39, "linear": 0.84, "saturating 1/2": 0.24, "saturating 3/4": 0.22,
            "saturating 1": 0.27, "surge": 0.41}  # fmt: skip
"""Root mean square log error of the shape over 17 grids, the loss-optimal batch in place of B_crit."""
STEP_LAW_GRIDS, STEP_LAW_SOURCE = 17, "step-law/steplaw@32a8f4cc"
STEP_LAW_EXPONENTS = {"below": (0.75, 0.12), "above": (-0.11, 0.14)}
"""Mean and standard deviation over the grids of the best rate's exponent, below and above the loss-optimal batch."""


def step_law(side: str) -> Score:
    """Mean exponent of the best rate over Step Law's grids, and Student's interval."""
    value, spread = STEP_LAW_EXPONENTS[side]
    half = float(stats.t.ppf(0.975, STEP_LAW_GRIDS - 1)) * spread / math.sqrt(STEP_LAW_GRIDS)
    return Score(value, value - half, value + half)


def _rows(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """The league as the rows of a table."""
    rows = {where: table(found, where) for where in WHERE}
    every = {where: scores(one) for where, one in rows.items()}
    lines = [
        "| rule | "
        + " | ".join(f"{w}: {len(rows[w])} benchmarks" for w in WHERE)
        + f" | all, less {BEST} | Step Law |",
        "|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        cells = [_interval(every[w][rule]) for w in WHERE]
        less = "-" if rule == BEST else _interval(against(rows["all"], rule, BEST), "+.3f")
        law = f"{STEP_LAW[rule]:.2f}" if rule in STEP_LAW else "-"
        lines.append(f"| {rule} | {' | '.join(cells)} | {less} | {law} |")
    return lines


def section(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """The league as lines of a page."""
    least = min(RULES, key=lambda rule: scores(table(found, "all"))[rule].value)
    won = wins(found, "surge")
    return [
        "## A league of learning-rate rules",
        *prose(
            "Mean squared log error of the shape of the tuned rates over batches (the height free), each benchmark "
            "with its own B_crit, rounds of one benchmark averaged, 95% intervals over draws of benchmarks; on one "
            "side of B_crit, benchmarks with two points there. `saturating a`: (1 + B_crit/B)^-a; `noise-aware` takes "
            "B_crit for the noise scale. Left out: tables without an identified B_crit, mandated rates (405B), mixed "
            "units (SSD), and four transformers with one rate at all batches, of which the source does not say what "
            "else was tried (counted below). The last column is another "
            "measure, the root mean square log error over the 17 grids of Step Law with the loss-optimal batch in "
            "place of B_crit: compare it within its column only. It was carried over as means; its grids are not here, "
            "so that no intervals of its own can be drawn.",
        ),
        *_rows(found),
        "",
        *prose(
            f"The smallest mean error has {least}: {_interval(scores(table(found, 'all'))[least])}, a factor of "
            f"{typical(found):.1f} as root mean square.",
            "The smallest error by optimizer, with the number of benchmarks: " + "; ".join(families(found)) + ".",
            f"Surge beats {BEST} by more than the interval of the difference "
            f"{', '.join(won) or 'nowhere: on no side of B_crit, for no optimizer with two benchmarks'}.",
            f"Above B_crit {apart(found)} of {len(RULES) - 1} rules differ from {BEST} by more "
            "than the interval of the difference; the rate hardly matters to the samples needed (Llama 3.1 8B "
            "at 128: 2e-3 takes 345.9k samples, 8e-4 344.1k).",
            "Median regret in 1e-3 nats on Step Law of the rule of the rate alone: 64 to 256, square root 3.4, linear "
            "7.5, kept 12.8; 256 to 1,024, kept 2.7, square root 14.2, linear 618. The exponent of its best rate is "
            f"{_interval(step_law('below'), '.2f')} below the loss-optimal batch, "
            f"{_interval(step_law('above'), '+.2f')} above it: there the square root loses, and so, narrowly, does a "
            "rate that is kept.",
            _with_fixed(found),
        ),
        *_alphas(found),
    ]


def typical(found: list[tuple[dict[str, Any], TableFit]]) -> float:
    """How far tuned rates lie off the best rule, as a factor: root mean square in logs."""
    return math.exp(math.sqrt(scores(table(found, "all"))[BEST].value))


def _with_fixed(found: list[tuple[dict[str, Any], TableFit]]) -> str:
    rows = table(found, "all", fixed=True)
    other = scores(rows)
    order = sorted(RULES, key=lambda rule: other[rule].value)
    near = [rule for rule in RULES if rule != BEST and not _apart(against(rows, rule, BEST))]
    said = [f"{rule} ({_interval(against(rows, rule, BEST), '+.3f')})" for rule in near]
    return (
        f"With the four transformers whose one rate serves every batch ({len(rows)} benchmarks) the order is another: "
        + ", ".join(f"{rule} {other[rule].value:.3f}" for rule in order[:4])
        + f"; not to be told from {BEST}: {_listed(said)}."
    )


def _listed(words: list[str]) -> str:
    return ", ".join(words) or "none"


def _apart(difference: Score) -> bool:
    return difference.low > 0 or difference.high < 0


def _alphas(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """Which exponent each benchmark has, and the verdict on 1 for SGD and 1/2 for the others."""
    said = []
    for group, expected in zip(GROUPS, (1.0, 0.5), strict=True):
        count, score = pooled(found, group)
        other = 1.5 - expected
        inside = score.low <= expected <= score.high
        word = "not refuted" if inside else "refuted"
        against_other = "refuted" if not score.low <= other <= score.high else "not refuted"
        many = "one benchmark" if count == 1 else f"{count} benchmarks"
        said.append(
            f"{group}: {_interval(score, '.2f')} over {many}; {expected:g} is {word}, {other:g} is {against_other}."
        )
    return [
        "### Which exponent",
        *prose(
            "The alpha of (1 + B_crit/B)^-alpha that fits the tuned rates of each table, 95% interval (Student's t, "
            "at B_crit and at both ends of its interval, the widest). Expected were 1 for SGD and 1/2 for optimizers "
            "that divide by the gradient's size."
        ),
        "| benchmark | optimizer | alpha |",
        "|---|---|---|",
        *(f"| {title(e)} | {e['optimizer']} | {_interval(score, '.2f')} |" for e, score in exponents(found)),
        "",
        *prose(
            *said,
            "So 1/2 is a mean over benchmarks that differ among themselves by far more than their own intervals: DLRM "
            "and Stable Diffusion keep or lower the rate, BERT is steeper. And SGD rests on Mask R-CNN alone: U-Net 3D "
            "and CosmoFlow have no identified B_crit.",
        ),
    ]


def surprises(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """What was expected of the league and did not come true."""
    values = [score.value for entry, score in exponents(found) if entry["optimizer"] not in GROUPS["SGD"]]
    with_fixed = scores(table(found, "all", fixed=True))
    first = min(RULES, key=lambda rule: with_fixed[rule].value)
    rows = table(found, "all")
    near = [rule for rule in RULES if rule != BEST and not _apart(against(rows, rule, BEST))]
    return [
        "That the exponent is 1/2 wherever the gradient is divided by its size: it is so in the mean alone, from "
        f"{min(values):.2f} to {max(values):.2f} over the benchmarks.",
        "That the winner of the league is beyond doubt: it is the nearest in the mean, but within the interval of the "
        f"difference lie {_listed(near)}, and with the four transformers of one rate {first} is first.",
    ]


def families(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    """The rule of the smallest error in each optimizer's benchmarks, as words."""
    rows, named = table(found, "all"), {benchmark(entry): entry["optimizer"] for entry, _ in found}
    said = []
    for family in dict.fromkeys(named[name] for name in rows):
        own = [row for name, row in rows.items() if named[name] == family]
        means = {rule: float(np.mean([row[rule] for row in own])) for rule in RULES}
        least = min(means, key=lambda rule: means[rule])
        said.append(f"{family} ({len(own)}) {least} ({means[least]:.3f}; saturating 1/2 {means[BEST]:.3f})")
    return said


def apart(found: list[tuple[dict[str, Any], TableFit]], where: str = "above", than: str = BEST) -> int:
    """How many rules are worse or better than one of them beyond the interval of the difference."""
    differences = [against(table(found, where), rule, than) for rule in RULES if rule != than]
    return sum(_apart(one) for one in differences)


def _interval(score: Score, form: str = ".3f") -> str:
    return f"{score.value:{form}} [{score.low:{form}} to {score.high:{form}}]"
