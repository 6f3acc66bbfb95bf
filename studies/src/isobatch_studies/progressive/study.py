"""isobatch study progressive: fixed small, fixed large, naive switch and switch by the plan, up and down."""

from typing import Any

import numpy as np
from scipy import stats

from isobatch.tasks import LOSS
from isobatch.verify.judging import judge
from isobatch.verify.workers import Curve
from isobatch_studies.claims import Finding, as_dict, claims, criteria, outcome
from isobatch_studies.pages import keep
from isobatch_studies.progressive import grid as layout
from isobatch_studies.progressive.page import figure, html
from isobatch_studies.work import Work

NAME = "progressive"


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME)
    plan, seeds = rules["quick" if work.quick else "grid"], rules["seeds"]
    groups = [group for task, part in plan.items() for group in layout.groups(task, part, seeds)]
    work.announce(sum(map(len, groups)))
    curves = work.train(groups)
    rows = [_row(arm, curves) for task, part in plan.items() for arm in layout.arms(task, part) if arm.label in curves]
    data = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "cells": {"complete": len(rows), "of": sum(len(layout.arms(task, part)) for task, part in plan.items())},
        "rows": rows,
        "claims": as_dict(judge_claims(rows, seeds, list(plan))),
        "curves": {name: _mean(found) for name, found in curves.items()},
        "stops": {task: layout.stops(task, part) for task, part in plan.items()},
    }
    if work.out is not None:
        keep(work.out, data, {"switches": figure(data)}, html(data))
    return data


def _mean(runs: list[Curve]) -> list[float]:
    return [float(v) for v in np.mean([curve.values["average"]["loss"] for curve in runs], axis=0)]


def _row(arm: layout.Arm, curves: dict[str, list[Curve]]) -> dict[str, Any]:
    runs, reference = curves[arm.label], curves[f"{arm.task} reference"]
    marks = tuple(range(2, len(reference[0].values["raw"]["loss"]), 2))
    table = judge({"reference": reference, "arm": runs}, marks, {"loss": LOSS})
    per_seed = [_worst(one, other, marks) for one, other in zip(runs, reference, strict=True)]
    return {
        "task": arm.task,
        "arm": arm.name,
        "kind": arm.kind,
        "steps": runs[0].steps,
        "verdicts": {model: str(test.verdict) for model, test in table["arm"].items()},
        "worst": {model: round(test.worst, 4) for model, test in table["arm"].items()},
        "worst_per_seed": [round(gap, 5) for gap in per_seed],
        "final_loss": round(float(np.mean([curve.values["average"]["loss"][-1] for curve in runs])), 4),
    }


def _worst(one: Curve, other: Curve, marks: tuple[int, ...]) -> float:
    a, b = (np.array(curve.values["average"]["loss"], dtype=float)[list(marks)] for curve in (one, other))
    return float(np.abs(np.log(np.where(np.isfinite(a), a, 10 * b)) - np.log(b)).max())


def judge_claims(rows: list[dict[str, Any]], seeds: int, tasks: list[str]) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: one an arm.
        seeds: that were run.
        tasks: that the grid holds.

    Returns:
        Outcomes in the order of criteria.json; None where arms that a criterion takes are missing.
    """
    known, whole = claims(NAME), _whole(rows)
    switched = [row for row in rows if row["kind"] in ("up", "down")]
    naive = [row for row in rows if row["kind"] == "naive"]
    same = all(row["verdicts"]["average"] == "SAME" for row in switched)
    apart = all(row["verdicts"]["average"] == "DIFFERENT" for row in naive)
    missing = "" if whole else f"; not all switches on digits and text are complete (grid: {', '.join(tasks)})"
    held, evidence = _late(rows)
    return [
        outcome(known["progressive/switch-same"], seeds, same if whole else None, _count(switched, "SAME") + missing),
        outcome(
            known["progressive/naive-different"], seeds, apart if whole else None, _count(naive, "DIFFERENT") + missing
        ),
        outcome(known["progressive/late-switch-beats-large-from-start"], seeds, held, evidence),
    ]


def _whole(rows: list[dict[str, Any]]) -> bool:
    """Whether every switch of the full grid, on every task, is there."""
    found = {(row["task"], row["arm"]) for row in rows}
    switches = ("up", "down", "naive")
    grid = criteria(NAME)["grid"]
    arms = [arm for task, part in grid.items() for arm in layout.arms(task, part) if arm.kind in switches]
    return all((arm.task, arm.name) in found for arm in arms)


def _count(rows: list[dict[str, Any]], verdict: str) -> str:
    return f"{sum(row['verdicts']['average'] == verdict for row in rows)} of {len(rows)} switches {verdict}"


def _late(rows: list[dict[str, Any]]) -> tuple[bool | None, str]:
    found = {row["kind"]: row["worst_per_seed"] for row in rows if row["task"] == "digits"}
    if not {"far large", "far late"} <= found.keys():
        return None, "the arms that the criterion takes are missing"
    gain = np.array(found["far large"]) - np.array(found["far late"])
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    low, high = gain.mean() - half, gain.mean() + half
    return bool(low > 0), f"the worst gap shrinks by {gain.mean():.3f} [{low:.3f}, {high:.3f}] in log loss"
