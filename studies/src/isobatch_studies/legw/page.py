"""The LEGW study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.legw.grid import ARMS
from isobatch_studies.pages import page

_SHADE = dict(zip(ARMS, ("#000000", "#0072B2", "#D55E00", "#009E73"), strict=True))
_MARK = dict(zip(ARMS, ("o", "s", "^", "D"), strict=True))
_TITLES = {"lstm": "LSTM over rows of digits", "cnn-lars": "CNN with LARS on digits", "lstm-lm": "LSTM language model"}
_UNITS = {"accuracy": "test accuracy, %", "loss": "held-out loss, nats per byte"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw, for each task, one column an arm: every seed, the mean and its 95% interval.

    Args:
        data: the study's result.

    Returns:
        A figure of one panel a task.
    """
    rows = data["rows"]
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(max(5.4, 4.6 * len(rows)), 4.4), layout="constrained")
        if not rows:
            made.text(0.5, 0.5, "no complete runs yet", ha="center")
            return made
        for axes, row in zip(np.atleast_1d(made.subplots(1, len(rows))), rows, strict=True):
            spread = np.random.default_rng(0).uniform(-0.16, 0.16, row["seeds"])
            for place, name in enumerate(ARMS):
                values, mean = np.array(row["values"][name]), row["means"][name]
                axes.scatter(place + spread, values, s=16, color=_SHADE[name], marker=_MARK[name], alpha=0.45, lw=0)
                error = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
                axes.errorbar(place + 0.32, mean["mean"], error, fmt=_MARK[name], color=_SHADE[name], ms=7, capsize=4)
            labels = [name.replace(", ", ",\n") for name in ARMS]
            axes.set_xticks(range(len(ARMS)), labels, fontsize=9.5)
            axes.set_xlim(-0.5, len(ARMS) - 0.3)
            axes.set_ylabel(_UNITS[row["metric"]])
            axes.set_title(f"{_TITLES.get(row['task'], row['task'])}: base batch and {row['kappa']}x")
    return made


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    table = [["task", "arm", "steps", "mean", "95% interval", "minus base", "stopped"]]
    for row in data["rows"]:
        for name in ARMS:
            mean, gap = row["means"][name], row["gaps"].get(name)
            apart = "" if gap is None else f"{gap['mean']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"
            cells = [row["task"], name, str(row["steps"][name]), f"{mean['mean']:.2f}"]
            table.append([*cells, f"[{mean['low']:.2f}, {mean['high']:.2f}]", apart, str(row["stopped"][name])])
    chosen = [["task", "rate chosen in each fold", "times that rate fails", "mean validation score by rate"]]
    for row in data["rows"]:
        far = ", ".join("beyond the grid" if d is None else f"{d:g}" for d in row["distance"].values())
        scores = ", ".join(f"{rate}: {score:.2f}" for rate, score in row["validation"].items())
        chosen.append([row["task"], ", ".join(f"{rate:g}" for rate in row["rates"].values()), far, scores])
    sections = [
        report.Section("Every run", ["Each point is a seed; the bar is the mean with its interval."], [],
                       [("arms", figure(data))]),
        report.Section("Arms", [], table),
        report.Section("The base rate, chosen on a validation part of the training fold", [], chosen),
    ]  # fmt: skip
    lead = "Square root and a warm-up of as many steps, against linear scaling and against the square root alone."
    return page(data, lead, sections)
