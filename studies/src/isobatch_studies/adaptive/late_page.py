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
    """Draw the held-out loss over the samples, and every run's last loss.

    Args:
        data: the study's result.

    Returns:
        A figure of two panels.
    """
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(11.6, 4.6), layout="constrained")
        left, right = made.subplots(1, 2)
        if not data["rows"]:
            made.text(0.5, 0.5, "no complete runs yet", ha="center")
            return made
        for row in data["rows"]:
            arm, first = row["arm"], len(row["seen"]) // 8
            left.plot(
                np.array(row["seen"][first:]) / 1000, row["losses"][first:], color=_SHADES[arm], ls=_STYLES[arm], lw=1.8
            )
        left.set(yscale="log", xlabel="samples seen (thousands)", ylabel="held-out loss, raw model")
        left.set_yticks([], minor=True)
        ends = [loss for row in data["rows"] for loss in row["losses"][len(row["seen"]) // 8 :]]
        ticks = np.geomspace(min(ends), max(ends), 5)
        left.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
        left.set_title("Over the run, mean of the seeds")
        _ends(right, data["rows"])
    return made


def _ends(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        values, mean = np.array(row["final"]), row["mean"]
        height = len(rows) - place
        axes.plot(values, np.full(len(values), height - 0.22), ".", color=_SHADES[row["arm"]], alpha=0.5)
        low, high = mean["low"], mean["high"]
        error = [[mean["mean"] - low], [high - mean["mean"]]] if low is not None else None
        axes.errorbar(mean["mean"], height, xerr=error, fmt="o", color=_SHADES[row["arm"]], capsize=4)
    names = [f"{r['arm']}  ({r['steps']:,} steps, {r['samples']:,} samples)" for r in rows]
    axes.set_yticks(range(len(rows), 0, -1), names, fontsize=9.5)
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
    sections = [report.Section("Arms", [], cells, [("loss over the run and at its end", figure(data))])]
    return page(
        data, "The learning rate stays, and the batch alone is raised: early, late, or from the start.", sections
    )
