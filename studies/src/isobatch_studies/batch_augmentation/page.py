"""The batch augmentation study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.batch_augmentation.grid import CONTROLS
from isobatch_studies.pages import page

_SHADES = ("#000000", "#56B4E9", "#0072B2", "#009E73", "#CC79A7")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def figure(data: dict[str, Any]) -> Figure:
    """Draw test accuracy of every arm, validation accuracy over the updates, and the variance against the law.

    Args:
        data: the study's result.

    Returns:
        A figure of three panels.
    """
    with matplotlib.rc_context(RC):
        wide = not data.get("grid")
        made = Figure(figsize=(15.6 if wide else 11.2, 4.8), layout="constrained")
        panels = made.subplots(1, 3 if wide else 2, width_ratios=(1.25, 1, 1)[: 3 if wide else 2])
        if data["accuracy"] is None or (wide and data["variance"] is None):
            made.text(0.5, 0.5, "no complete runs yet", ha="center")
            return made
        _arms(panels[0], data["accuracy"])
        _curves(panels[1], data["accuracy"])
        if wide:
            _variance(panels[2], data["variance"])
    return made


def _arms(axes: Axes, row: dict[str, Any]) -> None:
    names = list(row["means"])
    for place, name in enumerate(names):
        mean, control = row["means"][name], name in CONTROLS
        shade = "#D55E00" if control else "#0072B2"
        error = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
        axes.errorbar(mean["mean"], len(names) - place, xerr=error, fmt="D" if control else "o", color=shade, capsize=4)
    axes.set_yticks(range(len(names), 0, -1), [f"{n}  ({row['steps'][n]:,} updates)" for n in names], fontsize=9.5)
    axes.set_xlabel(f"test accuracy, %, mean of {row['seeds']} seeds and 95% interval")
    axes.set_title("Views (blue) and controls (orange)")


def _curves(axes: Axes, row: dict[str, Any]) -> None:
    for place, (name, values) in enumerate(row["curves"].items()):
        axes.plot(
            10 * np.arange(1, len(values) + 1), values, color=_SHADES[place], ls=_STYLES[place], lw=1.9, label=name
        )
    axes.set_xlabel("updates")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title("Same updates, same learning rate")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=9, handlelength=1.6, columnspacing=1)


def _variance(axes: Axes, law: dict[str, Any]) -> None:
    views = [int(m) for m in law["relative"]]
    found = [law["relative"][str(m)]["measured"] for m in views]
    means = np.array([f["mean"] for f in found])
    error = [means - [f["low"] for f in found], [f["high"] for f in found] - means]
    axes.plot(views, [law["relative"][str(m)]["law"] for m in views], color="#0072B2", lw=1.9, label="the law")
    axes.errorbar(views, means, yerr=error, fmt="o", color="#000000", capsize=4, label="measured")
    axes.plot(views, [1 / m for m in views], color="#D55E00", ls=":", lw=1.6, label="M times the samples")
    axes.set_xscale("log", base=2)
    axes.set_xticks(views, [str(m) for m in views])
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("views M")
    axes.set_ylabel("variance of the gradient, M = 1 is 1")
    axes.set_title("What views take away")
    axes.legend(loc="upper right")


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    sections = [report.Section("Every arm", ["Bars are 95% intervals over seeds."], [], [("arms", figure(data))])]
    row, law = data["accuracy"], data["variance"]
    if row is not None:
        table = [["arm", "updates", "test accuracy", "minus M = 1", "updates to the target"]]
        for name, mean in row["means"].items():
            gain, updates = row["gains"].get(name), row["updates"].get(name)
            table.append([
                name, f"{row['steps'][name]:,}", f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]",
                "" if gain is None else f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]",
                "" if updates is None else f"{updates['mean']:.0f}",
            ])  # fmt: skip
        said = ["Not claimed: that views beat spending the same images on more updates (see the controls)."]
        sections.append(report.Section("Accuracy", said, table))
    if law is not None:
        share = law["share"]
        said = [f"Views can take away {share['mean']:.2f} [{share['low']:.2f}, {share['high']:.2f}] of the variance."]
        table = [["M", "measured / M = 1", "law / M = 1", "log of measured over law"]]
        for m, part in law["relative"].items():
            gap = law["log_ratio"][m]
            table.append([m, f"{part['measured']['mean']:.3f}", f"{part['law']:.3f}",
                          f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"])  # fmt: skip
        sections.append(report.Section("Variance", said, table))
    return page(
        data, "The clock counts samples, the learning rate stays; what do more views in each update give?", sections
    )
