"""What is looked at beside the verdicts of byol-24576, and judges nothing: where arms end, and what would decide.

`python -m isobatch_studies.byol_24576.ends docs/results/byol-24576` tells verdicts at other margins from finished runs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.verify.equivalence import compare
from isobatch_studies.paired import interval

METRICS = {"neighbours, averaged": ("average", "knn"), "probe, averaged": ("average", "accuracy")}
METRICS |= {"neighbours, raw": ("raw", "knn"), "probe, raw": ("raw", "accuracy")}


def markdown(data: dict[str, Any] | None) -> str:
    """Return the paired differences at the end of every complete arm as a table, in points.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown: mean and 95% interval by Student's t over seeds, arm less reference.
    """
    rows = [] if data is None else [row for row in data["rows"] if row["seeds"] >= row["planned"]]
    if not rows:
        return "No arm is complete.\n"
    lines = [f"| arm less reference | seeds | {' | '.join(METRICS)} |", "|---|" + "---|" * (len(METRICS) + 1)]
    for row in rows:
        cells = [_difference(row, model, metric) for model, metric in METRICS.values()]
        lines.append(f"| {row['arm']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(row: dict[str, Any], model: str, metric: str) -> str:
    arm, reference = (np.array(of["per_seed"][model][metric]) for of in (row, row["reference"]))
    found = interval((arm - reference).tolist())
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def margins(folder: Path, given: tuple[float, ...] = (1.0, 2.0)) -> list[tuple[str, float, str, int | None]]:
    """Compare the averaged model's neighbours of every arm with the reference at the ten marks, at several margins.

    Args:
        folder: of the study, with its finished runs in cells/.
        given: margins in points; the first one is the judged one.

    Returns:
        Arm, margin, verdict, and fresh seeds that would decide (None where decided, or where 200 do not).
    """
    arms: dict[str, dict[int, list[float]]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text("utf-8"))
        arms.setdefault(cell["arm"], {})[cell["seed"]] = cell["values"]["average"]["knn"][1:]
    (reference,) = (runs for arm, runs in arms.items() if arm.endswith(" reference"))
    found = []
    for arm in (arm for arm in arms if not arm.endswith(" reference")):
        gap = np.array([np.subtract(run, reference[seed]) for seed, run in sorted(arms[arm].items())])
        for margin in given:
            told = compare(gap, np.full(gap.shape[1], margin))
            found.append((arm, margin, str(told.verdict), told.seeds_to_decide))
    return found


def main() -> None:
    """Write verdicts and seeds at a margin of 1 and 2 points to standard output."""
    for arm, margin, verdict, seeds in margins(Path(sys.argv[1])):
        sys.stdout.write(f"{arm}: margin {margin:g}: {verdict}, fresh seeds that would decide: {seeds}\n")


if __name__ == "__main__":
    main()
