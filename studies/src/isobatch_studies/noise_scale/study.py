"""isobatch study noise-scale: B_simple and B_crit, at the start and on average, domain by domain."""

from dataclasses import replace
from typing import Any

from isobatch_studies.claims import as_dict, criteria
from isobatch_studies.noise_scale import decay
from isobatch_studies.noise_scale import grid as layout
from isobatch_studies.noise_scale.judging import NAME, judge, judge_further, row
from isobatch_studies.noise_scale.page import figures, html
from isobatch_studies.noise_scale.probing import NoiseCurve, NoiseProbe, file_name, probe
from isobatch_studies.pages import keep
from isobatch_studies.work import Work

_RATES = 6


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    if work.grid == decay.GRID:
        return decay.run(rules, work)
    part, count = rules["quick" if work.quick else "grid"], rules["window"]["stops"]
    known, seeds = layout.domains(part), part["seeds"]
    work.announce(seeds * sum(len(domain.batches) * _RATES + 1 for domain in known))

    def follow(probes: list[NoiseProbe]) -> list[NoiseCurve] | None:
        found = work.results(probe, probes, name=file_name, read=_read)
        # one run may be kept for several questions: it bears the label of the one that asks
        return found and [replace(curve, label=asked.label) for asked, curve in zip(probes, found, strict=True)]

    # The two questions beside the table first: they are cheap, and a budget that ends in a sweep leaves them answered.
    rows, beside = [], {}
    for name, probes in layout.beside(part, known, seeds, count).items():
        readings = follow(probes)
        if readings is not None:
            beside[name] = {label: [r for r in readings if r.label == label] for label in {p.label for p in probes}}
    for domain in known:
        found = layout.critical(domain, seeds, work)
        point = layout.nearest(found) if not found.left else None
        readings = follow(layout.along(domain, point, seeds, count)) if point is not None else None
        rows.append(row(domain, found, point, readings))
    data = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "cells": {"complete": sum(made["complete"] for made in rows), "of": len(rows)},
        "rows": rows,
        "beside": {name: {label: [vars(r) for r in found] for label, found in sorted(groups.items())}
                   for name, groups in beside.items()},
        "claims": as_dict(judge_further(rows, seeds, work.grid) if work.grid else judge(rows, beside, seeds)),
    }  # fmt: skip
    if work.out is not None:
        keep(work.out, data, figures(data), html(data))
    return data


def _read(values: dict[str, Any]) -> NoiseCurve:
    return NoiseCurve(**values)
