"""The adaptive study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.pages import page

_ADAPTIVE, _BARE, _FIXED = "#D55E00", "#CC79A7", "#0072B2"


def figure(data: dict[str, Any]) -> Figure:
    """Draw steps against samples to the goal, and noise scale and batch of the first adaptive run.

    Args:
        data: the study's result.

    Returns:
        A figure of two panels.
    """
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(11.2, 4.4), layout="constrained")
        left, right = made.subplots(1, 2)
        _front(left, data)
        _batches(right, data)
    return made


def _front(axes: Axes, data: dict[str, Any]) -> None:
    fixed = []
    for row in data["rows"]:
        ends = [(s, e) for s, e in zip(row["goal_steps"], row["goal_samples"], strict=True) if s is not None]
        if not ends:
            continue
        steps, samples = np.exp(np.log(np.array(ends, dtype=float)).mean(0))
        if row["arm"].startswith("fixed"):
            fixed.append((samples, steps, row["arm"].removeprefix("fixed ")))
            continue
        shade, mark = (_ADAPTIVE, "D") if row["arm"] == "adaptive" else (_BARE, "v")
        axes.plot(*np.array(ends).T[::-1], mark, color=shade, ms=4, alpha=0.35)
        axes.plot(samples, steps, mark, color=shade, ms=9, label=row["arm"])
    if fixed:
        axes.plot([f[0] for f in fixed], [f[1] for f in fixed], "o-", color=_FIXED, lw=1.4, label="fixed batch")
        for x, y, name in fixed:
            axes.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9, color=_FIXED)
    if not axes.lines:
        axes.set_axis_off()
        return
    axes.set(yscale="log", xlabel="samples to the goal", ylabel="steps to the goal")
    axes.margins(x=0.15)
    axes.set_title(f"To a held-out loss of {data['goal']:g}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=9)


def _batches(axes: Axes, data: dict[str, Any]) -> None:
    first = data["first"].get("adaptive")
    axes.set_title("One adaptive run")
    if first is None:
        axes.set_axis_off()
        return
    batches = np.array(first["batches"])
    axes.step(np.cumsum(batches) - batches, batches, where="post", color=_ADAPTIVE, lw=1.8, label="batch")
    if first["noise"]:
        axes.plot(*np.array(first["noise"]).T, ".", color="#000000", ms=4, label="noise scale, identified")
    axes.set(yscale="log", xlabel="samples seen", ylabel="samples")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    cells = [["arm", "steps to the goal", "samples to the goal", "averaged model", "worst gap", "final loss, averaged"]]
    for row in data["rows"]:
        verdicts = row["verdicts"]
        compared = [verdicts["average"], f"{row['worst']['average']:+.3f}"] if verdicts else ["", ""]
        ends = [_mean(row["goal_steps"]), _mean(row["goal_samples"])]
        cells.append([row["arm"], *ends, *compared, f"{np.mean(row['final_average']):.4f}"])
    sections = [report.Section("Arms", [], cells, [("front and batches", figure(data))])]
    lead = (
        "Fixed batches, a batch that follows the noise scale with every setting moved, and with the learning rate only."
    )
    return page(data, lead, sections)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):,.0f}" if len(known) == len(values) and known else "not reached by every seed"
