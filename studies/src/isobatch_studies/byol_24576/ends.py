"""Where the arms of byol-24576 end beside their reference, seed by seed: plain intervals, which judge nothing."""

from typing import Any

import numpy as np

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
