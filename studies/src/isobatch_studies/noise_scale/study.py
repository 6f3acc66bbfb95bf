"""isobatch study noise-scale: B_simple and B_crit, at the start and on average, domain by domain."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobatch.verify.cells import run_all, until
from isobatch_studies.claims import as_dict, criteria
from isobatch_studies.noise_scale import decay
from isobatch_studies.noise_scale import grid as layout
from isobatch_studies.noise_scale.judging import NAME, judge, judge_further, row
from isobatch_studies.noise_scale.page import figures, html
from isobatch_studies.noise_scale.probing import NoiseCurve, NoiseProbe, file_name, probe
from isobatch_studies.pages import keep

_RATES = 6


def run(
    *,
    quick: bool = False,
    grid: str = "",
    out: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    budget: float | None = None,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        quick: the small grid of criteria.json.
        grid: a further grid, "" for the study's own.
        out: folder for cells, result.json, pictures and page; nothing is kept without it.
        workers: processes, one a core unless given.
        executor: trains the runs, as in `isobatch.verify.run`.
        budget: seconds after which no further run is begun.
        on_estimate: called with seconds (0: unknown) and the number of runs, about.
        on_done: called with each finished run.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, grid)
    if grid == decay.GRID:
        return decay.run(
            rules, out, workers=workers, executor=executor, budget=budget, on_estimate=on_estimate, on_done=on_done
        )
    part, count = rules["quick" if quick else "grid"], rules["window"]["stops"]
    known, seeds, ends = layout.domains(part), part["seeds"], until(budget)
    if on_estimate is not None:
        on_estimate(0.0, seeds * sum(len(domain.batches) * _RATES + 1 for domain in known))

    def left() -> float | None:
        return None if budget is None else max(0.0, ends - time.monotonic())

    def follow(probes: list[NoiseProbe]) -> list[NoiseCurve] | None:
        name, read = file_name, _read
        found = run_all(
            probe, probes, out, name=name, read=read, workers=workers, executor=executor, ends=ends, on_done=on_done
        )
        # one run may be kept for several questions: it bears the label of the one that asks
        return found and [replace(curve, label=asked.label) for asked, curve in zip(probes, found, strict=True)]

    # The two questions beside the table first: they are cheap, and a budget that ends in a sweep leaves them answered.
    rows, beside = [], {}
    for name, probes in layout.beside(part, known, seeds, count).items():
        readings = follow(probes)
        if readings is not None:
            beside[name] = {label: [r for r in readings if r.label == label] for label in {p.label for p in probes}}
    for domain in known:
        found = layout.critical(domain, seeds, out, workers, executor, left(), on_done)
        point = layout.nearest(found) if not found.left else None
        readings = follow(layout.along(domain, point, seeds, count)) if point is not None else None
        rows.append(row(domain, found, point, readings))
    data = {
        "study": NAME,
        "title": rules["title"],
        "quick": quick,
        "grid": grid,
        "seeds": seeds,
        "cells": {"complete": sum(made["complete"] for made in rows), "of": len(rows)},
        "rows": rows,
        "beside": {name: {label: [vars(r) for r in found] for label, found in sorted(groups.items())}
                   for name, groups in beside.items()},
        "claims": as_dict(judge_further(rows, seeds, grid) if grid else judge(rows, beside, seeds)),
    }  # fmt: skip
    if out is not None:
        keep(out, data, figures(data), html(data))
    return data


def _read(values: dict[str, Any]) -> NoiseCurve:
    return NoiseCurve(**values)
