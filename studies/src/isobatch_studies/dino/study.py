"""isobatch study dino: the average is the teacher, and its centre an average too."""

from functools import partial
from typing import Any

from isobatch_studies.claims import all_hold
from isobatch_studies.paired import MeanInterval
from isobatch_studies.teachers import judging
from isobatch_studies.teachers.judging import Judged, Rows, picked
from isobatch_studies.teachers.study import run as run_teachers

NAME = "dino"
KAPPAS, LEARNT = (4, 8), 3.0
"""Of the grid "invariant": its batches, and the points of probe or neighbours that the reference must gain."""


def same_at_both(rows: Rows) -> Judged:
    """Judge: the averaged model is SAME under the rule at kappa 4 and 8, where a control is not.

    Args:
        rows: of the grid "invariant".

    Returns:
        Held, and the figures; None where the reference learnt too little or no control is DIFFERENT.
    """
    if (why := _untold(rows)) is not None:
        return None, why
    rules = [r for kappa in KAPPAS for r in picked(rows, "rule", kappa)]
    controls = picked(rows, "no EMA rule")
    told = "; ".join(f"{r['arm']} x{r['kappa']:g} {_said(r)}" for r in (*rules, *controls))
    missing = [None] * (len(KAPPAS) - len(rules))
    held = all_hold([*(r["verdicts"]["average"] == "SAME" and not r["collapsed"] for r in rules), *missing])
    if held and all(r["verdicts"]["average"] != "DIFFERENT" for r in controls):
        return None, f"{told}: no control is DIFFERENT, so this test could not have told"
    return held, told


def unscaled_different(rows: Rows) -> Judged:
    """Judge: without the rule for teacher and centre the averaged model is DIFFERENT at the largest kappa.

    Args:
        rows: of the grid "invariant".

    Returns:
        Held, and the figures.
    """
    found = picked(rows, "no EMA rule", max(KAPPAS))
    if (why := _untold(rows)) is not None or not found:
        return None, why or "the arm is missing"
    return found[0]["verdicts"]["average"] == "DIFFERENT", f"x{max(KAPPAS)}: {_said(found[0])}"


def centre(rows: Rows) -> Judged:
    """Judge the centre on the sample clock, where the reference has learnt.

    Args:
        rows: of the grid "invariant".

    Returns:
        Held, and the figures.
    """
    why = _untold(rows)
    return judging.centre_on_the_clock(rows) if why is None else (None, why)


def _untold(rows: Rows) -> str | None:
    if not rows:
        return "no arm has a run beside its reference yet"
    if (left := [r for r in rows if r["seeds"] < r["planned"]]) or len(rows) < 3 * len(KAPPAS):
        seeds = min((r["seeds"] for r in left), default=0)
        return f"{len(rows) - len(left)} of {3 * len(KAPPAS)} arms are complete, the others have {seeds} seeds or more"
    found = rows[0]["reference"]["gained"]["average"]
    gains = {name: MeanInterval(**found[name]) for name in ("accuracy", "knn")}
    if any(gain.mean >= LEARNT and gain.low > 0 for gain in gains.values()):
        return None
    listed = ", ".join(f"{name} {gain}" for name, gain in gains.items())
    return f"the reference has learnt too little over the untrained network, in points: {listed}"


def _said(row: dict[str, Any]) -> str:
    return f"{row['verdicts']['average']} (worst gap {row['worst']['average']:+.2f} points)"


JUDGES = {
    "dino/rule-same": judging.rule_same,
    "dino/centre-on-the-clock": judging.centre_on_the_clock,
    "dino/invariant-rule-same": same_at_both,
    "dino/invariant-unscaled-different": unscaled_different,
    "dino/invariant-centre-on-the-clock": centre,
}
run = partial(run_teachers, NAME, JUDGES)
