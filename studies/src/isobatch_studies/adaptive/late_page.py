"""Picture and page of the adaptive study's grid "late"."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.adaptive.late import EARLY, LARGE, LATE, SMALL, STEPS
from isobatch_studies.pages import page

_SHADES = {SMALL: "#000000", LARGE: "#0072B2", EARLY: "#009E73", LATE: "#D55E00", STEPS: "#56B4E9"}
_STYLES = {SMALL: "-", LARGE: "--", EARLY: "-.", LATE: "-", STEPS: ":"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw the held-out loss over samples and over steps, and every run's last loss.

    Args:
        data: the study's result.

    Returns:
        A figure of three panels.
    """
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(14.4, 4.8), layout="constrained")
        if not data["rows"]:
            made.text(0.5, 0.5, "no complete runs yet", ha="center")
            return made
        over, steps, right = made.subplots(1, 3, width_ratios=(1, 1, 1.15))
        judged = [row for row in data["rows"] if row["arm"] in _SHADES]
        _curves(over, [row for row in judged if row["arm"] != STEPS], "seen")
        over.set(xlabel="samples seen", ylabel="held-out loss, raw model", title="At as many samples")
        _curves(steps, [row for row in data["rows"] if _kind(row) in (EARLY, LATE, STEPS)], "at_step")
        steps.set(xlabel="steps", title="At as many steps")
        _ends(right, data["rows"])
    return made


def _kind(row: dict[str, Any]) -> str:
    """Return the arm that this one is, whatever its optimizer."""
    return max((arm for arm in _SHADES if row["arm"].startswith(arm)), key=len)


def _curves(axes: Axes, rows: list[dict[str, Any]], x: str) -> None:
    shown = [(row, slice(len(row["seen"]) // 8, None)) for row in rows]
    for row, part in shown:
        shade, thin = _SHADES[_kind(row)], row["arm"] not in _SHADES
        style = _STYLES[_kind(row)]
        axes.plot(row[x][part], row["losses"][part], color=shade, ls=style, lw=1.0 if thin else 1.9)
    ends = [loss for row, part in shown for loss in row["losses"][part]]
    ticks = np.geomspace(min(ends), max(ends), 5)
    axes.set_yscale("log")
    axes.set_yticks([], minor=True)
    axes.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])


def _ends(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        values, mean, shade = np.array(row["final"]), row["mean"], _SHADES[_kind(row)]
        height = len(rows) - place
        axes.plot(values, np.full(len(values), height - 0.22), ".", color=shade, alpha=0.5)
        low, high = mean["low"], mean["high"]
        error = [[mean["mean"] - low], [high - mean["mean"]]] if low is not None else None
        axes.errorbar(mean["mean"], height, xerr=error, fmt="o", color=shade, capsize=4)
    names = [f"{r['arm']}\n{r['steps']:,} steps, {r['samples']:,} samples" for r in rows]
    axes.set_yticks(range(len(rows), 0, -1), names, fontsize=9)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlabel("held-out loss at the end, mean and 95% interval")
    axes.set_title("At the end")


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    cells = [["arm", "steps", "samples", "held-out loss at the end", "seconds a run"]]
    for row in data["rows"]:
        mean = f"{row['mean']['mean']:.4f}"
        if row["mean"]["low"] is not None:
            mean += f" [{row['mean']['low']:.4f}, {row['mean']['high']:.4f}]"
        cells.append([row["arm"], f"{row['steps']:,}", f"{row['samples']:,}", mean, f"{row['seconds']:.0f}"])
    beside = [data["why_beside"]] if len(data["rows"]) > len(_SHADES) else []
    sections = [report.Section("Arms", beside, cells, [("loss over the run and at its end", figure(data))])]
    return page(
        data, "The learning rate stays, and the batch alone is raised: early, late, or from the start.", sections
    )
