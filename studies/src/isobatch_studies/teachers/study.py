"""The run of a teacher study: train every arm, make a row of each, judge the claims, write result, picture and page."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.report import prepare, write, write_result
from isobatch.train import Device
from isobatch.verify.cells import train_all
from isobatch.verify.workers import Curve
from isobatch_studies.claims import as_dict, claims, criteria, outcome
from isobatch_studies.tasks.images import images
from isobatch_studies.teachers import grid as layout
from isobatch_studies.teachers.judging import Judged, Rows, largest_same
from isobatch_studies.teachers.page import html, picture
from isobatch_studies.teachers.rows import ends, row

Judges = Mapping[str, Callable[[Rows], Judged]]


def run(
    name: str,
    judges: Judges,
    *,
    quick: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    budget: float | None = None,
    device: str = "cpu",
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Curve], None] | None = None,
    extra: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run a study, or take up again where it stopped.

    Args:
        name: of the study.
        judges: claim id -> judge of the rows; claims without one are judged by `extra`.
        quick: the small grid of criteria.json.
        out: folder for cells, result.json, picture and page; nothing is kept without it.
        workers: processes, one a core unless given.
        budget: seconds after which no further arm is begun.
        device: where the runs are trained, in the word of `Device.parse`.
        on_estimate: called with seconds (0: unknown) and the number of runs.
        on_done: called with each finished run.
        extra: further measurements: (grid, seeds, whether the budget allows runs, out=, workers=, device=) -> values
            for the result, "judged" among them by claim id.

    Returns:
        What goes into result.json.
    """
    Device.parse(device)  # a device that is not there is refused here, not in every process
    rules, began = criteria(name), time.monotonic()
    part = rules["quick" if quick else "grid"]
    seeds = part["seeds"]
    if budget is None or budget > 0:
        images(layout.reference(part, next(iter(part["variants"]))))  # made once here, not once in every process
    groups = [group for variant in part["variants"] for group in layout.groups(part, variant, seeds, device)]
    if on_estimate is not None:
        on_estimate(0.0, sum(map(len, groups)))
    curves = train_all(groups, out, workers=workers, budget=budget, on_done=on_done)
    rows = _rows(part, curves)
    started = budget is None or time.monotonic() - began < budget
    more = extra(part, seeds, started, out=out, workers=workers, device=device) if extra is not None else {}
    judged = {claim: judge(rows) for claim, judge in judges.items()} | more.pop("judged", {})
    known = claims(name)
    data = {
        "study": name,
        "title": rules["title"],
        "quick": quick,
        "seeds": seeds,
        "device": device,
        **_summary(part, rows, curves),
        "claims": as_dict([outcome(known[claim], seeds if curves else 0, *judged[claim]) for claim in known]),
        **more,
    }
    if out is not None:
        folder = prepare(out)
        write_result(folder, data)
        write(folder / f"{name}.png", picture(data))
        write(folder / "report.html", html(data))
    return data


def _summary(part: dict[str, Any], rows: Rows, curves: dict[str, list[Curve]]) -> dict[str, Any]:
    variants = list(part["variants"])
    references = {v: curves[f"{v} reference"] for v in variants if f"{v} reference" in curves}
    recipes = {v: layout.reference(part, v).model_dump(mode="json", exclude_none=True) for v in variants}
    same = {
        v: {model: largest_same([r for r in rows if r["variant"] == v], model) for model in ("raw", "average")}
        for v in variants
    }
    return {
        "recipe": recipes,
        "cells": {"complete": len(rows), "of": sum(len(layout.arms(part, v)) for v in variants)},
        "rows": rows,
        "references": {v: ends(found) for v, found in references.items()},
        "largest_same_kappa": same,
        "curves": {label: _means(found) for label, found in curves.items()},
        "stops": {v: layout.stops(part, v) for v in variants},
        "facts": next((found[0].facts for found in curves.values()), {}),
    }


def _rows(part: dict[str, Any], curves: dict[str, list[Curve]]) -> Rows:
    return [
        row(arm, curves[arm.label], curves[f"{variant} reference"])
        for variant in part["variants"]
        for arm in layout.arms(part, variant)
        if {arm.label, f"{variant} reference"} <= curves.keys()
    ]


def _means(runs: list[Curve]) -> dict[str, dict[str, list[float]]]:
    """Mean over seeds of loss and accuracy at each stop, by model."""
    return {
        model: {
            metric: [round(float(v), 5) for v in np.mean([c.values[model][metric] for c in runs], axis=0)]
            for metric in ("loss", "accuracy")
        }
        for model in runs[0].values
    }
