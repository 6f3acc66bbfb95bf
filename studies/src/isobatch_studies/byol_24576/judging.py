"""The criteria of byol-24576 as functions of its rows: a verdict (or None) and the figures behind it."""

import math
from typing import Any

import numpy as np

from isobatch_studies.claims import all_hold
from isobatch_studies.paired import MeanInterval, interval
from isobatch_studies.teachers.judging import Judged, Rows, picked

CONTROLS = ("no EMA rule", "nothing scaled")
LEARNT, LOSS = 5.0, 1.0
"""Points: what the reference must gain over the untrained network, and what the larger batch may lose at the end."""


def rule_same(rows: Rows) -> Judged:
    """Judge: the averaged model's nearest neighbours are SAME under the rule, where a control is not.

    Args:
        rows: of the study.

    Returns:
        Held, and the figures.
    """
    if (why := _untold(rows, "rule")) is not None:
        return None, why
    rule, controls = picked(rows, "rule")[0], [r for kind in CONTROLS for r in picked(rows, kind)]
    text = "; ".join(_told(r) for r in (rule, *controls))
    if rule["verdicts"]["average"] != "SAME" or rule["collapsed"] or rule["stopped"]:
        return False, text
    if all(r["verdicts"]["average"] != "DIFFERENT" for r in controls):
        return None, f"{text}: no control is DIFFERENT, so this test could not have told"
    return True, text


def unscaled_different(rows: Rows) -> Judged:
    """Judge: with everything but the average by the plan, the averaged model's nearest neighbours are DIFFERENT.

    Args:
        rows: of the study.

    Returns:
        Held, and the figures.
    """
    if (why := _untold(rows, "no EMA rule")) is not None:
        return None, why
    control = picked(rows, "no EMA rule")[0]
    return control["verdicts"]["average"] == "DIFFERENT", _told(control)


def probe_kept(rows: Rows) -> Judged:
    """Judge: the averaged model ends with a linear probe less than a point below the reference's, interval and all.

    Args:
        rows: of the study.

    Returns:
        Held, and the figures.
    """
    if (why := _untold(rows, "rule")) is not None:
        return None, why
    rule = picked(rows, "rule")[0]
    gains = {name: _less(rule, name) for name in ("accuracy", "knn")}
    said = f"rule less reference at the end, in points: probe {gains['accuracy']}, nearest neighbours {gains['knn']}"
    return gains["accuracy"].low > -LOSS, said


def six_times_fewer_steps(rows: Rows) -> Judged:
    """Judge: a sixth of the steps, no run collapsed or stopped, and probe and neighbours less than a point below.

    Args:
        rows: of the study.

    Returns:
        Held, and the figures.
    """
    if (why := _untold(rows, "rule")) is not None:
        return None, why
    rule = picked(rows, "rule")[0]
    steps, before = rule["steps"], rule["reference"]["steps"]
    kept = [_less(rule, name).low > -LOSS for name in ("accuracy", "knn")]
    sound = not rule["collapsed"] and not rule["stopped"]
    said = f"{before:,} steps become {steps:,}; {len(rule['collapsed'])} runs collapsed, {rule['stopped']} stopped"
    return all_hold([before == round(rule["kappa"] * steps), sound, *kept]), f"{said}; {probe_kept(rows)[1]}"


def gained(row: dict[str, Any]) -> dict[str, MeanInterval]:
    """Return what the reference has gained over the untrained network, averaged model.

    Args:
        row: of an arm; its own seeds count.

    Returns:
        accuracy (of the probe) and knn, in points.
    """
    found = row["reference"]["gained"]["average"]
    return {name: MeanInterval(**found[name]) for name in ("accuracy", "knn")}


def _untold(rows: Rows, kind: str) -> str | None:
    """Return why an arm cannot be judged, None where it can."""
    found = picked(rows, kind)
    if not found:
        return f"the arm '{kind}' has no run beside its reference yet"
    row = found[0]
    if row["seeds"] < row["planned"]:
        return f"{row['seeds']} of {row['planned']} seeds, no verdict yet; so far a worst gap of {_gap(row)}"
    gains = gained(row)
    if not any(g.mean >= LEARNT and g.low > 0 for g in gains.values()):
        listed = ", ".join(f"{name} {gain}" for name, gain in gains.items())
        return f"the reference has learnt too little over the untrained network, in points: {listed}"
    return None


def _less(row: dict[str, Any], name: str) -> MeanInterval:
    arm, reference = (np.array(of["per_seed"]["average"][name]) for of in (row, row["reference"]))
    return interval((arm - reference).tolist())


def _told(row: dict[str, Any]) -> str:
    return f"{row['arm']} x{row['kappa']:g} {row['verdicts']['average']} (worst gap {_gap(row)})"


def _gap(row: dict[str, Any]) -> str:
    worst = row["worst"]["average"]
    return f"{worst:+.2f} points" if math.isfinite(worst) else "nothing that was measured"
