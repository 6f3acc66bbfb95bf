"""The adversarial study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.concurrent_adversarial.grid import CONTROLS, FEWER, ITS_EPS, PLAIN
from isobatch_studies.concurrent_adversarial.overlap import ARMS
from isobatch_studies.pages import page

_SHADES = {"clean": "#000000", "same rows": "#56B4E9", "sequential": "#D55E00", "concurrent": "#0072B2"}
_SAID = {
    "clean": "clean,\nB rows",
    "same rows": "2B rows,\nat hand",
    "sequential": "2B rows,\nmade before",
    "concurrent": "2B rows, made\nbeside",
}


def figure(data: dict[str, Any]) -> Figure:
    """Draw test accuracy of every arm, and the time of an update in four forms.

    Args:
        data: the study's result.

    Returns:
        A figure of two panels, of one where nothing was timed.
    """
    with matplotlib.rc_context(RC):
        timed = data["overlap"] is not None
        made = Figure(figsize=(13.8 if timed else 8.2, 4.8), layout="constrained")
        left, *right = made.subplots(1, 1 + timed, width_ratios=(1.2, 1)[: 1 + timed], squeeze=False)[0]
        if data["accuracy"] is None:
            left.set_axis_off()
            left.text(0.5, 0.5, "no complete runs yet", ha="center")
        else:
            _arms(left, data["accuracy"])
        for axes in right:
            _times(axes, data["overlap"])
    return made


def _arms(axes: Axes, row: dict[str, Any]) -> None:
    names = list(row["means"])
    for place, name in enumerate(names):
        mean = row["means"][name]
        beside = name.endswith((FEWER, ITS_EPS))
        shade = "#000000" if name == PLAIN else "#999999" if beside else "#D55E00" if name in CONTROLS else "#0072B2"
        error = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
        mark = "D" if name in CONTROLS else "o"
        axes.errorbar(mean["mean"], len(names) - place, xerr=error, fmt=mark, color=shade, capsize=4)
    axes.axvline(row["means"][PLAIN]["mean"], color="#000000", ls=":", lw=1)
    axes.set_yticks(range(len(names), 0, -1), [f"{n}  ({row['steps'][n]:,} updates)" for n in names], fontsize=9.5)
    axes.set_xlabel(f"test accuracy, %, mean of {row['seeds']} seeds and 95% interval")
    more = ",\nbeside the claims (grey)" if any(name.endswith(FEWER) for name in names) else ""
    axes.set_title(f"Adversaries (blue), controls (orange){more}")


def _times(axes: Axes, times: dict[str, Any]) -> None:
    for place, arm in enumerate(ARMS):
        ratios = np.array(times["rounds_by_arm"][arm]) / np.array(times["rounds_by_arm"]["same rows"])
        spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(ratios))
        axes.scatter(place + spread, ratios, s=14, color=_SHADES[arm], alpha=0.4, lw=0)
        axes.hlines(np.median(ratios), place - 0.3, place + 0.3, color=_SHADES[arm], lw=2.5)
    axes.axhline(1, color="#999999", lw=1, ls=":")
    axes.set_xticks(range(len(ARMS)), [_SAID[arm] for arm in ARMS], fontsize=9)
    axes.set_ylabel("time over the update on 2B rows, by round")
    axes.set_title(f"Where directions come from (load {times['load']:.0f}, {times['cores']} cores)")


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    said = ["Bars are 95% intervals over seeds; points are rounds of timing, lines their medians."]
    sections = [report.Section("Every arm", said, [], [("arms", figure(data))])]
    row, times = data["accuracy"], data["overlap"]
    if row is not None:
        table = [["arm", "updates", "test accuracy", "minus plain", "minus tau = 0"]]
        for name, mean in row["means"].items():
            cells = [name, f"{row['steps'][name]:,}", f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"]
            for gap in (row["over_plain"].get(name), row["over_fresh"].get(name)):
                cells.append("" if gap is None else f"{gap['mean']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]")
            table.append(cells)
        said = ["Not claimed: that the direction must be adversarial (see random signs)."]
        sections.append(report.Section("Accuracy", said, table))
        if data.get("beside", [])[1:]:
            sections.append(report.Section("Beside the claims", [data["why_beside"]], data["beside"]))
    if times is not None:
        table = [["", "milliseconds an update"], *([arm, f"{times['milliseconds'][arm]:.1f}"] for arm in ARMS)]
        sent, received = times["bytes"]["sent"], times["bytes"]["received"]
        said = [
            f"Each update sends {sent:,} bytes of weights and gets {received:,} bytes of directions back.",
            "Not claimed: the speed of the paper, which was measured on many machines.",
        ]
        sections.append(report.Section("Time", said, table))
    return page(data, "One step along the input gradient, by weights tau steps old: what it gives and costs.", sections)
