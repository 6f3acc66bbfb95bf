"""isobatch study legw: sixteen times the batch by LEGW, by linear scaling and by the square root alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from isobatch.verify.workers import Curve
from isobatch_studies.claims import Finding, as_dict, claims, criteria, outcome
from isobatch_studies.legw import grid as layout
from isobatch_studies.legw.page import figure, html
from isobatch_studies.pages import keep
from isobatch_studies.paired import MeanInterval, choose, interval, last
from isobatch_studies.work import Work

NAME = "legw"
CHANCE = {"accuracy": 10.0, "loss": math.log(256)}
_LOSS = 10.0
"""Points of validation accuracy (or a tenth of the loss) whose loss is called a failure of the base batch."""


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    small = rules["quick"] if work.quick else rules
    tasks = {task: rules["tasks"][task] for task in small["tasks"]}
    seeds, repeats = small["seeds"], small["selection_seeds"]
    work.announce(sum(len(layout.selection(task, part, repeats)) + 4 * seeds for task, part in tasks.items()))
    rows = []
    for task, part in tasks.items():
        select = layout.selection(task, part, repeats)
        tried = work.train([select])
        if not tried:
            continue
        scores = _scores(task, part, tried)
        rates = {fold: choose(found) for fold, found in scores.items()}
        runs = work.train(layout.reported(task, part, rates, seeds))
        if runs:
            rows.append(_row(task, part, scores, rates, runs))
    data = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "rows": rows,
        "beside": beside(rows),
        "claims": as_dict(judge_further(rows, work.grid) if work.grid else judge_claims(rows)),
    }
    if work.out is not None:
        keep(work.out, data, {"legw": figure(data)}, html(data))
    return data


def _scores(task: str, part: dict[str, Any], tried: dict[str, list[Curve]]) -> dict[int, dict[float, list[float]]]:
    """Return fold -> rate -> validation scores, higher is better."""
    metric, found = part["metric"], {}
    sign = -1.0 if metric == "loss" else 1.0
    folds = layout.folds(task)
    for rate in part["rates"]:
        for curve in tried[f"select {task} {rate:g}"]:
            score = sign * last(curve, f"validation_{metric}", chance(part))
            found.setdefault(curve.seed % folds, {}).setdefault(rate, []).append(score)
    return found


def chance(part: dict[str, Any]) -> float:
    """Return what a run that stopped counts as.

    Args:
        part: the task's part of the criteria.

    Returns:
        Its own "chance", or that of ten classes or of 256 bytes.
    """
    return part.get("chance", CHANCE[part["metric"]])


def _row(
    task: str,
    part: dict[str, Any],
    scores: dict[int, dict[float, list[float]]],
    rates: dict[int, float],
    runs: dict[str, list[Curve]],
) -> dict[str, Any]:
    metric = part["metric"]
    values = {name: [last(c, metric, chance(part)) for c in runs[f"{task} {name}"]] for name in layout.ARMS}
    gaps = {name: interval(np.subtract(values[name], values["base"]).tolist()) for name in layout.ARMS[1:]}
    return {
        "task": task,
        "metric": metric,
        "kappa": part["kappa"],
        "seeds": len(values["base"]),
        "rates": {str(fold): rate for fold, rate in rates.items()},
        "distance": {str(fold): _distance(scores[fold], rates[fold]) for fold in rates},
        "validation": {f"{rate:g}": round(float(np.mean([s for f in scores.values() for s in f[rate]])), 4)
                       for rate in part["rates"]},
        "values": {name: [round(value, 4) for value in found] for name, found in values.items()},
        "means": {name: interval(found).to_dict() for name, found in values.items()},
        "gaps": {name: found.to_dict() for name, found in gaps.items()},
        "stopped": {name: sum(bool(c.stopped) for c in runs[f"{task} {name}"]) for name in layout.ARMS},
        "steps": {name: runs[f"{task} {name}"][0].steps for name in layout.ARMS},
    }  # fmt: skip


def _distance(scores: dict[float, list[float]], chosen: float) -> float | None:
    """Return the smallest rate above the chosen one that fails, over the chosen one; None within the grid."""
    best = float(np.mean(scores[chosen]))
    lost = _LOSS if best > 0 else abs(best) / _LOSS
    failing = [rate for rate, found in scores.items() if rate > chosen and float(np.mean(found)) < best - lost]
    return min(failing) / chosen if failing else None


def beside(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return where every arm ends, beside the base batch and beside LEGW, paired by seed.

    Args:
        rows: one a task.

    Returns:
        Rows of a table, its head first: means and 95% intervals.
    """
    made = [["task", "arm", "steps", "its end", "minus base", "LEGW minus it"]]
    for row in rows:
        values = {arm: np.array(found) for arm, found in row["values"].items()}
        for arm, found in values.items():
            over_base = "" if arm == "base" else str(interval((found - values["base"]).tolist()))
            behind = "" if arm in ("base", "LEGW") else str(interval((values["LEGW"] - found).tolist()))
            made.append([row["task"], arm, f"{row['steps'][arm]:,}", f"{found.mean():.2f}", over_base, behind])
    return made


