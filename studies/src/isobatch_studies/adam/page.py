"""The Adam study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.pages import page

_SHADE = {"SAME": "#9ecbe8", "UNDECIDED": "#e4e4e4", "DIFFERENT": "#f3a582"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw verdicts by cell and rule, and measured against predicted error of the square root.

    Args:
        data: the study's result.

    Returns:
        A figure of two panels.
    """
    rows = data["rows"]
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = sorted(
        {(row["task"], row["batch"], row["kappa"]) for row in rows}, key=lambda c: (tasks.index(c[0]), *c[1:])
    )
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(13.5, 2.6 + 0.36 * max(len(cells), 5)), layout="constrained")
        left, right = made.subplots(1, 2, width_ratios=(1.55, 1))
        for row in rows:
            x, y = rules.index(row["rule"]), cells.index((row["task"], row["batch"], row["kappa"]))
            verdict, worst = row["verdicts"]["average"], row["worst"]["average"]
            left.add_patch(Rectangle((x, y), 1, 1, fc=_SHADE[verdict], ec="white", lw=1.5))
            left.text(x + 0.5, y + 0.5, f"{worst:+.3f}", ha="center", va="center", fontsize=9.5)
        left.set(xlim=(0, len(rules)), ylim=(len(cells), 0))
        left.set_xticks(np.arange(len(rules)) + 0.5, [rule.replace(", ", ",\n") for rule in rules])
        left.set_yticks(np.arange(len(cells)) + 0.5, [f"{t}, {b} x {k:g}" for t, b, k in cells])
        left.tick_params(length=0)
        left.spines[:].set_visible(False)
        left.set_title("averaged model: verdict and worst gap in log loss")
        handles = [Patch(fc=shade, label=name) for name, shade in _SHADE.items()]
        left.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3)
        _prediction(right, data)
    return made


def _prediction(axes: Any, data: dict[str, Any]) -> None:
    roots = [row for row in data["rows"] if row["rule"] == "square root"]
    for task, marker, shade in (("digits", "o", "#0072B2"), ("text", "s", "#D55E00")):
        mine = [row for row in roots if row["task"] == task]
        x = [max(abs(row["predicted"]), 1.2e-3) for row in mine]
        y = [max(abs(row["worst"]["average"]), 3.5e-3) for row in mine]
        if mine:
            axes.scatter(x, y, marker=marker, color=shade, s=42, label=task)
    axes.axhline(0.03, color="#555555", ls="--", lw=1)
    axes.text(0.99, 0.032, "margin", ha="right", va="bottom", color="#555555", transform=axes.get_yaxis_transform())
    axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(3e-3, 4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("predicted |error in drift| of the square root")
    axes.set_ylabel("measured |worst gap|, averaged model")
    axes.set_title("what the noise share predicts")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    rows = [["task", "reference batch", "kappa", "rule", "noise share", "averaged", "gap", "raw", "gap"]]
    for r in data["rows"]:
        cell = [r["task"], str(r["batch"]), f"{r['kappa']:g}", r["rule"], f"{r['share']:.3f}"]
        for model in ("average", "raw"):
            cell += [r["verdicts"][model], f"{r['worst'][model]:+.3f}"]
        rows.append(cell)
    names = ("predicted", "square root", "linear", "noise-aware", "invariant")
    quadratic = [["noise share", "kappa", *names]]
    quadratic += [[f"{q['share']:g}", f"{q['kappa']:g}", *(f"{q[n]:+.3f}" for n in names)] for q in data["quadratic"]]
    sections = [
        report.Section("Verdicts", [], [], [("verdicts by cell and rule", figure(data))]),
        report.Section("Every cell", [], rows),
        report.Section("Quadratic: error in drift per sample", ["Predicted: 1/sqrt(kappa(1-f)+f) - 1."], quadratic),
    ]
    lead = "Reference batch x kappa, rules as columns: which rule keeps an Adam run the same, and when."
    return page(data, lead, sections)
