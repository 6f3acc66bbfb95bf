"""The report of `verify run`: the plan, the overlays, the gaps, the verdict and how it was reached."""

from pathlib import Path
from typing import Any

from isobatch import report
from isobatch.plan.plan import show
from isobatch.verify import equivalence
from isobatch.verify.arms import MEANING


def write_report(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write result.json, overlay.png and report.html.

    Args:
        folder: an existing folder.
        data: what `to_dict` returns.

    Returns:
        The files.
    """
    picture, page = folder / "overlay.png", folder / "report.html"
    report.write(picture, report.png(report.overlay_figure(data)))
    report.write(page, html(data))
    return [report.write_result(folder, data), picture, page]


def html(data: dict[str, Any]) -> str:
    """Return the page of a comparison.

    Args:
        data: what `to_dict` returns.

    Returns:
        HTML without any link to the network.
    """
    model = "averaged" if data["headline"] == "average" else "raw"
    size, task = data["recipe"]["batch"]["size"], data["recipe"].get("task", "task")
    switches = "schedule" in data["recipe"]["batch"]
    change = "a batch that switches" if switches else f"batch {size} to {data['batch_size']}"
    title = f"{task}: {change}, is it the same run?"
    lead = (
        f"The plan for kappa = {data['kappa']:g} is {data['verdict']} for the {model} model, "
        f"over {len(data['seeds'])} seeds; largest mean gap {data['arms']['plan'][data['headline']]['worst']:+.4f} "
        f"in {'log loss' if data['metric'] == 'loss' else data['metric']}."
    )
    sections = [
        report.Section(
            "Verdicts", data["next"], verdict_table(data), [("overlays and gap", report.overlay_figure(data))]
        ),
        *(
            report.Section(
                f"The {'averaged' if m == 'average' else 'raw'} model", [], [], [(m, report.model_figure(data, m))]
            )
            for m in sorted(data["arms"]["plan"], key=lambda m: m != data["headline"])
        ),
        report.Section(
            "The plan",
            [f"{w['condition']}: {w['message']} ({w['source']})" for w in data["plan"]["warnings"]],
            _plan(data),
        ),
        report.Section("How the verdict was reached", how(data), _marks(data)),
        report.Section("Data", [f"{name}: {value}" for name, value in data["facts"].items()]),
    ]
    made = report.versions()
    footer = ", ".join(f"{name} {value}" for name, value in made.items()) + f"; {data['seconds']} s"
    return report.render(title, lead, sections, badge=data["verdict"], footer=footer)


def verdict_table(data: dict[str, Any]) -> list[list[str]]:
    """Return arm, meaning, and verdict with worst gap of each model, as rows of cells.

    Args:
        data: what `to_dict` returns.

    Returns:
        Rows, the first one the header.
    """
    models = list(next(iter(data["arms"].values())))
    models.sort(key=lambda model: model != data["headline"])
    names = {"average": "averaged model", "raw": "raw model"}
    header = ["arm", "what it changes"]
    for model in models:
        header += [names[model], "worst gap"]
    rows = [header]
    for arm, tests in data["arms"].items():
        row = [arm, MEANING.get(arm, "")]
        for model in models:
            row += [tests[model]["verdict"], f"{tests[model]['worst']:+.3f}"]
        rows.append(row)
    return rows


def how(data: dict[str, Any]) -> list[str]:
    """Return the rule of the test, fixed before the run, as sentences.

    Args:
        data: what `to_dict` returns.

    Returns:
        Sentences.
    """
    loss = data["metric"] == "loss"
    gap = "log(loss of the arm) - log(loss of the reference)" if loss else f"difference in {data['metric']}, in points"
    bases = ", ".join(
        f"{value:g} ({'averaged' if m == 'average' else 'raw'} model)" for m, value in data["test"]["margins"].items()
    )
    early = f", plus {equivalence.EARLY:g} x initial loss / current loss of the reference" if loss else ""
    wide = f"{1 - 2 * equivalence.LEVEL.different / len(data['marks']):.1%}"
    diverged = f"A loss above {equivalence.CEILING:g} times the initial one, or a diverged run, counts as that much."
    return [
        f"Gap: {gap} on held-out data, at {len(data['marks'])} marks fixed in {data['unit']}. Seed s gives every arm "
        "the same initial weights and an independent sample order, so gaps are paired by seed.",
        f"Margin, fixed before the run: {bases}{early}.",
        "SAME: at every mark the 90% t interval of the mean gap lies inside the margin (two one-sided tests). "
        f"DIFFERENT: at some mark the {wide} interval lies wholly outside. Otherwise UNDECIDED.",
        "One verdict for each model; the headline is the averaged model's where the recipe has an average. "
        f"The number of seeds was fixed before the run. {diverged if loss else ''}",
    ]


def _plan(data: dict[str, Any]) -> list[list[str]]:
    rows = [["key", "was", "becomes", "rule", "because", "confidence", "note"]]
    for row in data["plan"]["rows"]:
        cells = [row["key"], show(row["was"]), show(row["becomes"])]
        rows.append([*cells, row["rule"], row["because"], row["confidence"], row["note"]])
    return rows


def _marks(data: dict[str, Any]) -> list[list[str]]:
    tests = data["arms"]
    rows = [[f"{data['unit']} seen", "margin", *tests]]
    for index, mark in enumerate(data["marks"]):
        margin = tests["plan"][data["headline"]]["margin"][index]
        cells = []
        for models in tests.values():
            test = models[data["headline"]]
            cells.append(f"{test['mean'][index]:+.4f} [{test['low'][index]:+.4f}, {test['high'][index]:+.4f}]")
        rows.append([f"{mark:,}", f"±{margin:.4f}", *cells])
    return rows
