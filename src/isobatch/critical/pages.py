"""What the critical batch writes: result.json, a picture, and one page."""

from pathlib import Path
from typing import Any

from isobatch import report
from isobatch.critical.pictures import front_figure
from isobatch.critical.words import plain

LIMITS = [
    "The critical batch belongs to a goal, a task and an optimizer: it grows as the loss falls, and moves with the "
    "learning-rate schedule. Every run here has a constant learning rate.",
    "Held-out loss is followed; generalisation beyond it, memory and speed of the machine are not in it.",
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
    return [folder / "result.json", folder / "front.png", _page(folder, "The critical batch", lead, sections)]


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


def _page(folder: Path, title: str, lead: str, sections: list[report.Section]) -> Path:
    footer = ", ".join(f"{name} {value}" for name, value in report.versions().items())
    report.write(folder / "report.html", report.render(title, lead, sections, footer=footer))
    return folder / "report.html"
