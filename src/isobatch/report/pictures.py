"""Pictures that people paste: overlays at matched samples, and the gap inside its margin."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from isobatch.control import BatchSchedule
from isobatch.plan import Recipe

# Okabe and Ito's palette keeps its contrasts for colour-blind readers; line styles repeat the distinction.
COLOURS = {
    "reference": "#000000",
    "plan": "#0072B2",
    "lr-only": "#D55E00",
    "naive": "#D55E00",
    "ema-only": "#009E73",
    "unscaled": "#CC79A7",
    "square root": "#E69F00",
}
STYLES = {
    "reference": "-",
    "plan": "--",
    "lr-only": "-.",
    "naive": "-.",
    "ema-only": ":",
    "unscaled": (0, (5, 1, 1, 1, 1, 1)),
    "square root": (0, (3, 1.5)),
}
MENDED = "mended:"
_SPARE = ("#999999", "#F0E442", "#8C564B")
RC: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of tasks and metrics are text, whatever is in them
}


def colour(arm: str, index: int = 0) -> str:
    """Return an arm's colour: the same one in every picture.

    Args:
        arm: name of the arm.
        index: position, for arms without a colour of their own.

    Returns:
        A hex colour.
    """
    if arm.startswith(MENDED):
        return "#56B4E9"
    return COLOURS.get(arm, _SPARE[index % len(_SPARE)])


def _style(arm: str) -> Any:
    return STYLES.get(arm, (0, (1, 1)) if arm.startswith(MENDED) else "--")


def plain_ticks(axis: Axis, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Write plain numbers on a logarithmic axis.

    Args:
        axis: already logarithmic.
        subs: where in each decade.
    """
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def overlay_figure(data: dict[str, Any]) -> Figure:
    """Draw the headline: averaged loss against samples and against steps, and the gap within its margin.

    Args:
        data: what `verify run` stores in result.json.

    Returns:
        A figure of three panels.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(13.2, 4.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        model = data["headline"]
        _overlay(left, data, model, steps=False)
        _overlay(middle, data, model, steps=True)
        _gaps(right, data, model)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10.5, handlelength=3)
        figure.suptitle(_title(data), fontsize=13, x=0.01, ha="left", fontweight="bold")
    return figure


def model_figure(data: dict[str, Any], model: str) -> Figure:
    """Draw one model's overlay and gaps, side by side.

    Args:
        data: what `verify run` stores in result.json.
        model: "average" or "raw".

    Returns:
        A figure of two panels.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(11, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        _overlay(left, data, model, steps=False)
        _gaps(right, data, model)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10.5, handlelength=3)
    return figure


def panel_figures(data: dict[str, Any], model: str, *, steps: bool = False) -> list[tuple[str, Figure]]:
    """Draw one model's panels as figures of their own, so that a page may set them side by side or below each other.

    Args:
        data: what `verify run` stores in result.json.
        model: "average" or "raw".
        steps: whether the overlay against steps is drawn as well.

    Returns:
        Description and figure of each panel.
    """
    name = "averaged" if model == "average" else "raw"
    panels = [(f"{data['metric']} of the {name} model against {data['unit']}, every arm", False)]
    panels += [(f"{data['metric']} of the {name} model against optimizer steps, every arm", True)] if steps else []
    found = []
    with matplotlib.rc_context(RC):
        for alt, against in [*panels, (f"gap of each arm to the reference, {name} model, and the margin", None)]:
            figure = Figure(figsize=(5.2, 4.6), layout="constrained")
            axes = figure.subplots()
            if against is None:
                _gaps(axes, data, model)
            else:
                _overlay(axes, data, model, steps=against)
                figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3)
            found.append((alt, figure))
    return found


def png(figure: Figure, dpi: int = 130) -> bytes:
    """Return a figure as PNG.

    Args:
        figure: the figure.
        dpi: dots per inch.

    Returns:
        Bytes.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _title(data: dict[str, Any]) -> str:
    old, new = data["recipe"]["batch"]["size"], data["batch_size"]
    task, stages = data["recipe"].get("task", "the task"), data["recipe"]["batch"].get("schedule")
    change = f"batch {old} to {new} (kappa = {data['kappa']:g})"
    if stages is not None:
        change = f"batch {old} against {', then '.join(str(round(size * data['kappa'])) for _, size in stages)}"
    said = data["arms"]["plan"][data["headline"]]["verdict"]
    told = ", but the test could not have told" if said == "SAME" and data["verdict"] != said else ""
    return f"{task}: {change}, {len(data['seeds'])} seeds: plan {said}{told}"


def _steps(data: dict[str, Any], arm: str, stops: np.ndarray) -> np.ndarray:
    """Return the optimizer steps of an arm up to each stop."""
    if arm == "reference" or "schedule" not in data["recipe"]["batch"]:
        return stops / (data["recipe"]["batch"]["size"] if arm == "reference" else data["batch_size"])
    schedule = BatchSchedule.from_recipe(Recipe.parse(data["plan"]["recipe"]))
    return np.array([schedule.steps(length=int(stop)) if stop else 0 for stop in stops], dtype=float)


def _curves(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Curves of every arm, and of the change that made the plan the same run."""
    found = data.get("mended") or {"curves": {}}
    return data["curves"] | {f"{MENDED} {name}": runs for name, runs in found["curves"].items()}


