"""isobatch study pseudo-label: the average labels the data, at other batches, with the EMA rule and without."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from isobatch.errors import InputError
from isobatch.tasks import LOSS, make_run
from isobatch.verify.judging import judge
from isobatch.verify.workers import Curve
from isobatch_studies.claims import criteria
from isobatch_studies.pages import keep
from isobatch_studies.pseudo_label import grid as layout
from isobatch_studies.pseudo_label.judging import judge_claims
from isobatch_studies.pseudo_label.page import figure, html
from isobatch_studies.work import Work

NAME = "pseudo-label"


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.

    Raises:
        InputError: a budget that ended before the reference.
    """
    rules = criteria(NAME)
    part = rules["quick" if work.quick else "grid"]
    seeds, base = part["seeds"], layout.reference(part)
    work.announce(seeds * (1 + len(layout.arms(part, 0.0))))
    make_run(base, 0)  # speaks the corpus once, before many processes ask for it

    start = layout.Arm("control", layout.REFERENCE, base)
    curves = work.train(layout.groups(part, seeds, [start], work.device))
    if not curves:
        raise InputError("the budget ended before the reference, from which every arm starts; raise --budget")
    error = layout.start_error(part, curves[layout.REFERENCE])
    arms = layout.arms(part, error)
    curves |= work.train(layout.groups(part, seeds, arms, work.device))
    data = {**work.head(NAME, rules), "seeds": seeds, "device": work.device}
    data |= _found(rules, part, [start, *arms], curves, error)
    if work.out is not None:
        keep(work.out, data, {"curves": figure(data)}, html(data))
    return data


def _found(
    rules: dict[str, Any], part: dict[str, Any], arms: list[layout.Arm], curves: dict[str, list[Curve]], error: float
) -> dict[str, Any]:
    """Return rows, claims and what they rest on; the first arm is the reference."""
    places = layout.stops(part)
    rows = [_row(arm, curves, rules, places) for arm in arms if arm.name in curves]
    return {
        "data": curves[layout.REFERENCE][0].facts,
        "margin": rules["margin"],
        "strict": rules["strict"],
        "start": {"samples": part["recipe"]["options"]["start"], "error": error},
        "cells": {"complete": len(rows) - 1, "of": len(arms) - 1},
        "rows": rows,
        "claims": judge_claims(rows, part["seeds"], part),
        "stops": places,
    }


def _row(
    arm: layout.Arm, curves: dict[str, list[Curve]], rules: dict[str, Any], places: Sequence[int]
) -> dict[str, Any]:
    runs, reference = curves[arm.name], curves[layout.REFERENCE]
    row: dict[str, Any] = {"arm": arm.name, "kind": arm.kind, "kappa": arm.kappa, "form": arm.form}
    row["steps"] = runs[0].steps
    row["minutes"] = round(float(np.mean([curve.seconds for curve in runs])) / 60, 2)
    if arm.name != layout.REFERENCE:
        both, marks = {"reference": reference, "arm": runs}, tuple(range(1, len(places)))
        table = judge(both, marks, {"loss": LOSS}, margins={"average": rules["margin"]})
        strict = judge(both, marks, {"loss": LOSS}, margins={"average": rules["strict"]})
        row["strict"] = str(strict["arm"]["average"].verdict)
        row["verdicts"] = {model: str(test.verdict) for model, test in table["arm"].items()}
        row["worst"] = {model: round(test.worst, 4) for model, test in table["arm"].items()}
        test = table["arm"]["average"]
        row["gap"] = {key: [round(float(x), 4) for x in getattr(test, key)] for key in ("mean", "low", "high")}
        row["gap"]["margin"] = [round(test.margin, 4)] * test.marks
        row["wer_gap"] = _interval(_last(runs, "average", "wer") - _last(reference, "average", "wer"))
        ratio = np.log(_last(runs, "average", "loss")) - np.log(_last(reference, "average", "loss"))
        row["loss_gap"] = _interval(ratio, worst=1.0)
    row["wer"] = {model: _interval(_last(runs, model, "wer")) for model in ("average", "raw")}
    row["wer_curve"] = {model: _mean(runs, model, "wer") for model in ("average", "raw")}
    row["loss_curve"] = _mean(runs, "average", "loss")
    row["starts"] = [int(curve.values["average"]["start"][-1]) for curve in runs]
    row["collapsed"] = sum(collapsed(curve) for curve in runs)
    row["diverged"] = sum(bool(curve.stopped) for curve in runs)
    return row


def collapsed(curve: Curve) -> bool:
    """Return whether pseudo-labelling has collapsed: it began, and the teacher ends with nothing said or nothing right.

    Args:
        curve: of a run.

    Returns:
        Whether more than half of the teacher's outputs are empty, or its word error rate is 95 % or more.
    """
    last = {name: series[-1] for name, series in curve.values["average"].items()}
    return last["start"] >= 0 and (last["empty"] > 50 or last["wer"] >= 95)


def _last(runs: Sequence[Curve], model: str, metric: str) -> np.ndarray:
    return np.array([curve.values[model][metric][-1] for curve in runs], dtype=float)


def _mean(runs: Sequence[Curve], model: str, metric: str) -> list[float]:
    return [round(float(v), 4) for v in np.mean([curve.values[model][metric] for curve in runs], axis=0)]


def _interval(values: np.ndarray, worst: float = 100.0) -> list[float]:
    """Return mean, low and high of the 95% t interval; what is not finite counts as the worst."""
    values = np.where(np.isfinite(values), values, worst)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [round(float(v), 3) for v in (values.mean(), values.mean() - half, values.mean() + half)]
