"""The criteria of the teacher studies as functions of their rows: a verdict (or None) and the figures behind it."""

from typing import Any

import numpy as np

from isobatch_studies.paired import interval

Rows = list[dict[str, Any]]
Judged = tuple[bool | None, str]


def picked(rows: Rows, arm: str, kappa: float | None = None, variant: str | None = None) -> Rows:
    """Return the rows of an arm.

    Args:
        rows: all of them.
        arm: its kind.
        kappa: one batch, all unless given.
        variant: one reference recipe, all unless given.

    Returns:
        The rows in order.
    """
    return [
        r for r in rows
        if r["arm"] == arm and kappa in (None, r["kappa"]) and variant in (None, r["variant"])
    ]  # fmt: skip


def largest_same(rows: Rows, model: str = "raw") -> float | None:
    """Return the largest kappa of the grid at which the rule is SAME for a model.

    Args:
        rows: of one variant.
        model: raw or average.

    Returns:
        Kappa, None where the rule is SAME nowhere above 1.
    """
    same = [r["kappa"] for r in picked(rows, "rule") if r["verdicts"][model] == "SAME" and r["kappa"] > 1]
    return max(same, default=None)


def rule_same(rows: Rows) -> Judged:
    """Judge: the average is SAME under the rule at the largest kappa where the raw rule holds, DIFFERENT without it.

    Args:
        rows: of one variant.

    Returns:
        Held, and the figures.
    """
    kappa = largest_same(rows)
    if kappa is None:
        tried = ", ".join(
            f"x{r['kappa']:g} {r['verdicts']['raw']} {r['worst']['raw']:+.3f}" for r in picked(rows, "rule")
        )
        return None, f"the raw rule is SAME at no kappa above 1 ({tried or 'no arm is complete'})"
    ruled, without = picked(rows, "rule", kappa)[0], picked(rows, "no EMA rule", kappa)
    text = f"x{kappa:g}: average {_told(ruled)}"
    if not without:
        return None, f"{text}; the arm without the EMA rule at this kappa is missing"
    verdicts = ruled["verdicts"]["average"], without[0]["verdicts"]["average"]
    return verdicts == ("SAME", "DIFFERENT"), f"{text}; without the EMA rule {_told(without[0])}"


def loses_probe(rows: Rows) -> Judged:
    """Judge: without the rule the averaged model ends with a lower probe accuracy, at the largest kappa of both arms.

    Args:
        rows: of one variant.

    Returns:
        Held, and the figures.
    """
    both = {r["kappa"] for r in picked(rows, "rule")} & {r["kappa"] for r in picked(rows, "no EMA rule")}
    if not both:
        return None, "the arms with and without the EMA rule are not complete at one kappa"
    kappa = max(both)
    ruled, without = (picked(rows, arm, kappa)[0]["per_seed"]["average"]["accuracy"] for arm in ("rule", "no EMA rule"))
    gain = interval((np.array(ruled) - np.array(without)).tolist())
    return gain.low > 0, f"x{kappa:g}: accuracy with the rule less without, in points: {gain}"


def progressive_mends(rows: Rows) -> Judged:
    """Judge: where the rule from the start is not SAME, a switch from the reference batch comes closer.

    Args:
        rows: of one variant.

    Returns:
        Held, and the figures; None where the rule failed nowhere.
    """
    failed = [r for r in picked(rows, "rule") if r["verdicts"]["average"] != "SAME" and r["kappa"] > 1]
    pairs = [(r, other) for r in failed for other in picked(rows, "progressive", r["kappa"])]
    if not pairs:
        return None, "the rule is SAME from the start wherever a progressive arm was run"
    ruled, mended = max(pairs, key=lambda pair: pair[0]["kappa"])
    gain = np.array(ruled["worst_per_seed"]["average"]) - np.array(mended["worst_per_seed"]["average"])
    less = interval(gain.tolist())
    text = f"x{ruled['kappa']:g}: the worst gap shrinks by {less.mean:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"
    return less.low > 0, f"{text}; progressive is {_told(mended)}"


def centre_on_the_clock(rows: Rows) -> Judged:
    """Judge: the rule comes closer to the reference than the same with the centre's decay of a step left alone.

    Args:
        rows: of one variant.

    Returns:
        Held, and the figures, at the largest kappa of both arms.
    """
    pairs = [(r, other) for r in picked(rows, "rule") for other in picked(rows, "no centre rule", r["kappa"])]
    if not pairs:
        return None, "the arms with and without the centre on the sample clock are not complete at one kappa"
    ruled, kept = max(pairs, key=lambda pair: pair[0]["kappa"])
    gain = np.array(kept["worst_per_seed"]["average"]) - np.array(ruled["worst_per_seed"]["average"])
    more = interval(gain.tolist())
    text = (
        f"x{ruled['kappa']:g}: without it the worst gap is {more.mean:+.3f} larger [{more.low:+.3f}, {more.high:+.3f}]"
    )
    return more.low > 0, f"{text}; by the rule {_told(ruled)}, without {_told(kept)}"


def _told(row: dict[str, Any]) -> str:
    return f"{row['verdicts']['average']} (worst gap {row['worst']['average']:+.3f})"