def judge_claims(rows: list[dict[str, Any]]) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: one a task.

    Returns:
        Outcomes in the order of criteria.json; None where a task or seeds are missing.
    """
    known, of = claims(NAME), {row["task"]: row for row in rows}

    def judged(name: str, task: str, arm: str, test: Callable[[MeanInterval], bool], unit: str) -> Finding:
        if task not in of:
            return outcome(known[name], 0, None, "not run")
        gap = MeanInterval(**of[task]["gaps"][arm])
        text = f"{arm} minus base {gap} {unit}"
        if arm == "linear":
            distances = sorted({d for d in of[task]["distance"].values() if d}, key=float)
            text += "; the base batch itself fails at "
            text += f"{' or '.join(f'{d:g}' for d in distances)} times its rate" if distances else "no rate of the grid"
        return outcome(known[name], of[task]["seeds"], test(gap), text)

    return [
        judged("legw/16x-noninferior", "lstm", "LEGW", lambda gap: gap.low > -2, "points"),
        judged("legw/linear-worse", "lstm", "linear", lambda gap: gap.high < -10, "points"),
        judged("legw/lstm-lm", "lstm-lm", "LEGW", lambda gap: gap.high < math.log(1.1), "in log perplexity"),
        judged("legw/cnn-lars", "cnn-lars", "LEGW", lambda gap: gap.low > -2, "points"),
    ]


def judge_further(rows: list[dict[str, Any]], grid: str) -> list[Finding]:
    """Compute `held` of every claim of a further grid.

    Args:
        rows: one a task.
        grid: "frames" or "long-text".

    Returns:
        Outcomes in the order of criteria.json; None where a task or seeds are missing.
    """
    of, found = {row["task"]: row for row in rows}, []
    for name, claim in claims(NAME, grid).items():
        task, arm, against, test, unit = _FURTHER[name]
        if task not in of:
            found.append(outcome(claim, 0, None, "not run"))
            continue
        values = of[task]["values"]
        gap = interval(np.subtract(values[arm], values[against]).tolist())
        found.append(outcome(claim, of[task]["seeds"], test(gap), f"{arm} minus {against} {gap} {unit}"))
    return found


_SQUARE_ROOT = "square root, base warm-up"
_FURTHER: dict[str, tuple[str, str, str, Callable[[MeanInterval], bool], str]] = {
    "legw/frames-lstm-16x": ("frames-lstm-16x", "LEGW", "base", lambda gap: gap.low > -2, "points"),
    "legw/frames-lstm-64x": ("frames-lstm-64x", "LEGW", "base", lambda gap: gap.low > -2, "points"),
    "legw/frames-cnn-lars-64x": ("frames-cnn-lars-64x", "LEGW", "base", lambda gap: gap.low > -2, "points"),
    "legw/frames-linear-worse": ("frames-lstm-64x", "linear", "base", lambda gap: gap.high < -10, "points"),
    "legw/frames-longer-warm-up": ("frames-lstm-64x", "LEGW", _SQUARE_ROOT, lambda gap: gap.low > 0, "points"),
    "legw/lm-16x": ("lm-16x", "LEGW", "base", lambda gap: gap.high < math.log(1.1), "in log perplexity"),
    "legw/lm-32x": ("lm-32x", "LEGW", "base", lambda gap: gap.high < math.log(1.1), "in log perplexity"),
    "legw/lm-longer-warm-up": ("lm-16x", "LEGW", _SQUARE_ROOT, lambda gap: gap.high < 0, "in log perplexity"),
}
"""Claim -> task, arm, the arm against which it is compared, the criterion, unit."""
