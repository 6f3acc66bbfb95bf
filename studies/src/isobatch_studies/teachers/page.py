"""Picture and page of the teacher studies."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.pages import page
from isobatch_studies.teachers.grid import MEANING

_SHADE = {
    "rule": "#0072B2", "no EMA rule": "#D55E00", "progressive": "#009E73", "hold": "#CC79A7",
    "nothing scaled": "#E69F00", "no centre rule": "#56B4E9",
}  # fmt: skip
_WORDS = {"loss": "log loss", "accuracy": "accuracy of the probe", "knn": "accuracy of nearest neighbours"}
_STYLES = ("-", "--", "-.", ":")
_LOSS = {"metric": "loss", "margin": 0.03}
"""What was judged, and by which margin of the averaged model, before results said it."""


def figure(data: dict[str, Any]) -> Figure:
    """Draw the averaged model's gap in the judged metric and its accuracy over the samples, one line a variant.

    Args:
        data: the study's result.

    Returns:
        A figure of two panels a variant.
    """
    data = _whole(data)
    variants = [v for v in data["stops"] if f"{v} reference" in data["curves"]]
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(14.4, 5.2 * max(1, len(variants))), layout="constrained")
        if not variants:
            return made
        for (left, right), variant in zip(made.subplots(len(variants), 2, squeeze=False), variants, strict=True):
            _gaps(left, data, variant)
            _accuracies(right, data, variant)
    return made


def _whole(data: dict[str, Any]) -> dict[str, Any]:
    """Return a result with what earlier ones do not state but hold: how many seeds ended, and what was judged.

    Gaps that are paired by seed cannot be had from means over seeds; those of the mean losses are drawn in their place,
    and called so.
    """
    if "runs" in data:
        return data
    runs = {f"{v} reference": _seeds(found) for v, found in data["references"].items()}
    rows = [r | {"seeds": _seeds(r), "planned": data["seeds"]} for r in data["rows"]]  # complete arms alone had a row
    return data | {"runs": runs, "rows": rows, "judged": _LOSS}


def _seeds(found: dict[str, Any]) -> int:
    return found["final"]["average"]["loss"]["values"]


def _lines(data: dict[str, Any], variant: str) -> list[tuple[str, str, str, dict[str, list[float]]]]:
    kappas = sorted({r["kappa"] for r in data["rows"]}, reverse=True)
    found = []
    for r in data["rows"]:
        if r["variant"] == variant:
            label = f"{variant} {r['arm']} x{r['kappa']:g}"
            style = _STYLES[kappas.index(r["kappa"]) % len(_STYLES)]
            found.append((f"{r['arm']} x{r['kappa']:g}", _SHADE[r["arm"]], style, data["curves"][label]["average"]))
    return found


def _name(data: dict[str, Any], variant: str) -> str:
    return variant if variant == data["study"] else f"{data['study']}, {variant}"


def _gaps(axes: Any, data: dict[str, Any], variant: str) -> None:
    x = np.array(data["stops"][variant]) / 1000
    metric, margin = data["judged"]["metric"], data["judged"]["margin"]
    axes.axhspan(-margin, margin, color="#56B4E9", alpha=0.2, lw=0)
    rows = [row for row in data["rows"] if row["variant"] == variant]
    paired = all("gaps" in row for row in rows)
    base = np.log(data["curves"][f"{variant} reference"]["average"]["loss"])
    for row, (name, shade, style, values) in zip(rows, _lines(data, variant), strict=True):
        gaps = row["gaps"]["average"] if paired else np.log(values["loss"]) - base
        axes.plot(x, gaps, color=shade, ls=style, lw=1.9, label=name)
    if metric == "loss":
        axes.set_yscale("symlog", linthresh=0.05)
        axes.set_yticks([-0.5, -0.05, 0, 0.05, 0.5], ["-0.5", "-0.05", "0", "0.05", "0.5"])
    axes.set_xlabel("samples seen (thousands)")
    axes.set_ylabel(f"gap in {_WORDS[metric] if paired else 'log of the mean loss'}, averaged model")
    axes.set_title(f"{_name(data, variant)}: gap to the reference")


def _accuracies(axes: Any, data: dict[str, Any], variant: str) -> None:
    x = np.array(data["stops"][variant]) / 1000
    metric = "accuracy" if data["judged"]["metric"] == "loss" else data["judged"]["metric"]
    for name, shade, style, values in _lines(data, variant):
        axes.plot(x, values[metric], color=shade, ls=style, lw=1.9, label=name)
    reference = data["curves"][f"{variant} reference"]["average"][metric]
    axes.plot(x, reference, color="black", lw=2.2, label="reference", zorder=0)
    axes.set_xlabel("samples seen (thousands)")
    probed = metric != "accuracy" or data["recipe"][variant]["task"] != "polyak"  # which trains its own classifier
    axes.set_ylabel(f"{_WORDS[metric] if probed else metric} on held-out views (%)")
    axes.set_title(f"{_name(data, variant)}: averaged model")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    data = _whole(data)
    rows = [["variant", "arm", "batch", "seeds", "averaged", "gap", "raw", "gap", *_ENDS, "collapsed", "seconds"]]
    for r in data["rows"]:
        verdicts, gaps = r["verdicts"], r["worst"]
        cells = [r["variant"], f"{r['arm']} x{r['kappa']:g}", str(r["batch"]), f"{r['seeds']} of {r['planned']}"]
        cells += [verdicts["average"], f"{gaps['average']:+.3f}", verdicts["raw"], f"{gaps['raw']:+.3f}"]
        rows.append([*cells, *_ended(r), str(len(r["collapsed"])), f"{r['seconds']:.0f}"])
    for variant, found in data["references"].items():
        filled = [variant, "reference", "", str(data["runs"][f"{variant} reference"]), "", "", "", "", *_ended(found)]
        rows.append([*filled, str(len(found["collapsed"])), f"{found['seconds']:.0f}"])
    meaning = [f"{name}: {text}." for name, text in MEANING.items()]
    sections = [
        report.Section("Over the run", ["Shaded: the margin."], [], [(data["study"], figure(data))]),
        report.Section("Every arm", meaning, rows),
    ]
    return page(data, "The average is part of the run: does the run stay the same at another batch?", sections)


_ENDS = ("probe, averaged (%)", "neighbours, averaged (%)", "neighbours, raw (%)")


def _ended(row: dict[str, Any]) -> list[str]:
    cells = []
    for model, name in (("average", "accuracy"), ("average", "knn"), ("raw", "knn")):
        last = row["final"].get(model, {}).get(name)
        ends = () if last is None else [last[end] for end in ("low", "high") if math.isfinite(last[end] or math.nan)]
        spread = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if len(ends) == 2 else ""  # one seed has none
        cells.append("" if last is None else f"{last['mean']:.1f}{spread}")
    return cells
