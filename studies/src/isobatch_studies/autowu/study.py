"""isobatch study autowu: a peak found without tuning against one chosen by validation, and a short budget."""

from typing import Any

import numpy as np

from isobatch.verify.workers import Curve
from isobatch_studies.autowu import grid as layout
from isobatch_studies.autowu.page import figure, html
from isobatch_studies.claims import Claim, Finding, all_hold, as_dict, claims, criteria, outcome
from isobatch_studies.pages import keep
from isobatch_studies.paired import MeanInterval, choose, interval, last
from isobatch_studies.work import Work

NAME, CHANCE = "autowu", 10.0


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    plan, seeds = layout.cells(rules, quick=work.quick), (rules["quick"] if work.quick else rules)["seeds"]
    repeats, peaks = rules["selection_seeds"], rules["peaks"]
    work.announce(sum(len(layout.selection(c, peaks, repeats)) + len(c.arms) * seeds for c in plan))
    rows = []
    for cell in plan:
        tried = work.train([layout.selection(cell, peaks, repeats)])
        if not tried:
            continue
        scores = _scores(cell, peaks, tried)
        best = {fold: choose(found) for fold, found in scores.items()}
        runs = work.train(layout.reported(cell, best, seeds))
        if runs:
            rows.append(_row(cell, scores, best, runs))
    data = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "cells": {"complete": len(rows), "of": len(plan)},
        "rows": rows,
        "claims": as_dict(judge_frames(rows, len(plan)) if work.grid else judge_claims(rows)),
    }
    if work.out is not None:
        keep(work.out, data, {"autowu": figure(data)}, html(data))
    return data


def _scores(
    cell: layout.Cell, peaks: list[float], tried: dict[str, list[Curve]]
) -> dict[int, dict[float, list[float]]]:
    found: dict[int, dict[float, list[float]]] = {}
    for peak in peaks:
        for curve in tried[f"select {cell.label} {peak:g}"]:
            score = last(curve, "validation_accuracy", CHANCE)
            found.setdefault(curve.seed % layout.FOLDS, {}).setdefault(peak, []).append(score)
    return found


def _row(
    cell: layout.Cell,
    scores: dict[int, dict[float, list[float]]],
    best: dict[int, float],
    runs: dict[str, list[Curve]],
) -> dict[str, Any]:
    count = len(runs[f"{cell.label} chosen peak"])
    arms = [arm for arm in cell.arms if len(runs.get(f"{cell.label} {arm}", ())) == count]
    values = {arm: [last(c, "accuracy", CHANCE) for c in runs[f"{cell.label} {arm}"]] for arm in arms}
    gaps = {arm: interval(np.subtract(values[arm], values["chosen peak"]).tolist()) for arm in arms[1:]}
    return {
        "cell": cell.label,
        "optimizer": cell.optimizer,
        "batch": cell.batch,
        "epochs": cell.epochs,
        "seeds": count,
        "peaks": {str(fold): peak for fold, peak in best.items()},
        "validation": {f"{peak:g}": round(float(np.mean([s for f in scores.values() for s in f[peak]])), 3)
                       for peak in scores[0]},
        "values": {arm: [round(value, 4) for value in found] for arm, found in values.items()},
        "means": {arm: interval(found).to_dict() for arm, found in values.items()},
        "gaps": {arm: found.to_dict() for arm, found in gaps.items()},
        "stopped": {arm: sum(bool(c.stopped) for c in runs[f"{cell.label} {arm}"]) for arm in arms},
    }  # fmt: skip


def judge_claims(rows: list[dict[str, Any]]) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: one a cell.

    Returns:
        Outcomes in the order of criteria.json; None where cells or seeds are missing.
    """
    known, rules = claims(NAME), criteria(NAME)
    of = {row["cell"]: row for row in rows}
    wanted = layout.cells(rules, quick=False)
    untuned = [of[cell.label] for cell in wanted[1:] if cell.label in of]
    first = _untuned(known["autowu/untuned-noninferior"], untuned, "AutoWU", len(wanted) - 1)
    back = _untuned(known["autowu/untuned-rollback-noninferior"], untuned, "AutoWU, rollback", len(wanted) - 1)
    claim, short = known["autowu/short-budget-mended"], of.get(wanted[0].label)
    if short is None or "as published" not in short["gaps"]:
        return [first, outcome(claim, 0, None, "not run"), back]
    broken, mended = MeanInterval(**short["gaps"]["as published"]), MeanInterval(**short["gaps"]["AutoWU"])
    text = f"minus the chosen peak: as published {broken}, mended {mended}, "
    text += f"with rollback {MeanInterval(**short['gaps']['AutoWU, rollback'])} points"
    return [first, outcome(claim, short["seeds"], broken.high < -10 and mended.low > -2, text), back]


def judge_frames(rows: list[dict[str, Any]], cells: int) -> list[Finding]:
    """Compute `held` of every claim of the grid "frames".

    Args:
        rows: one a cell.
        cells: how many there should be.

    Returns:
        Outcomes in the order of criteria.json; None where cells or seeds are missing.
    """
    arms = zip(claims(NAME, "frames").values(), ("AutoWU", "AutoWU, rollback"), strict=True)
    return [_untuned(claim, rows, arm, cells) for claim, arm in arms]


def _untuned(claim: Claim, rows: list[dict[str, Any]], arm: str, cells: int) -> Finding:
    found = [row for row in rows if arm in row["gaps"]]
    gaps = {f"{row['optimizer']} {row['batch']}": MeanInterval(**row["gaps"][arm]) for row in found}
    held = all_hold([*(gap.low > -1 for gap in gaps.values()), *[None] * (cells - len(found))])
    evidence = "; ".join(f"{name}: {gap}" for name, gap in gaps.items()) or "not run"
    evidence += "" if len(found) in (0, cells) else f"; {len(found)} of {cells} cells"
    return outcome(claim, min((row["seeds"] for row in found), default=0), held, evidence)
