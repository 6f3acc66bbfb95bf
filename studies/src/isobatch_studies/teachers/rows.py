"""What the finished runs of the teacher studies say: one row an arm, with verdicts, probes, collapse and time."""

from typing import Any

import numpy as np

from isobatch.tasks import LOSS
from isobatch.verify.judging import judge
from isobatch.verify.workers import Curve
from isobatch_studies.paired import interval
from isobatch_studies.teachers.grid import Arm

RANK, VARIANCE = 1.5, 0.01
"""A run has collapsed when its features end below this effective rank or this variance."""


def row(arm: Arm, runs: list[Curve], reference: list[Curve]) -> dict[str, Any]:
    """Return the row of one arm.

    Args:
        arm: which one.
        runs: its curves by seed.
        reference: the reference's.

    Returns:
        Plain values.
    """
    marks = tuple(range(1, len(reference[0].values["raw"]["loss"])))
    table = judge({"reference": reference, "arm": runs}, marks, {"loss": LOSS})
    gaps = {
        model: [worst(one, other, model) for one, other in zip(runs, reference, strict=True)] for model in table["arm"]
    }
    return {
        "variant": arm.variant,
        "arm": arm.kind,
        "kappa": arm.kappa,
        "batch": arm.recipe.batch.size,
        "verdicts": {model: str(test.verdict) for model, test in table["arm"].items()},
        "worst": {model: round(test.worst, 4) for model, test in table["arm"].items()},
        "worst_per_seed": {model: [round(gap, 5) for gap in found] for model, found in gaps.items()},
        **ends(runs),
    }


def ends(runs: list[Curve]) -> dict[str, Any]:
    """Return what an arm's runs ended with: means with 95% intervals, collapse by seed, time.

    Args:
        runs: curves by seed.

    Returns:
        Plain values; `per_seed` holds the last accuracy of each seed.
    """
    found: dict[str, Any] = {"final": {}, "per_seed": {}}
    for model in runs[0].values:
        last = {name: [curve.values[model][name][-1] for curve in runs] for name in runs[0].values[model]}
        found["final"][model] = {name: interval(values).to_dict() for name, values in last.items()}
        found["per_seed"][model] = {name: [round(v, 4) for v in last[name]] for name in ("loss", "accuracy")}
    found["collapsed"] = [curve.seed for curve in runs if collapsed(curve)]
    found["stopped"] = sum(bool(curve.stopped) for curve in runs)
    found["steps"] = runs[0].steps
    found["seconds"] = round(float(np.mean([curve.seconds for curve in runs])), 1)
    return found


def collapsed(curve: Curve) -> bool:
    """Return whether the features of a run, raw or averaged, ended collapsed.

    Args:
        curve: of the run.

    Returns:
        True where the effective rank or the variance is below its limit; False for runs without these metrics.
    """
    last = [{name: values[-1] for name, values in series.items()} for series in curve.values.values()]
    return any(point.get("rank", RANK) < RANK or point.get("variance", VARIANCE) < VARIANCE for point in last)


def worst(one: Curve, other: Curve, model: str) -> float:
    """Return the largest absolute gap in log loss between two runs over the marks.

    Args:
        one: a run.
        other: the reference of the same seed.
        model: raw or average.

    Returns:
        The gap; a diverged run counts as ten times the reference.
    """
    a, b = (np.array(curve.values[model]["loss"], dtype=float)[1:] for curve in (one, other))
    return float(np.abs(np.log(np.where(np.isfinite(a), a, 10 * b)) - np.log(b)).max())
