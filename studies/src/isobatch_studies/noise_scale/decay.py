"""The grid "wsd": one learning rate at several batches, constant and with a decay at the end, mark by mark."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from isobatch import report
from isobatch.plan import Recipe
from isobatch.report.pictures import RC
from isobatch.verify.workers import Curve, Job
from isobatch_studies.claims import Finding, all_hold, as_dict, claims, outcome
from isobatch_studies.pages import keep, page
from isobatch_studies.paired import MeanInterval, interval
from isobatch_studies.work import Work

NAME, GRID = "noise-scale", "wsd"
SCHEDULES, LONGER = ("constant", "decay"), "longer"
_SHADES, _STYLES = ("#0072B2", "#009E73", "#D55E00"), {"constant": "-", "decay": "--", LONGER: ":"}


def label(batch: int, schedule: str) -> str:
    """Return the name of an arm."""
    return f"batch {batch}, {schedule}"


def recipe(part: dict[str, Any], batch: int, schedule: str) -> Recipe:
    """Return the recipe of an arm: nothing but the batch and the schedule differs, and the windows of a longer one.

    Args:
        part: the grid.
        batch: samples a step.
        schedule: one of SCHEDULES, or LONGER: constant over fresh text.

    Returns:
        The recipe.
    """
    if schedule == LONGER:
        windows = part["longer"]
        text = {**part["recipe"], "data_size": windows, "options": {"windows": windows}}
        return Recipe.parse({**text, "batch": {"size": batch}, "schedule": {"length": f"{windows} samples"}})
    length, start = part["length"], part["length"] * part["decay_from"]
    shape = {"shape": "linear", "decay_from": f"{start:g} samples"} if schedule == "decay" else {}
    return Recipe.parse({
        **part["recipe"], "batch": {"size": batch}, "schedule": {"length": f"{length} samples", **shape},
    })  # fmt: skip


def groups(part: dict[str, Any]) -> list[list[Job]]:
    """Return the runs, one group an arm, the extreme batches first.

    Args:
        part: the grid.

    Returns:
        Groups of jobs, evaluated at the same marks; those of the longer runs come last and go on at the same distance.
    """
    ends = min(part["batches"]), max(part["batches"])
    order = sorted(part["batches"], key=lambda batch: batch not in ends)
    arms = [(batch, schedule) for batch in order for schedule in SCHEDULES] + [(batch, LONGER) for batch in ends]
    return [
        [Job(label(*arm), recipe(part, *arm), seed, stream, _stops(part, arm[1])) for seed in range(part["seeds"])]
        for stream, arm in enumerate(arms)
    ]


def _stops(part: dict[str, Any], schedule: str) -> tuple[int, ...]:
    each = part["length"] // part["marks"]
    return tuple(range(0, (part["longer"] if schedule == LONGER else part["length"]) + 1, each))


def run(rules: dict[str, Any], work: Work) -> dict[str, Any]:
    """Train the grid, or go on with it, and judge.

    Args:
        rules: the criteria of the grid.
        work: where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    part = rules["grid"]
    jobs = groups(part)
    work.announce(sum(map(len, jobs)))
    curves = work.train(jobs)
    data = {
        **work.head(NAME, rules),
        "seeds": part["seeds"],
        "cells": {"complete": len(curves), "of": len(jobs)},
        "marks": list(jobs[-1][0].stops),
        "why_longer": rules["why_longer"],
        "losses": {arm: _means(found) for arm, found in curves.items()},
        "beside": beside(part, curves, jobs[-1][0].stops),
        "claims": as_dict(judge(part, curves)),
    }
    if work.out is not None:
        keep(work.out, data, {"wsd": figure(data)}, html(data))
    return data


def _means(runs: Sequence[Curve]) -> list[float]:
    return np.mean([curve.values["raw"]["loss"] for curve in runs], axis=0).round(5).tolist()


def judge(part: dict[str, Any], curves: dict[str, list[Curve]]) -> list[Finding]:
    """Compute `held` of the grid's claims.

    Args:
        part: the grid.
        curves: arm -> runs by seed.

    Returns:
        Outcomes in the order of criteria.json; None where an arm is missing.
    """
    cross, uncross = claims(NAME, GRID).values()
    early, late = _marks(part)
    first, then = (_apart(part, curves, "constant", mark) for mark in (early, late))
    end = _apart(part, curves, "decay", part["marks"])
    small, large = min(part["batches"]), max(part["batches"])
    crossed = all_hold([
        None if first is None else first.low > 0, None if then is None else then.high < 0,
    ])  # fmt: skip
    words = f"log loss of batch {large} over batch {small}"
    said = f"{words}: {_shown(first)} at {part['early']:.0%} of the run, {_shown(then)} at {part['decay_from']:.0%}"
    ended = f"{words} after the decay: {_shown(end)}"
    return [
        outcome(cross, part["seeds"], crossed, said),
        outcome(uncross, part["seeds"], None if end is None else end.low > 0, ended),
    ]


