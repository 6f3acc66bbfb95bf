"""The run of a teacher study: train every arm, make a row of each, judge the claims, write result, picture and page."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from isobatch.executors import width
from isobatch.tasks import LOSS, PERCENT
from isobatch.train import Device
from isobatch.verify.cells import train_all
from isobatch.verify.workers import Curve, Job
from isobatch_studies.claims import as_dict, claims, criteria, outcome
from isobatch_studies.pages import keep
from isobatch_studies.tasks.images import images
from isobatch_studies.teachers import grid as layout
from isobatch_studies.teachers.judging import Judged, Rows, largest_same
from isobatch_studies.teachers.page import figure, html
from isobatch_studies.teachers.rows import Compared, ends, row
from isobatch_studies.work import Work

Judges = Mapping[str, Callable[[Rows], Judged]]
_KINDS = {"loss": LOSS, "accuracy": PERCENT, "knn": PERCENT}


def run(
    name: str,
    judges: Judges,
    work: Work,
    *,
    extra: Callable[[dict[str, Any], int, Work], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run a study, or take up again where it stopped.

    Args:
        name: of the study.
        judges: claim id -> judge of the rows; claims without one are judged by `extra`.
        work: which grid, where runs are trained and kept, and until when.
        extra: further measurements: (grid, seeds, work) -> values for the result, "judged" among them by claim id.

    Returns:
        What goes into result.json.
    """
    Device.parse(work.device)  # a device that is not there is refused here, not in every process
    rules = criteria(name, work.grid)
    part = rules["quick" if work.quick else "grid"]
    seeds = part["seeds"]
    if work.left() != 0:
        images(layout.reference(part, next(iter(part["variants"]))))  # made once here, not once in every process
    groups = [group for variant in part["variants"] for group in layout.groups(part, variant, seeds, work.device)]
    work.announce(sum(map(len, groups)))
    curves = _train(part, groups, work)
    rows = _rows(part, curves)
    more = {} if extra is None else extra(part, seeds, work)
    judged = {claim: judge(rows) for claim, judge in judges.items()} | more.pop("judged", {})
    known = claims(name, work.grid)
    data = {
        **work.head(name, rules),
        "seeds": seeds,
        "device": work.device,
        "judged": {"margin": 0.03, **part.get("judged", {"metric": "loss"})},
        **_summary(part, rows, curves),
        "claims": as_dict([outcome(known[claim], _counted(part, rows), *judged[claim]) for claim in known]),
        **more,
    }
    if work.out is not None:
        keep(work.out, data, {name: figure(data)}, html(data))
    return data


def _train(part: dict[str, Any], groups: list[list[Job]], work: Work) -> dict[str, list[Curve]]:
    """Train arm by arm, or where the grid says so seed by seed; then a run is kept at its stops, and counts alone."""
    if part.get("order") != "seeds":
        return work.train(groups)
    side_by_side = layout.seed_by_seed(groups, width(work.executor, work.workers))
    curves = work.train(side_by_side, checkpoints=True)
    return curves if work.out is None else train_all(layout.seed_by_seed(groups, 1), work.out, budget=-1.0)


def _counted(part: dict[str, Any], rows: Rows) -> int:
    """Seeds behind the figures: the grid's own, or those of the arm that lacks most of what it was promised."""
    if part.get("order") != "seeds":
        return part["seeds"] if rows else 0
    arms = sum(len(layout.arms(part, variant)) for variant in part["variants"])
    return min([part["seeds"] if len(rows) == arms else 0, *(r["seeds"] for r in rows if r["seeds"] < r["planned"])])


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
        "cells": {
            "complete": sum(r["seeds"] >= r["planned"] for r in rows),
            "of": sum(len(layout.arms(part, v)) for v in variants),
        },
        "runs": {label: len(found) for label, found in curves.items()},
        "rows": rows,
        "references": {v: ends(found) for v, found in references.items()},
        "largest_same_kappa": same,
        "curves": {label: _means(found) for label, found in curves.items()},
        "stops": {v: layout.stops(part, v) for v in variants},
        "facts": next((found[0].facts for found in curves.values()), {}),
    }


def _rows(part: dict[str, Any], curves: dict[str, list[Curve]]) -> Rows:
    judged = part.get("judged", {"metric": "loss"})
    compared = Compared(judged["metric"], _KINDS[judged["metric"]], judged.get("margin"))
    found = [
        row(
            arm,
            curves.get(arm.label, []),
            curves.get(f"{variant} reference", []),
            layout.seeds_of(part, arm.kind),
            compared,
        )
        for variant in part["variants"]
        for arm in layout.arms(part, variant)
    ]
    return [one for one in found if one is not None]


def _means(runs: list[Curve]) -> dict[str, dict[str, list[float]]]:
    """Mean over seeds of loss and accuracies at each stop, by model."""
    return {
        model: {
            metric: [round(float(v), 5) for v in np.mean([c.values[model][metric] for c in runs], axis=0)]
            for metric in _KINDS
            if metric in runs[0].values[model]
        }
        for model in runs[0].values
    }
