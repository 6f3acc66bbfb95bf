"""The progressive study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.pages import page

_SHADE = {"up": "#0072B2", "down": "#009E73", "naive": "#D55E00", "large": "#56B4E9"}
_SHADE |= {"far large": "#CC79A7", "far late": "#E69F00"}
_STYLE = {"naive": "-.", "large": ":", "far large": ":"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw, for each task, the averaged model's gap to the unswitched run over the samples.

    Args:
        data: the study's result.

    Returns:
        A figure of one panel a task.
    """
    tasks = list(dict.fromkeys(row["task"] for row in data["rows"]))
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(7.2 * max(1, len(tasks)), 4.8), layout="constrained")
        if not tasks:
            made.text(0.5, 0.5, "no complete runs yet", ha="center")
            return made
        for axes, task in zip(np.atleast_1d(made.subplots(1, len(tasks))), tasks, strict=True):
            base = np.array(data["curves"][f"{task} reference"])
            x = np.array(data["stops"][task])
            axes.axhspan(-0.03, 0.03, color="#56B4E9", alpha=0.2, lw=0)
            for row in (row for row in data["rows"] if row["task"] == task):
                gap = np.log(np.array(data["curves"][f"{task} {row['arm']}"])) - np.log(base)
                shade, style = _SHADE[row["kind"]], _STYLE.get(row["kind"], "-")
                axes.plot(x, gap, color=shade, ls=style, lw=1.9, label=row["arm"])
            axes.set_yscale("symlog", linthresh=0.05)
            axes.set_yticks([-0.5, -0.05, 0, 0.05, 0.5, 2], ["-0.5", "-0.05", "0", "0.05", "0.5", "2"])
            axes.set_xlabel("samples seen")
            axes.set_ylabel("gap in log loss, averaged model")
            axes.set_title(f"{task}: switching the batch in mid-run")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=9)
    return made


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    rows = [["task", "arm", "steps", "averaged", "worst gap", "raw", "worst gap", "final loss"]]
    for r in data["rows"]:
        verdicts, worst = r["verdicts"], r["worst"]
        cells = [r["task"], r["arm"], f"{r['steps']:,}", verdicts["average"], f"{worst['average']:+.3f}"]
        rows.append([*cells, verdicts["raw"], f"{worst['raw']:+.3f}", f"{r['final_loss']:.4f}"])
    sections = [
        report.Section("Gaps over the run", ["Shaded: the margin."], [], [("gaps", figure(data))]),
        report.Section("Every arm", [], rows),
    ]
    lead = "Fixed small, fixed large, a switch that moves the learning rate only, and a switch by the plan."
    return page(data, lead, sections)
