"""isobatch study byol: the average is the teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobatch.studies.teachers import judging
from isobatch.studies.teachers.study import run as run_teachers
from isobatch.verify.workers import Curve

NAME = "byol"
JUDGES = {
    "byol/rule-same": judging.rule_same,
    "byol/unscaled-loses-probe": judging.loses_probe,
    "byol/progressive-mends": judging.progressive_mends,
}


def run(
    *,
    quick: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    budget: float | None = None,
    device: str = "cpu",
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        quick: the small grid of criteria.json.
        out: folder for cells, result.json, picture and page; nothing is kept without it.
        workers: processes, one a core unless given.
        budget: seconds after which no further arm is begun.
        device: where the runs are trained, in the word of `Device.parse`.
        on_estimate: called with seconds (0: unknown) and the number of runs.
        on_done: called with each finished run.

    Returns:
        What goes into result.json.
    """
    return run_teachers(
        NAME,
        JUDGES,
        quick=quick,
        out=out,
        workers=workers,
        budget=budget,
        device=device,
        on_estimate=on_estimate,
        on_done=on_done,
    )
