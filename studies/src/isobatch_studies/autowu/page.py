"""The AutoWU study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.autowu.grid import ARMS
from isobatch_studies.pages import page

_SHADE = dict(zip(ARMS, ("#000000", "#0072B2", "#009E73", "#D55E00"), strict=True))
_MARK = dict(zip(ARMS, ("o", "s", "D", "^"), strict=True))
_NAMES = {"adamp": "AdamP", "lamb": "LAMB", "adamw": "AdamW"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw the gap to the chosen peak in every cell on the left, the short budget's arms on the right where it was run.

    Args:
        data: the study's result.

    Returns:
        A figure of one or two panels.
    """
    rows = [row for row in data["rows"] if "as published" not in row["means"]]
    short = [row for row in data["rows"] if "as published" in row["means"]]
    with matplotlib.rc_context(RC):
        panels = 2 if short else 1
        made = Figure(figsize=(5.3 * panels, 4.4), layout="constrained")
        left, *right = made.subplots(1, panels, squeeze=False)[0]
        _gaps(left, rows)
        for axes in right:
            _arms(axes, short)
    return made


def _gaps(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.axhline(0, color="#000000", lw=0.8)
    axes.axhline(-1, color="#999999", lw=1, ls="--")
    axes.text(0.995, -1, "margin", ha="right", va="bottom", fontsize=9, transform=axes.get_yaxis_transform())
    told: set[str] = set()
    for place, row in enumerate(rows):
        for arm, shift in (("AutoWU", -0.12), ("AutoWU, rollback", 0.12)):
            if arm in row["gaps"]:
                gap, label = row["gaps"][arm], None if arm in told else arm
                error = [[gap["mean"] - gap["low"]], [gap["high"] - gap["mean"]]]
                axes.errorbar(
                    place + shift, gap["mean"], error, fmt=_MARK[arm], color=_SHADE[arm], capsize=4, label=label
                )
                told.add(arm)
    if told:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    axes.set_xticks(range(len(rows)), [f"{_NAMES[r['optimizer']]}\n{r['batch']}" for r in rows])
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.4)
    axes.set_ylabel("points of test accuracy")
    axes.set_title("Untuned minus the peak that validation chose")


def _arms(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, row["seeds"])
        for place, arm in enumerate(row["values"]):
            mean, shade, mark = row["means"][arm], _SHADE[arm], _MARK[arm]
            axes.scatter(place + spread, row["values"][arm], s=16, color=shade, marker=mark, alpha=0.45, lw=0)
            error = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
            axes.errorbar(place + 0.3, mean["mean"], error, fmt=mark, color=shade, capsize=4, ms=7)
        axes.set_xticks(range(len(row["values"])), [arm.replace(", ", ",\n") for arm in row["values"]])
    axes.set_xlim(-0.5, 3.7)
    axes.set_ylabel("test accuracy, %")
    axes.set_title("20 epochs, AdamW, batch 64")


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    table = [["cell", "arm", "mean accuracy", "95% interval", "minus the chosen peak", "stopped"]]
    chosen = [["cell", "peak chosen in each fold", "mean validation accuracy by peak"]]
    for row in data["rows"]:
        for arm, mean in row["means"].items():
            gap = row["gaps"].get(arm)
            apart = "" if gap is None else f"{gap['mean']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"
            bounds = f"[{mean['low']:.2f}, {mean['high']:.2f}]"
            table.append([row["cell"], arm, f"{mean['mean']:.2f}", bounds, apart, str(row["stopped"][arm])])
        scores = ", ".join(f"{peak}: {score:.1f}" for peak, score in row["validation"].items())
        chosen.append([row["cell"], ", ".join(f"{peak:g}" for peak in row["peaks"].values()), scores])
    sections = [
        report.Section("Gaps", ["Means with 95% intervals; right: every seed."], [], [("gaps", figure(data))]),
        report.Section("Arms", [], table),
        report.Section("The fixed peak, chosen on a validation part of the training fold", [], chosen),
    ]
    return page(data, "The rate grows until the loss turns; nothing is tuned.", sections)
