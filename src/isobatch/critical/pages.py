"""What the critical batch writes: result.json, a picture, and one page."""

import math
from pathlib import Path
from typing import Any

from isobatch import report
from isobatch.critical.hyperbola import Interval
from isobatch.critical.pictures import advice_figure, branch_figure, fit_figure, front_figure, noise_figure
from isobatch.critical.trial import assumed_sign
from isobatch.critical.words import plain, ranged, sized
from isobatch.recipe import toml_text

LIMITS = [
    "The critical batch belongs to a goal, a task and an optimizer: it grows as the loss falls, and moves with the "
    "learning-rate schedule. Every run here has a constant learning rate.",
    "Held-out loss is followed; generalisation beyond it, memory and speed of the machine are not in it.",
]

BRANCH_LIMITS = (
    "Local: it says which batch serves from this state on, for the samples of a branch; it grows over training. The "
    "learning rate follows the plan's rule and is not tuned for each branch."
)
NOISE_LIMITS = (
    "The noise scale goes about as 1/T, T the learning rate over the batch: compare values at one temperature, or the "
    "product in the last column. It is not a batch size: calibrate it by a sweep."
)
FIT_LIMITS = [
    "Every batch was somebody's best: settings that are better at some batches than at others bend the curve, and the "
    "interval counts that as noise. Published points are chosen, so that their seeds scatter less than a stranger's.",
    "The critical batch belongs to the goal, the task and the optimizer of the table.",
]


