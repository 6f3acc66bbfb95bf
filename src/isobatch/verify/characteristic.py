"""The operating characteristic of the equivalence test: verdicts when the truth is planted."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import decay_at, whole
from isobatch.verify.comparison import Comparisons, run
from isobatch.verify.equivalence import LEVEL, Verdict
from isobatch.verify.workers import Curve

LR_FACTORS = (1.05, 1.1, 1.3)
HALF_LIFE_FACTORS = (1.1, 1.5)
DRAWS = 500


def planted(recipe: Recipe, batch_size: int) -> dict[str, Recipe]:
    """Return arms whose truth is known: the reference itself, and the plan with a setting moved.

    Args:
        recipe: the reference.
        batch_size: batch of the plan.

    Returns:
        Arms by name; "A/A" is the reference with another sample order.
    """
    plan = recipe.at(batch_size).recipe
    made = {"A/A": recipe}
    for factor in LR_FACTORS:
        optimizer = plan.optimizer.model_copy(update={"lr": plan.optimizer.lr * factor})
        made[f"lr x{factor:g}"] = plan.model_copy(update={"optimizer": optimizer})
    if plan.ema is not None:
        for factor in HALF_LIFE_FACTORS:
            decay = decay_at(recipe.half_life * factor, plan.batch.size * plan.ema.every)
            ema = plan.ema.model_copy(update={"decay": decay, "half_life": None})
            made[f"half-life x{factor:g}"] = plan.model_copy(update={"ema": ema})
    return made


def measure(
    recipe: Recipe,
    batch_size: int,
    *,
    seeds: int = 40,
    sample: int = 10,
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    out: Path | None = None,
    on_folder: Callable[[Path, dict[str, Any] | None], None] | None = None,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> dict[str, Any]:
    """Train planted arms over many seeds, and count the verdicts of subsets of them.

    Args:
        recipe: the reference.
        batch_size: batch of the plan.
        seeds: seeds per arm, at least 40.
        sample: seeds per simulated verdict, drawn without replacement.
        workers: processes, one a core unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        device: as in `run`.
        out: as in `run`.
        on_folder: as in `run`.
        on_estimate: as in `run`.
        on_done: as in `run`.

    Returns:
        Plain values: for each arm and model the share of each verdict, and the verdict of all seeds.

    Raises:
        InputError: too few seeds.
    """
    if whole("seeds", seeds) < 4 * whole("sample", sample, 2):
        raise InputError(f"seeds={seeds} must be at least 4 x sample = {4 * sample}: the draws share too many seeds")
    result = run(
        recipe,
        batch_size,
        seeds=seeds,
        ablate=(),
        workers=workers,
        executor=executor,
        device=device,
        out=out,
        extra=planted(recipe, batch_size),
        on_folder=on_folder,
        on_estimate=on_estimate,
        on_done=on_done,
    )
    rng = np.random.default_rng(0)
    draws = [sorted(rng.choice(seeds, sample, replace=False).tolist()) for _ in range(DRAWS)]
    shares = _shares(result, draws)
    return {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "batch_size": batch_size,
        "seeds": seeds,
        "sample": sample,
        "draws": DRAWS,
        "seconds": round(result.seconds, 1),
        "metric": result.metric,
        "margins": result.margins,
        "shares": shares,
    }


def _shares(result: Comparisons, draws: list[list[int]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Judge every draw exactly as `verify run` would judge these seeds."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for draw in draws:
        drawn = {arm: [runs[i] for i in draw] for arm, runs in result.curves.items()}
        for arm, models in result.rule.judge(drawn, LEVEL).items():
            for model, test in models.items():
                counts.setdefault((arm, model), Counter())[str(test.verdict)] += 1
    shares: dict[str, dict[str, dict[str, Any]]] = {}
    for (arm, model), found in counts.items():
        whole_test = result.table[arm][model]
        shares.setdefault(arm, {})[model] = {
            **{str(verdict): found[str(verdict)] / len(draws) for verdict in Verdict},
            "all_seeds": str(whole_test.verdict),
            "worst": round(whole_test.worst, 5),
            "margin": round(whole_test.margin, 5),
            "failures": len(whole_test.failures),
        }
    return shares


def table(data: dict[str, Any]) -> list[list[str]]:
    """Return the characteristic as rows of cells.

    Args:
        data: what `measure` returns.

    Returns:
        Rows, the first one the header.
    """
    rows = [["arm", "model", "SAME", "UNDECIDED", "DIFFERENT", "all seeds", "worst gap", "margin"]]
    for arm, models in data["shares"].items():
        for model, share in models.items():
            counts = [f"{share[name]:.1%}" for name in ("SAME", "UNDECIDED", "DIFFERENT")]
            rows.append([arm, model, *counts, share["all_seeds"], f"{share['worst']:+.4f}", f"±{share['margin']:.4f}"])
    return rows
