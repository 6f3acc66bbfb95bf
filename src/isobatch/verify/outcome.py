"""What a finished comparison says: the next actions, and plain values for result.json."""

import math
from typing import Any

from isobatch.verify import equivalence
from isobatch.verify.comparison import MARKS, Comparisons
from isobatch.verify.equivalence import Comparison, Verdict


def next_actions(result: Comparisons) -> list[str]:
    """Return what to do after a verdict that is not SAME.

    Args:
        result: a finished comparison.

    Returns:
        Sentences, empty after SAME.
    """
    plan = result.table["plan"][result.headline]
    if plan.verdict is Verdict.SAME:
        return []
    actions, first = [], plan.first_outside
    if first is not None:
        actions.append(
            f"first mark outside the margin: {result.stops[result.marks[first]]:,} {result.recipe.batch.unit} "
            f"({(first + 1) * 100 // MARKS}% of the run), gap {plan.mean[first]:+.3f}"
        )
    closest = min(result.table, key=lambda arm: abs(result.table[arm][result.headline].worst))
    if closest != "plan":
        actions.append(f"the closest arm is {closest} (worst gap {result.table[closest][result.headline].worst:+.3f})")
    if plan.seeds_to_decide is not None:
        actions.append(
            f"about {plan.seeds_to_decide} seeds would decide; that is a new run: --seeds {plan.seeds_to_decide}"
        )
    kappa = result.plan.kappa
    smaller = round(result.recipe.batch.size * math.sqrt(kappa))
    actions.append(f"try a smaller kappa: --batch-size {smaller}, or --max-kappa for the largest one that is SAME")
    if first is not None and first <= 2 and kappa > 1:
        actions.append("the gap opens early: start at the reference batch and switch later (progressive scaling)")
    elif kappa > 1:
        actions.append(
            "past the useful batch no rule keeps the run: measure the noise scale, or use a large-batch remedy"
        )
    return actions


def to_dict(result: Comparisons) -> dict[str, Any]:
    """Return a comparison as plain values, ready for JSON.

    Args:
        result: a finished comparison.

    Returns:
        Verdicts, figures with intervals, curves, the plan and the rule of the test.
    """
    marks = [result.stops[i] for i in result.marks]
    return {
        "verdict": str(result.verdict),
        "verdicts": result.verdicts,
        "headline": result.headline,
        "metric": result.metric,
        "kappa": result.plan.kappa,
        "batch_size": result.plan.recipe.batch.size,
        "seeds": list(result.seeds),
        "seconds": round(result.seconds, 1),
        "unit": result.recipe.batch.unit,
        "marks": marks,
        "test": {"level": equivalence.LEVEL.same, "margins": result.bases, "early": equivalence.EARLY},
        "arms": {arm: {model: _comparison(c) for model, c in models.items()} for arm, models in result.table.items()},
        "next": next_actions(result),
        "recipe": result.recipe.model_dump(mode="json", exclude_none=True),
        "plan": result.plan.to_dict(),
        "facts": result.curves["reference"][0].facts,
        "stops": list(result.stops),
        "curves": {
            arm: [
                {
                    "seed": c.seed,
                    "values": c.values,
                    "steps": c.steps,
                    "seconds": round(c.seconds, 2),
                    "stopped": c.stopped,
                }
                for c in runs
            ]
            for arm, runs in result.curves.items()
        },
    }


def _comparison(c: Comparison) -> dict[str, Any]:
    arrays = {name: [round(float(v), 6) for v in getattr(c, name)] for name in ("mean", "low", "high", "margin")}
    return {
        "verdict": str(c.verdict),
        "worst": round(c.worst, 6),
        "first_outside": c.first_outside,
        "seeds_to_decide": c.seeds_to_decide,
        **arrays,
    }
