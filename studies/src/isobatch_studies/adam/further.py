"""The claims of the Adam study's further grids: the finest references, and text at kappa 4 of the long run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isobatch_studies.adam.grid import HOLD
from isobatch_studies.claims import Finding, all_hold, claims, outcome
from isobatch_studies.paired import interval

Rows = list[dict[str, Any]]
Judged = tuple[bool | None, str]
DIGITS = (("digits", 1, 4), ("digits", 1, 16), ("digits", 1, 64))
TEXT = (("text", 4, 4),)


def judge_claims(rows: Rows, seeds: int, grid: str) -> list[Finding]:
    """Compute `held` of every claim of a further grid.

    Args:
        rows: one a cell and rule.
        seeds: that were run.
        grid: its name.

    Returns:
        Outcomes in the order of criteria.json; None where the grid lacks the cells.
    """
    judges: dict[str, Callable[[Rows], Judged]] = {
        "adam/from-one-invariant-same": lambda rows: _every(rows, "invariant", DIGITS, "SAME"),
        "adam/from-one-average-must-be-scaled": lambda rows: _every(
            rows, "invariant, EMA unscaled", DIGITS, "DIFFERENT"
        ),
        "adam/from-one-square-root-same": lambda rows: _every(rows, "square root", DIGITS[:1], "SAME"),
        "adam/from-one-hold-closer": lambda rows: _closer(rows, DIGITS[-1]),
        "adam/text-4x-invariant-same": lambda rows: _every(rows, "invariant", TEXT, "SAME"),
        "adam/text-4x-average-must-be-scaled": lambda rows: _every(rows, "invariant, EMA unscaled", TEXT, "DIFFERENT"),
        "adam/text-4x-hold-closer": lambda rows: _closer(rows, TEXT[0]),
    }
    return [outcome(claim, seeds, *judges[name](rows)) for name, claim in claims("adam", grid).items()]


def _find(rows: Rows, rule: str, cell: tuple[str, int, float]) -> dict[str, Any] | None:
    return next((r for r in rows if (r["rule"], r["task"], r["batch"], r["kappa"]) == (rule, *cell)), None)


def _every(rows: Rows, rule: str, cells: Sequence[tuple[str, int, float]], wanted: str) -> Judged:
    held, told = [], []
    for cell in cells:
        found, name = _find(rows, rule, cell), f"{cell[0]} {cell[1]} x{cell[2]:g}"
        held.append(None if found is None else found["verdicts"]["average"] == wanted)
        told.append(
            f"{name}: not run" if found is None
            else f"{name}: {found['verdicts']['average']} {found['worst']['average']:+.3f}"
        )  # fmt: skip
    return all_hold(held), ", ".join(told)


def _closer(rows: Rows, cell: tuple[str, int, float]) -> Judged:
    """Held where the hold's averaged model has the smaller worst gap, interval above 0."""
    plain, hold = (_find(rows, rule, cell) for rule in ("invariant", HOLD))
    name = f"{cell[0]} {cell[1]} x{cell[2]:g}"
    if plain is None or hold is None:
        return None, f"{name}: not run"
    apart = np.array(plain["worst_per_seed"]["average"]) - np.array(hold["worst_per_seed"]["average"])
    less = interval(apart.tolist())
    figures = f"{plain['worst']['average']:+.3f} without, {hold['worst']['average']:+.3f} with the hold"
    return less.low > 0, f"{name}: worst gap {less.mean:.4f} [{less.low:.4f}, {less.high:.4f}] smaller; {figures}"
