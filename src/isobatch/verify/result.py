"""A finished comparison as plain values, ready for result.json; numbers that do not exist become null."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from isobatch.verify import equivalence
from isobatch.verify.advice import next_actions
from isobatch.verify.cells import recipe_values
from isobatch.verify.comparison import Comparisons
from isobatch.verify.judging import CEILING, ArmTest
from isobatch.verify.workers import Curve


def to_dict(result: Comparisons, *, searched: bool = False) -> dict[str, Any]:
    """Return a comparison as plain values, ready for JSON.

    Args:
        result: a finished comparison.
        searched: whether the largest kappa that is SAME was looked for already.

    Returns:
        Verdicts, figures with intervals, curves, the plan and the rule of the test.
    """
    design, rule = result.design, result.rule
    metric = rule.metrics[rule.metric]
    return {
        "verdict": str(result.verdict),
        "headline_sentence": result.conclusion.headline,
        "verdicts": result.verdicts,
        "headline": result.headline,
        "metric": rule.metric,
        "kappa": result.plan.kappa,
        "batch_size": result.plan.recipe.batch.size,
        "seeds": list(result.seeds),
        "seconds": round(result.seconds, 1),
        "unit": result.recipe.batch.unit,
        "device": design.device,
        "marks": [design.stops[i] for i in design.marks],
        "test": {
            "level": asdict(equivalence.LEVEL),
            "looks": list(design.looks.seeds),
            "margins": result.margins,
            "kind": metric.kind,
            "gap": gap_words(rule.metric, metric.unit),
            "ceiling": CEILING,
            "allow_failures": rule.allow_failures,
            "controls": list(design.controls),
        },
        "metrics": {name: asdict(known) for name, known in rule.metrics.items()},
        "reused": result.reused,
        "arms": {arm: {model: test_values(t) for model, t in models.items()} for arm, models in result.table.items()},
        "mended": _mended(result),
        "next": next_actions(result, searched=searched),
        "recipe": result.recipe.model_dump(mode="json", exclude_none=True),
        "plan": result.plan.to_dict(),
        "facts": result.curves["reference"][0].facts,
        "stops": list(design.stops),
        "curves": {arm: [_curve(curve) for curve in runs] for arm, runs in result.curves.items()},
    }


def gap_words(metric: str, unit: str) -> str:
    """Return the name of a gap, for axes and tables.

    Args:
        metric: that was compared.
        unit: of a difference, "" for a ratio.

    Returns:
        Such as "log loss", or "accuracy (percent)".
    """
    return f"{metric} ({unit})" if unit else f"log {metric}"


def test_values(test: ArmTest) -> dict[str, Any]:
    """Return the test of an arm as plain values.

    Args:
        test: of one arm and model.

    Returns:
        Verdict, gaps with intervals, failures and reasons.
    """
    series = {name: [_number(v) for v in getattr(test, name)] for name in ("mean", "low", "high")}
    return {
        "verdict": str(test.verdict),
        "worst": _number(test.worst),
        "end": _number(test.end),
        "margin": _number(test.margin),
        "first_outside": test.first_outside,
        "seeds_to_decide": test.seeds_to_decide,
        "seeds": test.seeds,
        "failures": [asdict(one) for one in test.failures],
        "outliers": [] if test.gaps is None else [int(i) for i in test.gaps.outliers],
        "reasons": list(test.reasons),
        **series,
    }


def _mended(result: Comparisons) -> dict[str, Any] | None:
    found = result.mended
    if found is None:
        return None
    return {
        "best": found.best,
        "tests": {name: test_values(test) for name, test in found.tests.items()},
        "recipes": {name: recipe_values(recipe) for name, recipe in found.recipes.items()},
        "curves": {
            name: [_curve(curve) for curve in runs] for name, runs in found.curves.items() if name == found.best
        },
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "seed": curve.seed,
        "values": curve.values,
        "steps": curve.steps,
        "seconds": round(curve.seconds, 2),
        "stopped": curve.stopped,
    }


def _number(value: float | np.floating[Any]) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
