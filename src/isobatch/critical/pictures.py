"""Pictures of the critical batch: the Pareto front with its fit, and steps against the batch."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from isobatch.critical.hyperbola import Hyperbola, Interval
from isobatch.critical.trial import assumed_sign
from isobatch.critical.words import plain, sized
from isobatch.report.pictures import RC, plain_ticks

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
        label += f": {named_batch(fit)}"
    for axes, x, y in ((left, steps, batch * steps), (right, batch, steps)):
        axes.plot(x, y, mark, color=shade, ms=6, label=label if axes is left else None, zorder=3)
    if fit is None:
        return
    wide = ((None, 9, 0.25),) if known(fit) else ()
    low, high = (_finite(fit["critical"][end], side) for end, side in (("low", batch.min()), ("high", batch.max())))
    for part, width, alpha in ((np.geomspace(batch.min(), batch.max(), 200), 1.6, 1.0), *wide):
        span = np.geomspace(max(low, batch.min()), min(high, batch.max()), 60) if part is None else part
        curve = fit["steps"]["value"] * (1 + fit["critical"]["value"] / span)
        left.plot(curve, span * curve, color=shade, lw=width, alpha=alpha, solid_capstyle="butt")
        right.plot(span, curve, color=shade, lw=width, alpha=alpha, solid_capstyle="butt")


def known(fit: dict[str, Any]) -> bool:
    """Return whether a fit's critical batch may be named, by the rule of the fit itself.

    Args:
        fit: a hyperbola as plain values, its open ends null.

    Returns:
        Whether it is identified.
    """
    low, high = (math.inf if value is None else value for value in (fit["critical"]["low"], fit["critical"]["high"]))
    interval = Interval(fit["critical"]["value"], 0.0 if math.isinf(low) else low, high)
    return Hyperbola(interval, interval, interval, fit["residual"], fit["batches"], fit["level"]).identified


def named_batch(fit: dict[str, Any]) -> str:
    """Return the critical batch of a fit as a legend names it.

    Args:
        fit: a hyperbola as plain values.

    Returns:
        Its value, or that it is not identified.
    """
    return f"critical batch {plain(fit['critical']['value'])}" if known(fit) else "critical batch not identified"


def fit_figure(data: dict[str, Any]) -> Figure:
    """Draw what each batch took, every seed and the mean, with the hyperbola, and how far each batch is off.

    Args:
        data: the fit as plain values.

    Returns:
        A figure of two panels.
    """
    points, found = data["points"], data["hyperbola"]
    unit, word = _thousands(min(p["mean"] for p in points))
    batch = np.array([p["batch"] for p in points])
    span = np.geomspace(batch.min(), batch.max(), 300)
    critical, least = found["critical"], found["samples"]["value"] / unit
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12.4, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        for p in points:
            left.plot(
                [p["batch"]] * len(p["values"]), np.array(p["values"]) / unit, ".", color="#999999", ms=5, zorder=2
            )
        left.plot([], [], ".", color="#999999", ms=6, label="each seed, as reported")
        left.plot(batch, [p["mean"] / unit for p in points], "o", color=SHADES[0], ms=6, zorder=3, label="mean")
        curve = least * (1 + span / critical["value"])
        left.plot(span, curve, color=SHADES[0], lw=1.8, label=named_batch(found))
        low, high = (_finite(critical[end], edge) for end, edge in (("low", span[0]), ("high", span[-1])))
        if known(found):
            low, high = max(low, span[0]), min(high, span[-1])
            left.axvspan(low, high, color=SHADES[2], alpha=0.15, lw=0, label=f"its {found['level'] * 100:g}% interval")
        _bent(left, data, span, unit)
        logarithmic(left)
        bottom, top = left.get_ylim()
        for o in data["outliers"]:
            value = o["value"] * (o["batch"] if data["unit"] == "steps" else 1) / unit
            at = float(np.clip(value, bottom * 1.03, top / 1.03))
            label = f"left out: {value:,.6g} at {sized(o['batch'])}" + (", off the edge" if at != value else "")
            left.plot(o["batch"], at, "x", color=SHADES[1], ms=9, mew=2, label=label, clip_on=False)
        left.set_xlabel("batch")
        left.set_ylabel(f"{word}{data['amount']} to the goal")
        left.set_title(f"{data['name']}: E = E_min (1 + B/B_crit)")
        _errors(right, points)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9.5)
    return figure


def _thousands(value: float) -> tuple[float, str]:
    """The largest named power of a thousand below a value."""
    return next(
        ((s, w) for s, w in ((1e9, "billion "), (1e6, "million "), (1e3, "thousand ")) if value >= s), (1.0, "")
    )


def _bent(axes: Axes, data: dict[str, Any], span: np.ndarray, unit: float) -> None:
    """The curve of the free exponent, where it fits better."""
    if data["bend"] is None or not data["bend"]["better"]:
        return
    power, at = data["bend"]["exponent"], data["bend"]["critical"]
    heights = [math.log(p["mean"] / unit / (1 + (p["batch"] / at) ** power)) for p in data["points"]]
    curve = math.exp(sum(heights) / len(heights)) * (1 + (span / at) ** power)
    axes.plot(span, curve, "--", color=SHADES[1], lw=1.4, label=f"with the exponent {power:.2g}")


def _errors(axes: Axes, points: list[dict[str, Any]]) -> None:
    place = np.arange(len(points))
    axes.axhline(0, color="#000000", lw=1)
    axes.bar(place - 0.2, [100 * math.expm1(p["residual"]) for p in points], 0.38, color=SHADES[0], label="off the fit")
    away = [np.nan if p["left_out"] is None else 100 * math.expm1(p["left_out"]) for p in points]
    axes.bar(place + 0.2, away, 0.38, color=SHADES[4], label="off the fit of the others")
    axes.set_xticks(place, [sized(p["batch"]) for p in points], rotation=45 if len(points) > 6 else 0)
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:+g}%")
    axes.set_xlabel("batch")
    axes.set_title("how far each batch is off")


def _finite(value: float | None, otherwise: float) -> float:
    return float(otherwise) if value is None or not math.isfinite(value) or value == 0 else float(value)


def logarithmic(axes: Axes) -> None:
    """Make both axes logarithmic, with plain numbers at 1, 2 and 5 of each decade.

    Args:
        axes: the panel.
    """
    if not any(np.size(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, "no run reached a goal", ha="center", va="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis)
    axes.grid(alpha=0.25, lw=0.5)


def noise_figure(data: dict[str, Any]) -> Figure:
    """Draw the noise scale over training with its interval, the batch, and the product with the temperature.

    Args:
        data: readings as plain values.

    Returns:
        A figure of one panel.
    """
    rows = data["readings"]
    seen = np.array([r["seen"] for r in rows], dtype=float)
    value = np.array([np.nan if r["value"] is None else r["value"] for r in rows])
    top = max([v for v in value if np.isfinite(v)] + [r["high"] for r in rows if np.isfinite(r["high"])] + [1.0])
    low = np.array([max(r["low"], 0.0) or np.nan for r in rows])
    high = np.array([r["high"] if math.isfinite(r["high"]) else 3 * top for r in rows])
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(seen, low, high, color=SHADES[0], alpha=0.2, lw=0, label="95% interval")
        axes.plot(seen, value, "-o", color=SHADES[0], lw=1.8, ms=5, label="noise scale")
        known = [(r["seen"], r["at_peak"]) for r in rows if r["at_peak"] and r["temperature"] > 0.05]
        if known:
            axes.plot(*zip(*known, strict=True), "--s", color=SHADES[1], lw=1.4, ms=4, label="noise scale x T/T_peak")
        axes.axhline(data["batch"], color="#000000", lw=1.4, ls=":", label=f"batch {data['batch']:,}")
        axes.set_yscale("log")
        axes.set_ylim(top=2 * top)
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.10g}")
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        axes.set_xlabel(f"{data['unit']} seen")
        axes.set_ylabel(f"noise scale ({data['unit']})")
        axes.set_title(f"{data['recipe'].get('task', 'the task')}: gradient noise scale, {data['geometry']}")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9.5)
    return figure


def branch_figure(data: dict[str, Any]) -> Figure:
    """Draw the branches' metric against the batch, every seed and the mean, and where it is no worse.

    Args:
        data: the result as plain values.

    Returns:
        A figure of one panel.
    """
    batch = np.array(data["factors"]) * data["recipe"]["batch"]["size"]
    losses = np.array([[np.nan if v is None or not math.isfinite(v) else v for v in row] for row in data["losses"]])
    sign = data.get("sign", assumed_sign(data["metric"]))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(batch, losses, ".", color="#999999", ms=6)
        axes.plot([], [], ".", color="#999999", ms=6, label="each seed")
        mean = losses.mean(1)
        axes.plot(batch, mean, "-o", color=SHADES[0], lw=1.8, ms=6, label="mean")
        limit = sign * np.minimum.accumulate(np.where(np.isnan(mean), np.inf, sign * mean)) + sign * data["tolerance"]
        axes.plot(batch, limit, "--", color=SHADES[1], lw=1.4, label=f"best so far + {data['tolerance']:g}")
        axes.axvspan(data["low"] / 1.06, data["high"] * 1.06, color=SHADES[2], alpha=0.15, lw=0)
        axes.axvline(data["batch"], color=SHADES[2], lw=1.8, label=f"largest no worse: {data['batch']:,}")
        shown = losses[np.isfinite(losses)]
        if sign > 0 and shown.size and shown.max() > 5 * shown.min() > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.10g}")
        axes.set_xscale("log")
        axes.set_xticks(batch, [f"{b:,}" for b in batch])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"batch ({data['unit']})")
        axes.set_ylabel(f"{data['metric']} after {data['span']:,} more {data['unit']}")
        axes.set_title(f"branched at {data['start']:,} {data['unit']}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9.5)
    return figure


def advice_figure(data: dict[str, Any]) -> Figure:
    """Draw time against compute: every option, the front, and the picks.

    Args:
        data: the advice as plain values.

    Returns:
        A figure of one panel.
    """
    options = data["options"]
    front = sorted((o for o in options if o["front"]), key=lambda o: o["seconds"])
    base = min(o["compute"] for o in options)
    unit = 1.0 if data["absolute"] else data["picks"]["cheapest"]["seconds"]

    def place(of: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        return [o["seconds"] / unit for o in of], [o["compute"] / base for o in of]

    words = {"cheapest": "cheapest", "within": f"{data['extra']:.0%} more compute at most", "fastest": "fastest"}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.6, 5.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(*place(options), ".", color="#BBBBBB", ms=5, label="every batch and number of devices")
        axes.plot(*place(front), "-", color=SHADES[0], lw=1.8, label="front")
        for index, (name, pick) in enumerate(data["picks"].items(), start=1):
            label, size = f"{words[name]}: {pick['batch']:,} on {pick['devices']:,}", 11 - 2 * index
            axes.plot(*place([pick]), MARKS[index], color=SHADES[index], ms=size, label=label, zorder=4)
        logarithmic(axes)
        axes.set_xlabel("seconds to the goal" if data["absolute"] else "time to the goal over the cheapest's")
        axes.set_ylabel("compute over the cheapest")
        axes.set_title("which batch pays")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9.5)
    return figure
