"""The largest kappa that is still SAME, by bisection over powers of two."""

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from isobatch.verify.campaign import Campaign
from isobatch.verify.comparison import Comparisons
from isobatch.verify.equivalence import Verdict
from isobatch.verify.judging import cannot_tell
from isobatch.verify.workers import Curve

_STREAM = 1000


@dataclass(frozen=True)
class Largest:
    """How far the plan holds.

    Args:
        kappa: largest kappa on the grid that is SAME; 1 when none is.
        tried: kappa -> verdict of the plan for the headline model.
        worst: kappa -> worst mean gap.
    """

    kappa: float
    tried: dict[float, Verdict]
    worst: dict[float, float]


def largest_kappa(
    result: Comparisons,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> Largest:
    """Bisect between the reference batch and the batch of a finished comparison, in factors of two.

    The reference's curves are reused. Where the comparison could not tell, nothing is tried. Verdicts need not be
    monotone in kappa; bisection takes them to be. The last SAME of several is what is shown, so that each of the at
    most log2(n) verdicts between n batches has its share of the error rates (Bonferroni).

    Args:
        result: a finished comparison, whose batch is the far end.
        workers: processes, one a core unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        on_done: called with each finished curve.

    Returns:
        The largest kappa that is SAME, and what was tried.
    """
    optimizer = None if result.plan.recipe.optimizer.name == result.recipe.optimizer.name else "invariant"
    base, far = result.recipe.batch.size, result.plan.recipe.batch.size
    grid = [far]
    while (far > base and grid[-1] > 2 * base) or (far < base and 2 * grid[-1] < base):
        grid.append(grid[-1] // 2 if far > base else grid[-1] * 2)
    grid.reverse()
    end = result.table["plan"][result.headline]
    tried, worst = {far / base: result.verdict}, {far / base: end.worst}
    low, high = -1, len(grid) - 1
    if result.verdict is Verdict.SAME:
        return Largest(far / base, tried, worst)
    if cannot_tell(end, {arm: models[result.headline] for arm, models in result.table.items()}):
        return Largest(1.0, tried, worst)  # a test that tells nothing apart would call every batch the same
    work, design = Campaign(result.folder, workers, on_done, executor), result.design
    level = design.looks.level(len(design.looks.seeds) - 1).shared(max(1, math.ceil(math.log2(len(grid)))))
    while high - low > 1:
        middle = (low + high) // 2
        kappa = grid[middle] / base
        plan = {"plan": result.recipe.at(grid[middle], optimizer=optimizer).recipe}
        found = work.train(design.jobs(result.seeds, plan, _STREAM + middle), result.rule)
        table = result.rule.judge({"reference": result.curves["reference"], **found}, level)
        test = table["plan"][result.headline]
        tried[kappa], worst[kappa] = test.verdict, test.worst
        low, high = (middle, high) if test.verdict is Verdict.SAME else (low, middle)
    return Largest(grid[low] / base if low >= 0 else 1.0, dict(sorted(tried.items())), dict(sorted(worst.items())))
