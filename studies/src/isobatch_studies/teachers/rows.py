"""What the finished runs of the teacher studies say: one row an arm, with verdicts, probes, collapse and time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isobatch.tasks import LOSS, Metric
from isobatch.verify.judging import gaps, judge
from isobatch.verify.workers import Curve
from isobatch_studies.paired import interval
from isobatch_studies.teachers.grid import Arm

RANK, VARIANCE = 1.5, 0.01
"""A run has collapsed when its features end below this effective rank or this variance."""
NOT_YET = "no verdict yet"
"""In place of a verdict while seeds are missing."""


@dataclass(frozen=True)
class Compared:
    """What of the runs is compared.

    Args:
        name: of the metric.
        metric: its declaration.
        margin: the same for raw and averaged model, in the metric's unit; the fixed ones unless given.
    """

    name: str = "loss"
    metric: Metric = LOSS
    margin: float | None = None


LOSSES = Compared()


def row(
    arm: Arm, runs: list[Curve], reference: list[Curve], planned: int, compared: Compared = LOSSES
) -> dict[str, Any] | None:
    """Return the row of one arm, over the seeds that it and the reference have both ended.

    Args:
        arm: which one.
        runs: its curves by seed.
        reference: the reference's.
        planned: seeds below which there is no verdict yet.
        compared: what is compared.

    Returns:
        Plain values; None without a pair.
    """
    bases = {curve.seed: curve for curve in reference}
    runs = [curve for curve in runs if curve.seed in bases]
    pairs = [(curve, bases[curve.seed]) for curve in runs]
    if not pairs:
        return None
    marks = tuple(range(1, len(pairs[0][1].values["raw"][compared.name])))
    models = tuple(pairs[0][1].values)
    verdicts, means = dict.fromkeys(models, NOT_YET), {}
    curves: dict[str, np.ndarray] = {}
    for model in models:
        curves[model] = mean = np.mean([_gap(one, other, model, compared) for one, other in pairs], axis=0)
        means[model] = float(mean[np.abs(mean).argmax()])
    if len(pairs) >= planned:
        margins = None if compared.margin is None else dict.fromkeys(models, compared.margin)
        sides = {"reference": [other for _, other in pairs], "arm": runs}
        table = judge(sides, marks, {compared.name: compared.metric}, metric=compared.name, margins=margins)
        verdicts = {model: str(test.verdict) for model, test in table["arm"].items()}
        means = {model: test.worst for model, test in table["arm"].items()}
    return {
        "variant": arm.variant,
        "arm": arm.kind,
        "kappa": arm.kappa,
        "batch": arm.recipe.batch.size,
        "seeds": len(pairs),
        "planned": planned,
        "verdicts": verdicts,
        "worst": {model: round(gap, 4) for model, gap in means.items()},
        "gaps": {model: [round(float(gap), 5) for gap in mean] for model, mean in curves.items()},
        "worst_per_seed": {
            model: [round(worst(one, other, model, compared), 5) for one, other in pairs] for model in models
        },
        "reference": ends([other for _, other in pairs]),
        **ends(runs),
    }


def ends(runs: list[Curve]) -> dict[str, Any]:
    """Return what an arm's runs ended with: means with 95% intervals, collapse by seed, time.

    Args:
        runs: curves by seed.

    Returns:
        Plain values; `per_seed` holds the last metrics of each seed, `gained` how far its accuracies have come.
    """
    found: dict[str, Any] = {"final": {}, "per_seed": {}, "gained": {}}
    for model in runs[0].values:
        last = {name: [curve.values[model][name][-1] for curve in runs] for name in runs[0].values[model]}
        found["final"][model] = {name: interval(values).to_dict() for name, values in last.items()}
        names = [name for name in ("loss", "accuracy", "knn") if name in last]
        found["per_seed"][model] = {name: [round(v, 4) for v in last[name]] for name in names}
        found["gained"][model] = {
            name: interval([c.values[model][name][-1] - c.values[model][name][0] for c in runs]).to_dict()
            for name in names[1:]
        }
    found["collapsed"] = [curve.seed for curve in runs if collapsed(curve)]
    found["stopped"] = sum(bool(curve.stopped) for curve in runs)
    found["steps"] = runs[0].steps
    found["seconds"] = round(min(curve.seconds for curve in runs), 1)  # of the run that was least disturbed
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


def worst(one: Curve, other: Curve, model: str, compared: Compared = LOSSES) -> float:
    """Return the largest absolute gap between two runs over the marks.

    Args:
        one: a run.
        other: the reference of the same seed.
        model: raw or average.
        compared: what is compared.

    Returns:
        The gap in the metric's own way; a diverged run counts as ten times the reference's loss, or as 0 percent.
    """
    return float(np.abs(_gap(one, other, model, compared)).max())


def _gap(one: Curve, other: Curve, model: str, compared: Compared) -> np.ndarray:
    a, b = (np.array(curve.values[model][compared.name], dtype=float) for curve in (one, other))
    lost = 10 * b if compared.metric.kind == "ratio" else np.zeros_like(b)
    return gaps(np.where(np.isfinite(a), a, lost), b, compared.metric)
