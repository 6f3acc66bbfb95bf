"""Pictures of the critical batch: the Pareto front with its fit, and steps against the batch."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from isobatch.report.pictures import RC

SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")


def front_figure(data: dict[str, Any]) -> Figure:
    """Draw samples against steps, and steps against the batch, each goal with its hyperbola.

    The stretch of a curve that is drawn wide is the interval of its critical batch.

    Args:
        data: what a sweep stores in result.json.

    Returns:
        A figure of two panels.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12.4, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, goal in enumerate(data["goals"]):
            _goal(left, right, goal, data, SHADES[index % len(SHADES)], MARKS[index % len(MARKS)])
        unit = data["unit"]
        for axes, x, y in ((left, "optimizer steps", unit), (right, f"batch ({unit})", "optimizer steps")):
            logarithmic(axes)
            axes.set_xlabel(f"{x} to the goal" if axes is left else x)
            axes.set_ylabel(f"{y} to the goal")
        left.set_title("the Pareto front")
        right.set_title("steps against the batch")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
        task = data["recipe"].get("task", "the task")
        title = f"{task}: (S/S_min - 1)(E/E_min - 1) = 1, fastest learning rate at each batch, seeds: {data['seeds']}"
        figure.suptitle(title, fontsize=12.5, x=0.01, ha="left", fontweight="bold")
    return figure


def _goal(left: Axes, right: Axes, goal: dict[str, Any], data: dict[str, Any], shade: str, mark: str) -> None:
    points = goal["points"]
    batch = np.array([p["batch"] for p in points], dtype=float)
    steps = np.array([p["steps"] for p in points])
    label = f"{data['metric']} {goal['goal']:g}"
    fit = goal["fit"]
    if fit is not None:
        label += f": critical batch {fit['critical']['value']:,.0f}"
    for axes, x, y in ((left, steps, batch * steps), (right, batch, steps)):
        axes.plot(x, y, mark, color=shade, ms=6, label=label if axes is left else None, zorder=3)
    if fit is None:
        return
    low, high = (_finite(fit["critical"][end], side) for end, side in (("low", batch.min()), ("high", batch.max())))
    for part, width, alpha in ((np.geomspace(batch.min(), batch.max(), 200), 1.6, 1.0), (None, 9, 0.25)):
        span = np.geomspace(max(low, batch.min()), min(high, batch.max()), 60) if part is None else part
        curve = fit["steps"]["value"] * (1 + fit["critical"]["value"] / span)
        left.plot(curve, span * curve, color=shade, lw=width, alpha=alpha, solid_capstyle="butt")
        right.plot(span, curve, color=shade, lw=width, alpha=alpha, solid_capstyle="butt")


def _finite(value: float | None, otherwise: float) -> float:
    return float(otherwise) if value is None or not math.isfinite(value) or value == 0 else float(value)


def logarithmic(axes: Axes) -> None:
    """Make both axes logarithmic, with plain numbers at 1, 2 and 5 of each decade.

    Args:
        axes: the panel.
    """
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, lw=0.5)
