"""Judge stored comparisons again, from their curves, with the present test; nothing is trained.

python -m benchmarks.rejudge             # a table of what changed
python -m benchmarks.rejudge --write     # and result.json and overlay.png anew, with the command and date of the runs
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobatch import Recipe, report
from isobatch.tasks import LOSS
from isobatch.verify import to_dict
from isobatch.verify.comparison import Comparisons, headline_model
from isobatch.verify.design import Criteria, design_of
from isobatch.verify.judging import RecipeFails, conclude, failures
from isobatch.verify.workers import Curve

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("versions", "command", "seconds", "max_kappa", "first_judged")


def stored() -> list[Path]:
    """Folders of comparisons whose curves are kept for every seed."""
    found = [*sorted((ROOT / "docs" / "results").iterdir()), ROOT / "docs" / "demo"]
    return [folder for folder in found if "curves" in (data := report.read_result(folder)) and "arms" in data]


def judged(data: dict[str, Any]) -> Comparisons:
    """The comparison of a stored result, judged by the present rule."""
    recipe, curves = Recipe.parse(data["recipe"]), {}
    for arm, runs in data["curves"].items():
        curves[arm] = []
        for run in runs:
            values = {
                model: {name: [math.nan if v is None else v for v in row] for name, row in series.items()}
                for model, series in run["values"].items()
            }
            one = Curve(arm, run["seed"], values, run["steps"], run["seconds"], run["stopped"], data["facts"])
            curves[arm].append(one)
    optimizer = "invariant" if "square root" in curves else None
    seeds = len(data["seeds"])
    design = design_of(recipe, data["batch_size"], seeds, optimizer=optimizer)
    arms = {arm: design.arms[arm] for arm in curves}
    controls = tuple(arm for arm in design.controls if arm in arms)
    stops = tuple(data["stops"])
    marks = tuple(stops.index(mark) for mark in data["marks"])
    design = replace(design, arms=arms, controls=controls, stops=stops, marks=marks)
    metrics = {data["metric"]: LOSS}
    rule = Criteria(metrics, data["metric"], {}, 0, marks, stops, recipe.optimizer.lr)
    table, model = rule.judge(curves, design.looks.level(0)), headline_model(recipe)
    lost = failures(curves["reference"], metrics, data["metric"], stops)
    conclusion = conclude(table, model, lost, controls=controls)
    margins = {name: test.margin for name, test in table["plan"].items()}
    return Comparisons(design, rule, curves, table, conclusion, margins, data["seconds"])


def rows(folder: Path, data: dict[str, Any], found: Comparisons | str) -> list[list[str]]:
    """One row for every verdict that changed."""
    before = data.get(
        "first_judged", {arm: {m: t["verdict"] for m, t in ms.items()} for arm, ms in data["arms"].items()}
    )
    if isinstance(found, str):
        return [[folder.name, "reference", "", "-", "the recipe fails", found]]
    made = []
    for arm, models in found.table.items():
        for model, test in models.items():
            if (old := before[arm][model]) != str(test.verdict):
                told = "; ".join(test.reasons) or "the margin"
                gap = f"worst {test.worst:+.3f} against ±{test.margin:.3f}"
                made.append([folder.name, arm, model, old, str(test.verdict), f"{gap}: {told}"])
    said = found.verdicts["plan"]
    if said != str(found.table["plan"][found.headline].verdict):
        made.append([folder.name, "plan", "headline", before["plan"][found.headline], said, found.conclusion.headline])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write result.json and overlay.png anew")
    chosen = parser.parse_args()
    lines = [["result", "arm", "model", "before", "now", "why"]]
    for folder in stored():
        data = report.read_result(folder)
        try:
            found: Comparisons | str = judged(data)
        except RecipeFails as error:
            found = str(error)
        lines += rows(folder, data, found)
        if chosen.write and not isinstance(found, str):
            first = data.get("first_judged") or {
                arm: {model: test["verdict"] for model, test in models.items()} for arm, models in data["arms"].items()
            }
            fresh = to_dict(found, searched="max_kappa" in data) | {"first_judged": first}
            fresh |= {name: data[name] for name in KEPT if name in data}
            text = json.loads(report.dump(fresh)) | {name: data[name] for name in ("versions", "command")}
            report.write(folder / "result.json", json.dumps(text, indent=1) + "\n")
            report.write(folder / "overlay.png", report.png(report.overlay_figure(text)))
    for index, line in enumerate(lines):
        print("| " + " | ".join(line) + " |")
        if not index:
            print("|" + "---|" * len(line))


if __name__ == "__main__":
    main()
