"""The grid "late": the learning rate stays, the batch alone is raised, early or late, against fixed batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isobatch.plan import Recipe
from isobatch_studies.adaptive.paths import Path
from isobatch_studies.claims import Finding, claims, outcome
from isobatch_studies.paired import MeanInterval, interval

NAME, GRID = "adaptive", "late"
SMALL, LARGE, EARLY, LATE, STEPS = "small", "large", "early", "late", "large, as many steps"
_CAUGHT_UP = 0.03


def arms(rules: dict[str, Any]) -> dict[str, Recipe]:
    """Return the recipes by arm; all but those with as many steps take the same samples.

    Args:
        rules: the criteria of the grid.

    Returns:
        Arm -> recipe, the small batch first; last the arms beside the claims: LATE and STEPS with another optimizer.
    """
    small, large, switch = rules["small"], rules["large"], rules["switch"]
    length = rules["length"]
    early, late = (int(length * switch[word]) // large * large for word in (EARLY, LATE))
    steps = late // small + (length - late) // large
    stages = {
        SMALL: None,
        LARGE: [[0, large]],
        EARLY: [[0, small], [early, large]],
        LATE: [[0, small], [late, large]],
        STEPS: [[0, large]],
    }
    lengths = {arm: steps * large if arm == STEPS else length for arm in stages}
    made = {arm: _recipe(rules, found, lengths[arm]) for arm, found in stages.items()}
    for name, optimizer in rules.get("beside", {}).items():
        other = rules | {"recipe": rules["recipe"] | {"optimizer": optimizer}}
        made |= {f"{arm}, {name}": _recipe(other, stages[arm], lengths[arm]) for arm in (LATE, STEPS)}
    return made


def _recipe(rules: dict[str, Any], stages: list[list[int]] | None, length: int) -> Recipe:
    batch: dict[str, Any] = {"size": rules["small"]}
    if stages is not None:
        named = [[f"{start} samples", size] for start, size in stages]
        batch |= {"schedule": named, "schedule_lr": "keep"}
    return Recipe.parse({**rules["recipe"], "batch": batch, "schedule": {"length": f"{length} samples"}})


def rows(paths: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """Return one row an arm: steps, samples, and the raw model's held-out loss over the run and at its end.

    Args:
        paths: arm -> runs by seed.

    Returns:
        Plain values.
    """
    return [
        {
            "arm": arm,
            "steps": len(runs[0].batches),
            "samples": sum(runs[0].batches),
            "final": [run.values["raw"]["loss"][-1] for run in runs],
            "mean": interval([run.values["raw"]["loss"][-1] for run in runs]).to_dict(),
            "seen": runs[0].seen,
            "at_step": (np.searchsorted(np.cumsum(runs[0].batches), runs[0].seen) + 1).tolist(),
            "losses": np.mean([run.losses for run in runs], axis=0).round(5).tolist(),
            "seconds": round(float(np.mean([run.seconds for run in runs])), 1),
        }
        for arm, runs in paths.items()
    ]


def beside(table: Sequence[dict[str, Any]], rules: dict[str, Any]) -> list[list[str]]:
    """Return how far the raised batch is behind the large one at as many steps: after the switch, and at the end.

    Args:
        table: one row an arm.
        rules: the criteria of the grid.

    Returns:
        Rows of a table, its head first: log loss of the seeds' mean over the run, paired intervals at the end.
    """
    made = [["arm", "steps at the large batch", "log loss over the large batch at as many steps"]]
    found = {row["arm"]: row for row in table}
    for arm in (EARLY, LATE) if STEPS in found else ():
        row, whole = found.get(arm, {"at_step": [], "losses": []}), found[STEPS]
        switch = int(rules["length"] * rules["switch"][arm]) // rules["large"] * rules["large"] // rules["small"]
        gaps = np.log(row["losses"]) - np.log(np.interp(row["at_step"], whole["at_step"], whole["losses"]))
        seen = [(step - switch, gap) for step, gap in zip(row["at_step"], gaps, strict=True) if step >= switch]
        made += [[arm, f"{after:.0f}", f"{gap:+.3f}"] for after, gap in (*seen[:2], *seen[-1:])]
    for arm in found:
        large = arm.replace(LATE, STEPS, 1)
        if arm.startswith(LATE) and large in found:
            gap = _log_ratio(np.array(found[arm]["final"]), np.array(found[large]["final"]))
            made.append([arm, "at the end", _shown(gap)])
    return made


def judge(table: Sequence[dict[str, Any]], seeds: int) -> list[Finding]:
    """Compute `held` of every claim of the grid.

    Args:
        table: one row an arm.
        seeds: that were run.

    Returns:
        Outcomes in the order of criteria.json; None where arms are missing.
    """
    known, final = claims(NAME, GRID), {row["arm"]: np.array(row["final"]) for row in table}
    judged = {
        "adaptive/late-beats-early": _beats(final, (EARLY,)),
        "adaptive/late-beats-constant": _beats(final, (SMALL, LARGE)),
        "adaptive/fast-catch-up": _caught_up(final),
    }
    return [outcome(claim, seeds, *judged[name]) for name, claim in known.items()]


def _beats(final: Mapping[str, np.ndarray], others: Sequence[str]) -> tuple[bool | None, str]:
    if LATE not in final or any(arm not in final for arm in others):
        return None, "arms are missing"
    gaps = {arm: _log_ratio(final[arm], final[LATE]) for arm in others}
    told = "; ".join(f"log loss of {arm} over late {_shown(gap)}" for arm, gap in gaps.items())
    return all(gap.low > 0 for gap in gaps.values()), told


def _caught_up(final: Mapping[str, np.ndarray]) -> tuple[bool | None, str]:
    if LATE not in final or STEPS not in final:
        return None, "arms are missing"
    gap = _log_ratio(final[LATE], final[STEPS])
    return gap.high < _CAUGHT_UP, f"log loss of late over the large batch at as many steps {_shown(gap)}"


def _log_ratio(one: np.ndarray, other: np.ndarray) -> MeanInterval:
    return interval(np.log(one / other).tolist())


def _shown(gap: MeanInterval) -> str:
    return f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