def write_sweep(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write a sweep's files.

    Args:
        folder: an existing folder.
        data: the sweep as plain values.

    Returns:
        The files.
    """
    figure = front_figure(data)
    report.write_result(folder, data)
    report.write(folder / "front.png", report.png(figure))
    sections = [
        report.Section("Pareto front", [goal["sentence"] for goal in data["goals"]], [], [("Pareto front", figure)]),
        report.Section("Fastest run at each batch", [], sweep_table(data)),
        report.Section("What it does not say", LIMITS),
    ]
    lead = "Batches and learning rates to a goal: how many steps and samples each batch takes at its best."
    return [folder / "result.json", folder / "front.png", _page(folder, "The critical batch", lead, sections, data)]


def sweep_table(data: dict[str, Any]) -> list[list[str]]:
    """Return the fastest runs as cells.

    Args:
        data: the sweep as plain values.

    Returns:
        Rows, the first one the header.
    """
    rows = [["goal", "batch", "learning rate", "steps", data["unit"], "spread", "note"]]
    for goal in data["goals"]:
        for p in goal["points"]:
            spread = f"{p['spread']:.1%}" if p["spread"] is not None and p["spread"] == p["spread"] else "-"
            note = "at the edge of the rates tried" if p["edge"] else ""
            numbers = [f"{p['batch']}", f"{p['lr']:.4g}", plain(p["steps"]), plain(p["batch"] * p["steps"])]
            rows.append([f"{data['metric']} {goal['goal']:g}", *numbers, spread, note])
        rows += [[f"{data['metric']} {goal['goal']:g}", f"{b}", *["-"] * 4, "not reached"] for b in goal["missed"]]
    return rows


def write_branch(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write the files of branched training.

    Args:
        folder: an existing folder.
        data: the result as plain values.

    Returns:
        The files.
    """
    figure = branch_figure(data)
    report.write_result(folder, data)
    report.write(folder / "branches.png", report.png(figure))
    sections = [
        report.Section("Branches", [data["sentence"]], branch_table(data), [("branches", figure)]),
        report.Section("What it does not say", [BRANCH_LIMITS]),
    ]
    lead = "From one state, the run goes on at larger batches, settings and optimizer state moved by the plan."
    return [folder / "result.json", folder / "branches.png", _page(folder, "Branched training", lead, sections, data)]


def branch_table(data: dict[str, Any]) -> list[list[str]]:
    """Return the branches as cells.

    Args:
        data: the result as plain values.

    Returns:
        Rows, the first one the header.
    """
    rows = [["factor", "batch", data["metric"], "over seeds", "no worse"]]
    size, sign = data["recipe"]["batch"]["size"], data.get("sign", assumed_sign(data["metric"]))
    means: list[float] = []
    for factor, values in zip(data["factors"], data["losses"], strict=True):
        mean = sum(values) / len(values)
        means.append(sign * mean)
        good = means[-1] <= min(means) + data["tolerance"]
        spread = f"{min(values):.4f} to {max(values):.4f}"
        rows.append([f"{factor}", f"{factor * size}", f"{mean:.4f}", spread, "yes" if good else "no"])
    return rows


def write_advice(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write the files of an advice.

    Args:
        folder: an existing folder.
        data: the advice as plain values.

    Returns:
        The files.
    """
    figure = advice_figure(data)
    report.write_result(folder, data)
    report.write(folder / "advice.png", report.png(figure))
    sections = [
        report.Section("Advice", list(data["sentences"]), advice_table(data), [("time against compute", figure)]),
        report.Section("Assumptions", [*data["origin"], *data["assumptions"]]),
    ]
    lead = "Measured step times x (1 + B_crit/B): time and compute of every batch and number of devices."
    return [folder / "result.json", folder / "advice.png", _page(folder, "Which batch pays", lead, sections, data)]


def advice_table(data: dict[str, Any]) -> list[list[str]]:
    """Return the front as cells, the picks marked.

    Args:
        data: the advice as plain values.

    Returns:
        Rows, the first one the header.
    """
    front = sorted((o for o in data["options"] if o["front"]), key=lambda o: o["compute"])
    names = {(o["batch"], o["devices"]): [] for o in front}
    for name, option in data["picks"].items():
        names[option["batch"], option["devices"]].append(name)
    base, unit = front[0], "seconds" if data["absolute"] else "time"
    rows = [["batch", "devices", unit, "compute", "steps / fewest", f"{data['unit']} / fewest", "pick"]]
    for o in front:
        time = plain(o["seconds"]) if data["absolute"] else f"{o['seconds'] / base['seconds']:.3g}"
        cells = [f"{o['batch']:,}", f"{o['devices']:,}", time, f"{o['compute'] / base['compute']:.3g}x"]
        factors = [f"{o['steps_factor']:.3g}", f"{o['samples_factor']:.3g}"]
        rows.append([*cells, *factors, ", ".join(names[o["batch"], o["devices"]])])
    return rows


def write_fit(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write the files of a fitted table.

    Args:
        folder: an existing folder.
        data: the fit as plain values.

    Returns:
        The files.
    """
    figure = fit_figure(data)
    report.write_result(folder, data)
    report.write(folder / "fit.png", report.png(figure))
    sections = [
        report.Section("Critical batch", [*data["sentences"], data["next"]], [], [("fit", figure)]),
        report.Section("Batches", list(data["notes"]), fit_rows(data)),
        report.Section("What it does not say", FIT_LIMITS),
    ]
    lead = "What each batch took to one goal, and the hyperbola E = E_min (1 + B/B_crit) through it."
    return [
        folder / "result.json",
        folder / "fit.png",
        _page(folder, f"The critical batch of {data['name']}", lead, sections, data),
    ]


def fit_rows(data: dict[str, Any]) -> list[list[str]]:
    """Return the batches of a fitted table as cells.

    Args:
        data: the fit as plain values.

    Returns:
        Rows, the first one the header.
    """
    rows = [["batch", "seeds", data["amount"], "evaluated every", "off the fit", "off the fit of the others"]]
    for p in data["points"]:
        others = "-" if p["left_out"] is None else f"{math.expm1(p['left_out']):+.1%}"
        every = plain(p["quantum"]) if p["quantum"] else "-"
        cells = [sized(p["batch"]), f"{len(p['values'])}", plain(p["mean"]), every]
        rows.append([*cells, f"{math.expm1(p['residual']):+.1%}", others])
    return rows


def write_noise(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write the files of a measured run.

    Args:
        folder: an existing folder.
        data: the readings as plain values.

    Returns:
        The files.
    """
    figure = noise_figure(data)
    report.write_result(folder, data)
    report.write(folder / "noise.png", report.png(figure))
    sections = [
        report.Section("Noise scale over training", [NOISE_LIMITS], noise_table(data), [("noise scale", figure)]),
    ]
    lead = "The gradient noise scale at fixed weights, again and again over a run."
    return [folder / "result.json", folder / "noise.png", _page(folder, "The noise scale", lead, sections, data)]


def noise_table(data: dict[str, Any]) -> list[list[str]]:
    """Return the readings as cells.

    Args:
        data: the readings as plain values.

    Returns:
        Rows, the first one the header.
    """
    rows = [[data["unit"], "held-out loss", "noise scale", "interval", "verdict", "T/T_peak", "noise scale x T/T_peak"]]
    for r in data["readings"]:
        value = "-" if r["value"] is None else plain(r["value"])
        about = ranged(Interval(r["value"] or 0.0, max(r["low"], 0.0), r["high"]))
        product = "-" if r["at_peak"] is None else plain(r["at_peak"])
        rows.append(
            [f"{r['seen']:,}", f"{r['loss']:.4f}", value, about, r["verdict"], f"{r['temperature']:.3g}", product]
        )
    return rows


def _page(folder: Path, title: str, lead: str, sections: list[report.Section], data: dict[str, Any]) -> Path:
    recipe = toml_text(data["recipe"]) if "recipe" in data else ""
    report.write(folder / "report.html", report.render(title, lead, sections, recipe=recipe))
    return folder / "report.html"
