"""The study's pictures and page."""

from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from isobatch import report
from isobatch.report.pictures import RC, plain_ticks
from isobatch_studies.pages import page

_SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"
_LETTERS = 9.5  # of a figure's title, an inch


def figures(data: dict[str, Any]) -> dict[str, Figure]:
    """Draw the table, the noise scale along each run, and the fronts.

    Args:
        data: the study's result.

    Returns:
        Name -> figure.
    """
    with matplotlib.rc_context(RC):
        return {"scales": _scales(data), "training": _training(data), "fronts": _fronts(data)}


def _scales(data: dict[str, Any]) -> Figure:
    """B_simple against B_crit, with the band of a factor of ten."""
    made = Figure(figsize=(6.6, 5.2), layout="constrained")
    axes = made.subplots()
    ends = np.array([0.3, 3e4])
    axes.fill_between(ends, ends / 10, ends * 10, color="#999999", alpha=0.18, lw=0, label="within a factor of ten")
    axes.plot(ends, ends, color="#777777", lw=1)
    for index, row in enumerate(data["rows"]):
        shade, mark = _SHADES[index % 6], _MARKS[index % 6]
        pairs = {when: (row[f"critical_{when}"], row[f"simple_{when}"]) for when in ("start", "average")}
        known = {when: (x, y) for when, (x, y) in pairs.items() if x is not None and y is not None}
        named = row["domain"] if "average" in known else f"{row['domain']}, start only"
        for when, (x, y) in known.items():
            axes.plot([x["low"] or 0.3, x["high"] or 3e4], [y["value"]] * 2, color=shade, lw=1, alpha=0.6)
            axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=shade, lw=1, alpha=0.6)
            filled = shade if when == "average" else "white"
            label = named if when == list(known)[-1] else None
            axes.plot(x["value"], y["value"], mark, color=shade, mfc=filled, ms=8, label=label, ls="")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis, (1.0,))
    axes.set_xlabel("critical batch, measured by the sweep")
    axes.set_ylabel("simple noise scale")
    axes.set_title("Noise scale and critical batch (open: at the start)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5)
    return made


def _training(data: dict[str, Any]) -> Figure:
    """Noise scale over training: each seed's line, the interval of its measurements, the critical batch as a band."""
    rows = data["rows"]
    made = Figure(figsize=(4.3 * min(3, len(rows)), 3.4 * -(-len(rows) // 3)), layout="constrained")
    for index, (axes, row) in enumerate(zip(_panels(made, len(rows)), rows, strict=True)):
        shade = _SHADES[index % 6]
        for reading in row["readings"]:
            known = [k for k, good in enumerate(reading["identified"]) if good]
            x = np.array(reading["steps"])[known] * reading["batch"]
            y = np.array([reading["scales"][k] for k in known], dtype=float)
            low, high = (np.array([reading[end][k] for k in known], dtype=float) for end in ("lows", "highs"))
            axes.fill_between(x, low, high, color=shade, alpha=0.12, lw=0)
            axes.plot(x, y, color=shade, lw=1.4, marker=".", ms=5)
        crit = row["critical_average"]
        if crit is not None:
            axes.axhline(crit["value"], color="#000000", lw=1.2, ls="--")
            axes.axhspan(
                crit["low"] or crit["value"] / 4, crit["high"] or 4 * crit["value"], color="#000000", alpha=0.08
            )
        _finish(axes, row["domain"], f"samples ({row['unit']})", "noise scale", "linear")
    _head(made, "Noise scale over training; dashed: the critical batch with its interval")
    return made


def _fronts(data: dict[str, Any]) -> Figure:
    """Steps against samples to each goal, with the fitted hyperbola."""
    rows = data["rows"]
    made = Figure(figsize=(4.3 * min(3, len(rows)), 3.4 * -(-len(rows) // 3)), layout="constrained")
    for axes, row in zip(_panels(made, len(rows)), rows, strict=True):
        for shade, style, goal in zip(("#56B4E9", "#0072B2"), ("--", "-"), row["goals"], strict=True):
            points = goal["points"]
            samples, steps = [p["batch"] * p["steps"] for p in points], [p["steps"] for p in points]
            axes.plot(samples, steps, "o", color=shade, ms=5, label=f"{goal['goal']:g}")
            if goal["fit"] is not None and points:
                batches = np.geomspace(min(p["batch"] for p in points) / 2, 2 * max(p["batch"] for p in points), 60)
                least, few = goal["fit"]["steps"]["value"], goal["fit"]["samples"]["value"]
                critical = few / least
                axes.plot(few * (1 + batches / critical), least * (1 + critical / batches), style, color=shade, lw=1.4)
        _finish(axes, row["domain"], f"samples ({row['unit']})", "steps")
        if row["goals"][0]["points"]:
            axes.legend(title="goal", fontsize=9)
    _head(made, "The fastest run of each batch, and the hyperbola")
    return made


def _panels(made: Figure, count: int) -> list[Axes]:
    grid = made.subplots(-(-count // 3), min(3, count), squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def _head(made: Figure, text: str) -> None:
    made.suptitle(fill(text, int(_LETTERS * made.get_figwidth())), x=0.01, ha="left")


def _finish(axes: Axes, title: str, x: str, y: str, scale: str = "log") -> None:
    axes.set_title(title)
    if not any(np.size(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, "not complete", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    axes.set(xscale=scale, yscale="log", xlabel=x, ylabel=y)
    if scale == "linear":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axis in (axes.yaxis, *([axes.xaxis] if scale == "log" else [])):
        plain_ticks(axis, (1.0, 3.0))


def table(data: dict[str, Any]) -> list[list[str]]:
    """Return the table in the shape of arXiv 1812.06162, table 1, with intervals.

    Args:
        data: the study's result.

    Returns:
        Rows of cells, the first one the header.
    """
    head = [
        "domain",
        "optimizer",
        "unit",
        "B_crit start",
        "B_crit average",
        "B_simple start",
        "B_simple average",
        "ratio",
    ]
    rows = [head]
    for row in data["rows"]:
        cells = [row["domain"], row["optimizer"], row["unit"]]
        keys = ("critical_start", "critical_average", "simple_start", "simple_average")
        rows.append([*cells, *(_cell(row[key]) for key in keys), "" if row["ratio"] is None else f"{row['ratio']:.2g}"])
    return rows


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no value"
    end = "open" if found["high"] is None else f"{found['high']:.3g}"
    text = f"{found['value']:.3g} [{found['low']:.3g}, {end}]"
    return text if found.get("identified", True) else f"{text}, not identified"


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    drawn = figures(data)
    note = (
        "Critical batch: sweep of batches and learning rates to two held-out goals, fit of the hyperbola. Simple noise "
    )
    note += "scale: at 12 stops along the run nearest to it. Intervals 95%."
    sections = [
        report.Section("Table", [note], table(data), [("scales", drawn["scales"])]),
        report.Section("Over training", [], [], [("noise scale over training", drawn["training"])]),
        report.Section("Fronts", [], [], [("fronts", drawn["fronts"])]),
    ]
    return page(data, "How far the gradient noise scale predicts the largest batch that is worth it.", sections)
