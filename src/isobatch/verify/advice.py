"""What to do after a verdict: where the gap sits, what is known to mend it, how many fresh seeds would decide."""

import math

from isobatch.verify.comparison import Comparisons
from isobatch.verify.design import MARKS
from isobatch.verify.equivalence import MOST_SEEDS, Verdict, failure_bound
from isobatch.verify.judging import ArmTest
from isobatch.verify.mending import MEANING, candidates, early


def next_actions(result: Comparisons, *, searched: bool = False) -> list[str]:
    """Return what to do, and what limits the verdict.

    Args:
        result: a finished comparison.
        searched: whether the largest kappa that is SAME was looked for already.

    Returns:
        Sentences, most useful first.
    """
    plan = result.table["plan"][result.headline]
    said = [f"plan: {reason}" for reason in plan.reasons] + _reused(result)
    if plan.verdict is not Verdict.SAME:
        said += _where(result, plan) + _mends(result, plan) + _seeds(result, plan)
        said += _smaller(result, plan, searched=searched)
    elif result.verdict is not Verdict.SAME:
        said.append(
            "make a control differ: leave --ablate at all, take a larger --batch-size, a longer schedule.length, an "
            "average that is short enough to act, or a scale that fits how far the metric moves"
        )
    if plan.verdict is Verdict.SAME:
        bound = failure_bound(len(plan.failures), plan.seeds)
        said.append(
            f"{plan.seeds - len(plan.failures)} of {plan.seeds} seeds ended; a share of failing seeds up to "
            f"{bound:.0%} cannot be excluded (95%)"
        )
    return said


def _where(result: Comparisons, plan: ArmTest) -> list[str]:
    """First mark outside, where the mean is; a harmless start told from a lasting gap."""
    if plan.first_outside is None:
        return []
    marks, unit = [result.design.stops[i] for i in result.design.marks], result.recipe.batch.unit
    at = plan.first_outside
    said = [
        f"first mark outside the margin: {marks[at]:,} {unit} ({(at + 1) * 100 // MARKS}% of the run), "
        f"gap {plan.mean[at]:+.3f} against ±{plan.margin:.3f}"
    ]
    if early(plan):
        said.append(
            f"a start that heals: the gap at the end is {plan.end:+.3f}, inside ±{plan.margin:.3f}; what you keep is "
            "the same, what you see on the way is not"
        )
    elif abs(plan.end) > plan.margin:
        said.append(f"a lasting gap: {plan.end:+.3f} at the end of the run")
    closest = min(
        (arm for arm in result.table if math.isfinite(result.table[arm][result.headline].worst)),
        key=lambda arm: abs(result.table[arm][result.headline].worst),
        default="plan",
    )
    if closest != "plan":
        said.append(f"the closest arm is {closest} (worst gap {result.table[closest][result.headline].worst:+.3f})")
    return said


def _mends(result: Comparisons, plan: ArmTest) -> list[str]:
    """What was tried, or should be."""
    if result.mended is not None:
        said = []
        for name, test in result.mended.tests.items():
            blind = test.verdict is Verdict.SAME and not result.mended.told
            what = f"tried {MEANING.get(name, name)}: {test.verdict}{', but this test could not have told' * blind}"
            gap = "no gap: too few seeds ended" if test.gaps is None else f"worst gap {test.worst:+.3f}"
            said.append(f"{what}, {gap} against ±{test.margin:.3f}")
        return said
    said = []
    if _has_invariant(result):
        said.append("use the batch-size invariant form of the optimizer: --optimizer invariant, or let --mend try it")
    average = result.table["plan"].get("average")
    if average is not None and early(average) and result.recipe.ema is not None and result.recipe.ema.kind == "plain":
        said.append('the gap sits at the first marks: ema.kind = "hold" in the recipe, or let --mend try it')
    return said


def _has_invariant(result: Comparisons) -> bool:
    plan = result.plan.recipe
    return "invariant" in candidates(plan, result.recipe, None)


def _seeds(result: Comparisons, plan: ArmTest) -> list[str]:
    if plan.verdict is not Verdict.UNDECIDED or plan.failures:
        return []
    fresh = result.seeds[-1] + 1
    if plan.seeds_to_decide is None:
        why = "the gap lies too near the margin, or scatters too far"
        return [f"even {MOST_SEEDS} fresh seeds would not decide four times in five: {why}"]
    return [
        f"{plan.seeds_to_decide} fresh seeds would decide four times in five: --seeds {plan.seeds_to_decide} "
        f"--seed-from {fresh}"
    ]


def _smaller(result: Comparisons, plan: ArmTest, *, searched: bool) -> list[str]:
    kappa, base = result.plan.kappa, result.recipe.batch.size
    if kappa == 1 or (result.mended is not None and result.mended.best is not None):
        return []
    half = round(math.log2(kappa) / 2)
    smaller = base * 2**half if half >= 0 else max(base // 2**-half, 1)
    search = "" if searched else ", or --max-kappa for the largest one that is SAME"
    said = [f"try a smaller change: --batch-size {smaller}{search}"] if smaller not in (base, base * kappa) else []
    if kappa > 1 and early(plan):
        said.append("or start at the reference batch and switch later: batch.schedule in the recipe")
    elif kappa > 1:
        said.append("past the useful batch no rule keeps the run: `isobatch noise measure`, or a large-batch remedy")
    return said


def _reused(result: Comparisons) -> list[str]:
    if result.reused is None:
        return []
    most = max(result.seeds[-1] + 1, int(result.reused["seed_from"]) + int(result.reused["seeds"]))
    return [
        f"{result.reused['shared']} of these seeds were judged before ({result.reused['verdict']} after "
        f"{result.reused['seeds']}): looking again raises the rate of wrong verdicts; fresh ones: --seed-from {most}"
    ]
