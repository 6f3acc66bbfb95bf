"""The operating characteristic of the equivalence test: verdicts when the truth is planted."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import decay_at, whole
from isobatch.verify import equivalence
from isobatch.verify.comparison import Comparisons, run
from isobatch.verify.workers import Curve

LR_FACTORS = (1.05, 1.1, 1.3)
HALF_LIFE_FACTORS = (1.1, 1.5)
DRAWS = 2000


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
        extra=planted(recipe, batch_size),
        on_estimate=on_estimate,
        on_done=on_done,
    )
    rng = np.random.default_rng(0)
    draws = [rng.choice(seeds, sample, replace=False) for _ in range(DRAWS)]
    shares = {
        arm: {model: _shares(result, arm, model, draws) for model in models} for arm, models in result.table.items()
    }
    return {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "batch_size": batch_size,
        "seeds": seeds,
        "sample": sample,
        "draws": DRAWS,
        "seconds": round(result.seconds, 1),
        "margins": result.bases,
        "shares": shares,
    }


def _shares(result: Comparisons, arm: str, model: str, draws: list[np.ndarray]) -> dict[str, Any]:
    picked, whole_test = list(result.marks), result.table[arm][model]
    reference, values = result.series("reference", model), result.series(arm, model)
    ceiling = equivalence.CEILING * float(reference[:, 0].mean())
    gap = equivalence.gaps(values[:, picked], reference[:, picked], ceiling)
    counts = Counter(str(equivalence.compare(gap[draw], whole_test.margin).verdict) for draw in draws)
    return {
        **{str(verdict): counts[str(verdict)] / len(draws) for verdict in equivalence.Verdict},
        "all_seeds": str(whole_test.verdict),
        "worst": round(whole_test.worst, 5),
        "deviation": round(float(gap.std(0, ddof=1).max()), 5),
    }


def table(data: dict[str, Any]) -> list[list[str]]:
    """Return the characteristic as rows of cells.

    Args:
        data: what `measure` returns.

    Returns:
        Rows, the first one the header.
    """
    rows = [["arm", "model", "SAME", "UNDECIDED", "DIFFERENT", "all seeds", "worst gap"]]
    for arm, models in data["shares"].items():
        for model, share in models.items():
            counts = [f"{share[name]:.1%}" for name in ("SAME", "UNDECIDED", "DIFFERENT")]
            rows.append([arm, model, *counts, share["all_seeds"], f"{share['worst']:+.4f}"])
    return rows
