"""Observed against predicted savings, and the averaged model's verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from isobatch.tasks import LOSS
from isobatch.verify.judging import judge as compare
from isobatch_studies.adaptive.paths import MARKS, Path
from isobatch_studies.claims import Finding, claims, outcome

NAME = "adaptive"
SMALL, FULL, BARE = "fixed {}", "adaptive", "adaptive, learning rate only"
_MARGIN = 0.15


def observed(path: Path, fixed: Sequence[Path], goal: float) -> float | None:
    """Return the share of steps that the adaptive run saves against the front of fixed batches at equal samples.

    Args:
        path: the adaptive run.
        fixed: runs of fixed batches, same seed.
        goal: loss.

    Returns:
        1 - S_adaptive/S_fixed, None where a goal was not reached.
    """
    mine = path.reach(goal)
    ends = [end for end in (other.reach(goal) for other in fixed) if end is not None]
    if mine is None or len(ends) < 2:
        return None
    front = _front(ends)
    samples = np.log([e for _, e in front])
    steps = np.log([s for s, _ in front])
    return float(1 - mine[0] / math.exp(np.interp(math.log(mine[1]), samples, steps)))


def _front(ends: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(steps, samples) by rising samples, without those that another one beats in both."""
    best: list[tuple[float, float]] = []
    for steps, samples in sorted(ends, key=lambda end: (end[1], end[0])):
        if not best or steps < best[-1][0]:
            best.append((steps, samples))
    return best


def predicted(path: Path, goal: float) -> float | None:
    r"""Return the share of steps that the run's own noise scales say it saves.

    ds = 1/(1 + Bn/B) for a step at batch B, S_min = sum ds, E_min = sum Bn ds, and
    gamma = (sum sqrt(Bn) ds)^2/(S_min E_min); a fixed batch that spends E samples takes S_min (1 + 1/(E/E_min - 1))
    steps, the adaptive one S_min (1 + gamma/(E/E_min - 1)).

    Args:
        path: the adaptive run.
        goal: loss.

    Returns:
        1 - S_adaptive/S_fixed, None without a noise scale or where the goal was not reached.

    References:
        arXiv 1812.06162, appendix D.
    """
    end = path.reach(goal)
    if end is None or not path.noise:
        return None
    places, scales = np.array(path.noise).T
    batches = np.array(path.batches[: max(1, math.floor(end[0]))], dtype=float)
    at = np.cumsum(batches)
    noise = scales[np.clip(np.searchsorted(places, at, side="right") - 1, 0, None)]
    share = 1 / (1 + noise / batches)
    least, few = share.sum(), (noise * share).sum()
    gamma = (np.sqrt(noise) * share).sum() ** 2 / (least * few)
    excess = batches.sum() / few - 1
    return float(1 - (1 + gamma / excess) / (1 + 1 / excess)) if excess > 0 else None


def rows(paths: Mapping[str, Sequence[Path]], goal: float, small: str) -> list[dict[str, Any]]:
    """Return one row an arm.

    Args:
        paths: arm -> runs by seed.
        goal: loss.
        small: name of the reference arm.

    Returns:
        Plain values.
    """
    verdicts = {}
    if small in paths:
        curves = {"reference" if arm == small else arm: [p.curve() for p in runs] for arm, runs in paths.items()}
        verdicts = compare(curves, tuple(range(1, MARKS + 1)), {"loss": LOSS})
    found = []
    for arm, runs in paths.items():
        ends = [run.reach(goal) for run in runs]
        made: dict[str, Any] = {
            "arm": arm,
            "goal_steps": [None if end is None else round(end[0], 2) for end in ends],
            "goal_samples": [None if end is None else round(end[1], 1) for end in ends],
            "final_raw": [run.values["raw"]["loss"][-1] for run in runs],
            "final_average": [run.values["average"]["loss"][-1] for run in runs],
            "steps": [len(run.batches) for run in runs],
            "verdicts": None,
        }
        if arm in verdicts:
            made["verdicts"] = {model: str(test.verdict) for model, test in verdicts[arm].items()}
            made["worst"] = {model: round(test.worst, 4) for model, test in verdicts[arm].items()}
        found.append(made)
    return found


def savings(paths: Mapping[str, Sequence[Path]], goal: float) -> list[dict[str, float | None]]:
    """Return observed and predicted savings by seed.

    Args:
        paths: arm -> runs by seed.
        goal: loss.

    Returns:
        One entry a seed; none without the adaptive arm.
    """
    fixed = [runs for arm, runs in paths.items() if arm.startswith("fixed")]
    return [
        {"observed": observed(run, [runs[index] for runs in fixed], goal), "predicted": predicted(run, goal)}
        for index, run in enumerate(paths.get(FULL, ()))
    ]


def judge(
    table: Sequence[dict[str, Any]], saved: Sequence[dict[str, float | None]], seeds: int, *, complete: bool
) -> list[Finding]:
    """Compute `held` of both claims.

    Args:
        table: one row an arm.
        saved: from `savings`.
        seeds: that were run.
        complete: whether every arm is there.

    Returns:
        Outcomes in the order of criteria.json.
    """
    known, by_arm = claims(NAME), {row["arm"]: row for row in table}
    first: tuple[bool | None, str] = (None, "arms are missing")
    if complete:
        first = _difference(saved)
    second: tuple[bool | None, str] = (None, "arms are missing")
    if complete and by_arm[FULL]["verdicts"] and by_arm[BARE]["verdicts"]:
        full, bare = by_arm[FULL], by_arm[BARE]
        words = [f"{row['arm']} {row['verdicts']['average']} ({row['worst']['average']:+.3f})" for row in (full, bare)]
        held = full["verdicts"]["average"] == "SAME" and bare["verdicts"]["average"] == "DIFFERENT"
        second = (held, ", ".join(words))
    names = (f"{NAME}/saves-as-predicted", f"{NAME}/ema-moved-same")
    return [outcome(known[name], seeds, *found) for name, found in zip(names, (first, second), strict=True)]


def _difference(saved: Sequence[dict[str, float | None]]) -> tuple[bool | None, str]:
    pairs = [(s["observed"], s["predicted"]) for s in saved if s["observed"] is not None and s["predicted"] is not None]
    if len(pairs) < len(saved) or len(pairs) < 2:
        return None, f"{len(pairs)} of {len(saved)} seeds have both savings"
    seen, told = np.array(pairs, dtype=float).T
    gap = seen - told
    half = float(stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / math.sqrt(len(gap)))
    low, high = gap.mean() - half, gap.mean() + half
    text = f"observed {seen.mean():.1%}, predicted {told.mean():.1%}, difference [{low:+.1%}, {high:+.1%}]"
    return bool(low <= 0 <= high and low >= -_MARGIN and high <= _MARGIN), text