def _apart(part: dict[str, Any], curves: dict[str, list[Curve]], schedule: str, mark: int) -> MeanInterval | None:
    return _gap(curves, label(max(part["batches"]), schedule), label(min(part["batches"]), schedule), mark)


def _marks(part: dict[str, Any]) -> tuple[int, int]:
    early, late = (round(part["marks"] * part[key]) for key in ("early", "decay_from"))
    return early, late


def _gap(curves: dict[str, list[Curve]], large: str, small: str, mark: int) -> MeanInterval | None:
    if large not in curves or small not in curves:
        return None
    one, other = (np.array([c.values["raw"]["loss"][mark] for c in curves[arm]]) for arm in (large, small))
    return interval(np.log(one / other).tolist())


def beside(part: dict[str, Any], curves: dict[str, list[Curve]], marks: Sequence[int]) -> list[list[str]]:
    """Return where curves of other pairs of batches stand: the middle batch, and the runs that are longer.

    Args:
        part: the grid.
        curves: arm -> runs by seed.
        marks: samples of every mark, those of the longer runs too.

    Returns:
        Rows of a table, its head first: log loss of the larger batch over the smallest, paired intervals.
    """
    small, *middle, large = sorted(part["batches"])
    places = [(batch, "constant", mark) for batch in middle for mark in _marks(part)]
    places += [(batch, "decay", part["marks"]) for batch in middle]
    if len(marks) > part["marks"] + 1:
        pairs = [
            (mark, _gap(curves, label(large, LONGER), label(small, LONGER), mark)) for mark in range(1, len(marks))
        ]
        crossed = next((mark for mark, gap in pairs if gap is not None and gap.mean < 0), None)
        places += [(large, LONGER, mark) for mark in (crossed, len(marks) - 1) if mark is not None]
    made = [["batches", "run", "samples", "log loss of the larger over the smaller"]]
    for batch, schedule, mark in places:
        gap = _gap(curves, label(batch, schedule), label(small, schedule), mark)
        made.append([f"{batch} and {small}", schedule, f"{marks[mark]:,}", _shown(gap)])
    return made


def _shown(gap: MeanInterval | None) -> str:
    return "not run" if gap is None else f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"


def figure(data: dict[str, Any]) -> Figure:
    """Draw the loss over the samples, one line an arm.

    Args:
        data: the result.

    Returns:
        A figure.
    """
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(8.6, 4.8), layout="constrained")
        axes = made.subplots()
        batches = sorted({int(arm.split()[1].rstrip(",")) for arm in data["losses"]})
        for arm, losses in data["losses"].items():
            batch, schedule = arm.removeprefix("batch ").split(", ")
            first = len(losses) // 8
            axes.plot(
                np.array(data["marks"][first : len(losses)]) / 1000,
                losses[first:],
                color=_SHADES[batches.index(int(batch)) % len(_SHADES)],
                ls=_STYLES[schedule],
                lw=1.9,
                label=arm,
            )
        axes.set_xlabel("samples seen (thousands)")
        axes.set_ylabel("held-out loss")
        axes.set_title("One learning rate at every batch")
        if data["losses"]:
            axes.legend(loc="upper right")
    return made


def html(data: dict[str, Any]) -> str:
    """Return the page.

    Args:
        data: the result.

    Returns:
        Self-contained HTML.
    """
    shown = slice(None, None, max(1, len(data["marks"]) // 6))
    rows = [["arm", *(f"{mark:,}" for mark in data["marks"][shown])]]
    for arm, losses in data["losses"].items():
        cells = [f"{loss:.4f}" for loss in losses[shown]]
        rows.append([arm, *cells, *[""] * (len(rows[0]) - 1 - len(cells))])
    section = report.Section(
        "Held-out loss by samples", [data["why_longer"]], rows, [("loss over the run", figure(data))]
    )
    return page(data, "Do curves of several batches cross at one learning rate, and what does a decay do?", [section])
