"""The DecentLaM study's picture and page."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from isobatch import report
from isobatch.report.pictures import RC
from isobatch_studies.decentlam.judge import LAZY, SMALL
from isobatch_studies.pages import page

LABELS = {
    "dsgd": "DSGD", "dmsgd": "DmSGD", "awc": "AWC-DmSGD", "da": "DA-DmSGD", "slowmo": "SlowMo", "qg": "QG-DmSGD",
    "d2": "D2 with momentum", "decentlam": "DecentLaM", "pmsgd": "PmSGD", "pmsgd-lars": "PmSGD + LARS",
}  # fmt: skip
_SHADE = {
    "dsgd": "#000000", "dmsgd": "#D55E00", "awc": "#E69F00", "da": "#CC79A7", "qg": "#56B4E9", "decentlam": "#0072B2",
    "d2": "#009E73", "pmsgd": "#999999",
}  # fmt: skip
_STYLE = {"dsgd": ":", "dmsgd": "-", "awc": "--", "da": "-.", "qg": "--", "decentlam": "-", "d2": "-.", "pmsgd": ":"}
_MARK = {"dsgd": ".", "dmsgd": "o", "awc": "v", "da": "^", "qg": "D", "decentlam": "s", "d2": "P", "pmsgd": "X"}


def figure(data: dict[str, Any]) -> Figure:
    """Draw the three panels.

    Args:
        data: the study's result.

    Returns:
        A figure.
    """
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(14.5, 5.0), layout="constrained")
        left, middle, right = made.subplots(1, 3)
        _bias(left, data)
        _batch(middle, data)
        _digits(right, data)
        found: dict[str, Any] = {}
        for axes in (left, middle, right):
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        made.legend(list(found.values()), list(found), loc="outside lower center", ncols=5, handlelength=3)
    return made


def _line(axes: Axes, name: str, x: Any, y: Any) -> None:
    wide = 2.4 if name in ("decentlam", "dmsgd") else 1.6
    axes.plot(x, y, color=_SHADE[name], ls=_STYLE[name], marker=_MARK[name], ms=6, lw=wide, label=LABELS[name])


def _bias(axes: Axes, data: dict[str, Any]) -> None:
    betas = np.array(data["betas"])
    found = {name: np.mean(rows, axis=0) for name, rows in data["bias"][SMALL].items()}
    theory = found["dsgd"][0] / (1 - betas) ** 2
    axes.plot(1 / (1 - betas), theory, color="#000000", lw=4, alpha=0.18, label="DSGD's bias / (1-beta)**2")
    for name in ("dmsgd", "awc", "da", "qg", "decentlam"):
        _line(axes, name, 1 / (1 - betas), found[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(1 / (1 - betas), [f"{beta:g}" for beta in betas])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("momentum beta (axis: 1/(1-beta))")
    axes.set_ylabel("relative squared bias")
    axes.set_title("least squares, ring, gamma 1e-3")


def _batch(axes: Axes, data: dict[str, Any]) -> None:
    for name, rows in data["batch"].items():
        _line(axes, name, data["batches"], np.mean(rows, axis=0))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(data["batches"], [f"{size:g}" for size in data["batches"]])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("batch of a node")
    axes.set_ylabel("stationary relative squared error")
    axes.set_title("lazy ring, gamma 1e-2, beta 0.9, noisy")


def _digits(axes: Axes, data: dict[str, Any]) -> None:
    rows = [row for row in data["digits"] if row["cell"]["nodes"] == 8 and row["cell"]["graph"] == "lazy ring"]
    for name in _SHADE:
        mine = sorted((row for row in rows if row["cell"]["method"] == name), key=lambda row: row["cell"]["batch"])
        if mine:
            _line(axes, name, [r["cell"]["batch"] for r in mine], [np.mean(r["accuracy"]) for r in mine])
    sizes = sorted({row["cell"]["batch"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("batch of a node (179: full batch)")
    axes.set_ylabel("held-out accuracy of the average, %")
    axes.set_title("digits split by class over 8 nodes")


def accuracy_table(data: dict[str, Any]) -> list[list[str]]:
    """Return accuracies in the shape of the paper's table: methods by batches, graphs and sizes, mean and deviation.

    Args:
        data: the study's result.

    Returns:
        Rows, the first one the header.
    """
    columns: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in data["digits"]:
        cell = row["cell"]
        column = columns.setdefault((cell["graph"], cell["nodes"], cell["batch"]), {})
        column[cell["method"]] = f"{np.mean(row['accuracy']):.1f} ± {np.std(row['accuracy'], ddof=1):.1f}"
    keys = sorted(columns, key=lambda key: (key[1], key[0] != "lazy ring", key[0], key[2]))
    header = ["method", *(f"{graph}, {nodes} nodes, B={batch}" for graph, nodes, batch in keys)]
    return [header, *([LABELS[name], *(columns[key].get(name, "-") for key in keys)] for name in LABELS)]


def bias_table(data: dict[str, Any], label: str) -> list[list[str]]:
    """Return biases of the first instance: methods by momentum.

    Args:
        data: the study's result.
        label: of the setting.

    Returns:
        Rows, the first one the header.
    """
    rows = [["method", *(f"beta {beta:g}" for beta in data["betas"])]]
    for name, found in data["bias"][label].items():
        values = [f"{value:.3g}" for value in found[0]]
        rows.append([LABELS[name], *values, *["-"] * (len(data["betas"]) - len(values))])
    return rows


def html(data: dict[str, Any]) -> str:
    """Return the study's page.

    Args:
        data: the study's result.

    Returns:
        Self-contained HTML.
    """
    rates = [["part", "method", "slope"]]
    for part, methods in data["rates"].items():
        rates += [[part, LABELS[name], f"{values['slope']:.3f}"] for name, values in methods.items()]
    real = [["method", "processes", "accuracy", "loss", "virtual accuracy", "virtual loss"]]
    for row in data["real"]:
        pair = [f"{row['accuracy']:.2f}", f"{row['loss']:.6f}"]
        real.append([LABELS[row["method"]], "4", *pair, f"{row['virtual accuracy']:.2f}", f"{row['virtual loss']:.6f}"])
    disclosed = (
        "DecentLaM's bias is DSGD's, not zero. QG-DmSGD has the same independence of beta, D2 with momentum has no "
        "bias. DSGD and QG take smaller effective steps at an equal gamma: the noisy rows do not rank methods."
    )
    saturated = (
        "At gamma 1e-2 DmSGD's bias grows less than 1/(1-beta)**2, because the order gamma**2/(1-beta)**2 holds only "
        "while gamma L/(1-beta) is small beside the graph's spectral gap; far beyond, every node sits at its own "
        "minimiser and the bias can grow no further."
    )
    sections = [
        report.Section("Bias, batch, accuracy", [disclosed], [], [("bias, batch and accuracy", figure(data))]),
        report.Section(f"Bias: {LAZY}", [saturated], bias_table(data, LAZY)),
        report.Section(f"Bias: {SMALL}", [], bias_table(data, SMALL)),
        report.Section("Rates", ["Fitted slopes in log-log."], rates),
        report.Section("Digits", ["Accuracy of the exact average, %, mean and deviation."], accuracy_table(data)),
        report.Section("Real processes", ["The same run on 4 gloo processes and on 4 virtual nodes."], real),
        *(report.Section(table["title"], [], table["rows"]) for table in data["tables"]),
    ]
    return page(data, "What momentum does to the inconsistency bias, and what a large batch shows of it.", sections)
