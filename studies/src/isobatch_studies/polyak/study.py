"""isobatch study polyak: the average that only watches, how wide the place is where it sits, what it teaches."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from isobatch.verify.cells import name as cell_name
from isobatch.verify.workers import Job
from isobatch_studies.claims import all_hold
from isobatch_studies.paired import interval
from isobatch_studies.polyak.sharpness import Sharpness, measure
from isobatch_studies.teachers import judging, tables
from isobatch_studies.teachers.grid import groups
from isobatch_studies.teachers.judging import Judged, Rows
from isobatch_studies.teachers.study import run as run_teachers
from isobatch_studies.work import Work

NAME = "polyak"
KAPPA = 16
WIDER = ("polyak/wider-optimum", "polyak/small-steps-wider-optimum")
"""The same criterion in two grids."""


def same_at_16(rows: Rows) -> Judged:
    """Judge: at kappa 16 the average is SAME under the rule and DIFFERENT without it, with batch norm and without.

    Args:
        rows: of all variants.

    Returns:
        Held, and the figures.
    """
    ruled, without = (judging.picked(rows, arm, KAPPA) for arm in ("rule", "no EMA rule"))
    told = [
        f"{r['variant']}: {r['arm']} {r['verdicts']['average']} {r['worst']['average']:+.3f}" for r in ruled + without
    ]
    missing = 4 - len(ruled) - len(without)
    told += ["arms at kappa 16 are missing"] if missing else []
    held = all_hold([
        *(r["verdicts"]["average"] == "SAME" for r in ruled),
        *(r["verdicts"]["average"] == "DIFFERENT" for r in without),
        *[None] * missing,
    ])  # fmt: skip
    return held, ", ".join(told)


def width(part: dict[str, Any], seeds: int, work: Work) -> dict[str, Any]:
    """Measure how wide the place of raw and averaged weights is, and what the average teaches.

    Args:
        part: the grid.
        seeds: runs a variant.
        work: where runs are trained and kept, and until when.

    Returns:
        "width": figures by variant; "judged": the claim.
    """
    table = {}
    for variant in part["variants"]:
        jobs = width_jobs(part, variant, seeds, work.device)
        found = work.results(measure, jobs, name=file_name, read=_read, on_done=None)
        if found is not None:
            table[variant] = compared(found, variant)
    if not table:
        return {"judged": dict.fromkeys(WIDER, (None, "not measured yet"))}
    held, text = wider(table)
    missing = len(part["variants"]) - len(table)
    text += "; the other variant was not measured" if missing else ""
    return {"width": table, "judged": dict.fromkeys(WIDER, (all_hold([held, *[None] * missing]), text))}


def _read(values: dict[str, Any]) -> Sharpness:
    return Sharpness(**values)


def width_jobs(part: dict[str, Any], variant: str, seeds: int, device: str) -> list[Job]:
    """Return the reference runs whose ends are looked at, and those that their own average teaches.

    Args:
        part: the grid.
        variant: which reference recipe.
        seeds: runs of each.
        device: where they are trained.

    Returns:
        Jobs.
    """
    alone = groups(part, variant, seeds, device)[0]
    found = []
    for job in alone:
        options = job.recipe.options | {"distil": 1.0}
        taught = job.recipe.model_copy(update={"options": options})
        last = (job.stops[-1],)
        found += [
            replace(job, arm=f"{variant} alone", stops=last),
            replace(job, arm=f"{variant} taught", recipe=taught, stops=last),
        ]
    return found


def file_name(job: Job) -> str:
    """Return the file name of a measurement, another one than that of the run's curve.

    Args:
        job: the run.

    Returns:
        A file name.
    """
    return f"width-{cell_name(job)}"


def compared(found: list[Sharpness], variant: str) -> dict[str, Any]:
    """Return paired comparisons over seeds: log ratios of average to raw, points of accuracy of taught to alone.

    Args:
        found: all measurements.
        variant: which reference recipe.

    Returns:
        Plain values.
    """
    alone, taught = ([s for s in found if s.arm == f"{variant} {word}"] for word in ("alone", "taught"))
    sizes, models = list(alone[0].rise["raw"]), ("raw", "average")
    less = {size: _interval([s.rise["average"][size] - s.rise["raw"][size] for s in alone]) for size in sizes}
    positive = all(min(s.eigenvalue.values()) > 0 for s in alone)
    ratio = [math.log(s.eigenvalue["average"] / s.eigenvalue["raw"]) for s in alone] if positive else None
    gain = {
        model: _interval([_accuracy(b, model) - _accuracy(a, model) for a, b in zip(alone, taught, strict=True)])
        for model in models
    }
    return {
        "rise": {model: {size: _mean([s.rise[model][size] for s in alone]) for size in sizes} for model in models},
        "rise_average_less_raw": less,
        "eigenvalue": {model: _mean([s.eigenvalue[model] for s in alone]) for model in models},
        "log_eigenvalue_ratio": None if ratio is None else _interval(ratio),
        "accuracy_taught_less_alone": gain,
        "accuracy_average_less_raw": _interval([_accuracy(s, "average") - _accuracy(s, "raw") for s in alone]),
    }


def _accuracy(found: Sharpness, model: str) -> float:
    return found.metrics[model]["accuracy"]


def _interval(values: list[float]) -> dict[str, float]:
    return interval(values).to_dict()


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 5)


def wider(table: dict[str, dict[str, Any]]) -> Judged:
    """Judge: the loss rises less around the average (largest perturbation) and its largest eigenvalue is smaller.

    Args:
        table: figures by variant.

    Returns:
        Held, and the figures.
    """
    told, held = [], True
    for variant, figures in table.items():
        size = max(figures["rise_average_less_raw"], key=float)
        rise, ratio = figures["rise_average_less_raw"][size], figures["log_eigenvalue_ratio"]
        if ratio is None:
            return None, f"{variant}: a largest eigenvalue is not positive"
        held = held and rise["high"] < 0 and ratio["high"] < 0
        told.append(
            f"{variant}: rise at {size} {rise['mean']:+.4f} [{rise['low']:+.4f}, {rise['high']:+.4f}], "
            f"log eigenvalue ratio {ratio['mean']:+.2f} [{ratio['low']:+.2f}, {ratio['high']:+.2f}]"
        )
    return held, "; ".join(told)


def markdown(data: dict[str, Any] | None) -> str:
    """Return what was measured around the raw and the averaged weights at the end of the reference runs.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown: a row a variant, with rises of the loss at the largest perturbation, eigenvalues, what an average adds
        and what it teaches, in points of accuracy.
    """
    head = ["variant", "rise, raw", "rise, averaged", "eigenvalue, raw", "averaged", "log ratio"]
    rows = [[*head, "accuracy, averaged less raw", "taught by the average less alone"]]
    for variant, found in (data["width"] if data else {}).items():
        size, ratio = max(found["rise_average_less_raw"], key=float), found["log_eigenvalue_ratio"]
        rises = [f"{found['rise'][model][size]:.4f}" for model in ("raw", "average")]
        curved = [f"{found['eigenvalue'][model]:.4g}" for model in ("raw", "average")]
        points = (found["accuracy_average_less_raw"], found["accuracy_taught_less_alone"]["raw"])
        last = ["" if ratio is None else _spread(ratio, 3), *(_spread(gain, 2) for gain in points)]
        rows.append([variant, *rises, *curved, *last])
    return tables.table(rows) if rows[1:] else "No run is complete.\n"


def _spread(found: dict[str, float], digits: int) -> str:
    return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


JUDGES = {"polyak/same-kappa-16": same_at_16, "polyak/small-steps-same-kappa-16": same_at_16}
run = partial(run_teachers, NAME, JUDGES, extra=width)
