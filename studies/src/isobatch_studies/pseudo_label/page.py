"""The pseudo-label study's picture and page."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.pages import page

_SHADES = {0.5: "#56B4E9", 2: "#009E73", 4: "#E69F00", 8: "#D55E00"}
_PANELS = (
    ("rule", "with the EMA rule"),
    ("unscaled", "EMA decay kept"),
    ("progressive", "batch switched during the run"),
)
_ALONE = ("control", "controls")


def figure(data: dict[str, Any]) -> Figure:
    """Draw the word error rate of every arm at matched samples: a row a form of Adam's rule, a column a treatment.

    Args:
        data: the study's result.

    Returns:
        The figure.
    """
    rows = data["rows"]
    controls = [row for row in rows if row["kind"] == "control"]
    forms = list(dict.fromkeys(row["form"] for row in rows if row["kind"] != "control")) or ["no arm yet"]
    kinds = [(kind, text) for kind, text in _PANELS if any(row["kind"] == kind for row in rows)] or [_ALONE]
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(5.2 * len(kinds), 4.0 * len(forms) + 0.7), layout="constrained")
        grid = made.subplots(len(forms), len(kinds), squeeze=False, sharex=True, sharey=True)
        for down, form in enumerate(forms):
            for across, (kind, text) in enumerate(kinds):
                axes = grid[down, across]
                found = [r for r in rows if r["kind"] == kind and r["form"] == form]
                if not found and kind != "control":
                    axes.set_axis_off()
                    grid[down - 1, across].tick_params(labelbottom=True)
                    continue
                _panel(axes, data, controls, found)
                axes.set_title(f"{text} (Adam: {form})", fontsize=11)
        for axes in grid[:, 0]:
            axes.set_ylabel("word error rate, averaged model, %")
        for axes in grid[-1]:
            axes.set_xlabel("samples seen")
        handles = dict(pair[::-1] for axes in grid.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True))
        made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9.5)
        made.suptitle("Pseudo-labelling on SYNTHETIC speech, mean over seeds", fontsize=12)
    return made


def _panel(axes: Any, data: dict[str, Any], controls: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    x = data["stops"]
    axes.axvline(data["start"]["samples"], color="#999999", lw=1, ls=":")
    for row in controls:
        style = {"reference": "-", "reference again": "--"}.get(row["arm"], ":")
        shade = "#000000" if style != ":" else "#777777"
        axes.plot(x, row["wer_curve"]["average"], color=shade, ls=style, lw=2.2, label=row["arm"])
    seen: dict[float, int] = {}
    for row in rows:
        style = ("-", "--")[seen.setdefault(row["kappa"], 0)]
        seen[row["kappa"]] = 1
        label = f"kappa {row['kappa']:g}" if row["kind"] != "progressive" else row["arm"].partition(",")[0]
        axes.plot(x, row["wer_curve"]["average"], color=_SHADES[row["kappa"]], ls=style, lw=1.8, label=label)
    axes.set_ylim(0, 105)


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    head = [
        "arm",
        "steps",
        "averaged",
        f"at {data['strict']:g}",
        "worst gap",
        "raw",
        "WER averaged",
        "against the reference",
        "start",
        "collapsed",
    ]
    table = [head]
    for row in data["rows"]:
        verdicts = row.get("verdicts", {"average": "", "raw": ""})
        worst = f"{row['worst']['average']:+.3f}" if "worst" in row else ""
        gap = _words(row["wer_gap"], "+.1f") if "wer_gap" in row else ""
        begun = [start for start in row["starts"] if start >= 0]
        start = f"{sum(begun) / len(begun):,.0f}" if begun else "never"
        cells = [row["arm"], f"{row['steps']:,}", verdicts["average"], row.get("strict", ""), worst, verdicts["raw"]]
        ends = f"{row['collapsed']} of {len(row['starts'])}"
        table.append([*cells, _words(row["wer"]["average"], ".1f"), gap, start, ends])
    notes = [
        f"Data: {data['data']['data']}. No evidence about human speech.",
        f"Gaps are in log held-out CTC loss; the margin is {data['margin']:g}. Word error rates are in percent at the "
        "end of the run, with 95% intervals over seeds.",
        "A run has collapsed when its teacher says nothing, or nothing right.",
    ]
    sections = [
        report.Section("Word error rate over the run", notes, [], [("curves", figure(data))]),
        report.Section("Every arm", [], table),
    ]
    lead = "A teacher that is the student's own weight average labels most of every batch; does its rule hold?"
    return page(data, lead, sections)


def _words(interval: list[float], form: str) -> str:
    mean, low, high = (format(value, form) for value in interval)
    return f"{mean} [{low}, {high}]"