def _tests(data: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    tests = {arm: models[model] for arm, models in data["arms"].items()}
    found = data.get("mended")
    if found and found["best"] and model == data["headline"]:
        tests[f"{MENDED} {found['best']}"] = found["tests"][found["best"]]
    return tests


def _values(data: dict[str, Any], arm: str, model: str) -> np.ndarray:
    rows = [curve["values"][model][data["metric"]] for curve in _curves(data)[arm] if curve["values"]]
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)


def _overlay(axes: Axes, data: dict[str, Any], model: str, *, steps: bool) -> None:
    stops = np.array(data["stops"], dtype=float)
    for index, arm in enumerate(_curves(data)):
        values = _values(data, arm, model)
        if not values.size:
            continue
        x = _steps(data, arm, stops) if steps else stops
        keep = x > 0
        shade, style = colour(arm, index), _style(arm)
        values = values[:, keep]
        values = values[:, np.isfinite(values).any(0)]
        x = x[keep][: values.shape[1]]
        middle = np.nanmean(values, axis=0)
        width = 3.2 if arm == "reference" else 2.0
        axes.plot(x, middle, color=shade, ls=style, lw=width, label=arm, alpha=0.45 if arm == "reference" else 1)
        axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=shade, alpha=0.10, lw=0)
    if data["test"]["kind"] == "ratio":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        axes.set_yticks(_log_ticks(low, high))
    axes.margins(x=0)
    if steps:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        _thousands(axes)
    name = "averaged" if model == "average" else "raw"
    axes.set_title(f"against {'steps' if steps else data['unit']}")
    axes.set_xlabel("optimizer steps (log)" if steps else f"{data['unit']} seen")
    axes.set_ylabel(f"held-out {data['metric']}, {name} model")


def _log_ticks(low: float, high: float) -> list[float]:
    decades = [10.0**k for k in range(-4, 4)]
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [d * s for d in decades for s in steps if low <= d * s <= high]
        if len(ticks) >= 4:
            return ticks
    return [low, high]


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")


def _gaps(axes: Axes, data: dict[str, Any], model: str) -> None:
    marks = np.array(data["marks"], dtype=float)
    margin = data["arms"]["plan"][model]["margin"]
    axes.axhspan(-margin, margin, color="#56B4E9", alpha=0.22, lw=0)
    axes.axhline(0, color="#000000", lw=0.8, alpha=0.5)
    limit = 3 * margin
    off_scale = []
    for index, (arm, test) in enumerate(_tests(data, model).items()):
        shade = colour(arm, index)
        mean, low, high = (np.array(test[key], dtype=float) for key in ("mean", "low", "high"))
        failed = len(test["failures"])
        if np.isfinite(mean).all() and np.abs(mean).max() > limit:
            off_scale.append(f"{arm} {mean[np.abs(mean).argmax()]:+.2f}")
        if failed:
            off_scale.append(f"{arm} failed in {failed} of {test['seeds']} seeds")
        axes.plot(
            marks,
            mean,
            color=shade,
            ls=_style(arm),
            lw=2,
            marker="o",
            ms=4,
        )
        axes.fill_between(marks, low, high, color=shade, alpha=0.25, lw=0)
    axes.set_ylim(-limit, limit)
    axes.margins(x=0.02)  # for the marks at both ends
    _thousands(axes)
    axes.set_title("gap to the reference")
    axes.set_xlabel(f"{data['unit']} seen")
    axes.set_ylabel(f"gap in {data['test']['gap']}, interval of the test")
    axes.text(0.98, 0.03, "shaded: margin", transform=axes.transAxes, ha="right", color="#24607f", fontsize=9.5)
    if off_scale:
        text = "beyond the scale:\n" + "\n".join(off_scale)
        axes.text(0.03, 0.03, text, transform=axes.transAxes, fontsize=9.5, va="bottom")
