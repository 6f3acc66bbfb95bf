"""Comparisons made of invented curves: verdicts without training."""

import math
from dataclasses import replace

import numpy as np
from tests.recipes import recipe

from isobatch.tasks import LOSS, PERCENT
from isobatch.verify.comparison import Comparisons, headline_model
from isobatch.verify.design import Criteria, design_of
from isobatch.verify.judging import conclude, failures
from isobatch.verify.workers import Curve

BATCH, NEW = 8, 32
GAPS = {"plan": 0.0, "lr-only": 0.4, "ema-only": -0.4, "unscaled": 0.9}
METRICS = {"loss": LOSS, "accuracy": PERCENT}


def curves(gaps=GAPS, *, seeds=8, spread=0.002, metric="loss", stops=21):
    """Curves whose log loss lies off the reference's by a gap for the average, and by twice that for the raw model.

    A gap may be an array over the stops, or NaN for a run that diverged half-way.
    """
    rng = np.random.default_rng(0)
    level = 2.0 * 0.05 ** np.linspace(0, 1, stops) if metric == "loss" else np.linspace(20, 80, stops)
    made = {}
    for arm, gap in {"reference": 0.0, **gaps}.items():
        made[arm] = []
        for seed in range(seeds):
            values = {}
            for model, factor in (("raw", 2.0), ("average", 1.0)):
                noise = 0.0 if arm == "reference" else spread * rng.standard_normal(stops)
                shift = np.nan_to_num(factor * np.asarray(gap)) + noise
                series = level * np.exp(shift) if metric == "loss" else level + shift
                series[0] = level[0]  # every arm has the same initial weights
                if np.isnan(np.asarray(gap)).any():
                    series = np.where(np.arange(stops) < stops // 2, series, math.nan)
                values[model] = {metric: series.tolist()}
            made[arm].append(Curve(arm, seed, values, 100, 0.5, facts={"data": "invented"}))
    return made


def rule(design, *, metric="loss", margin=None, allow_failures=0, recipe):
    """How `verify run` would judge."""
    margins = {} if margin is None else {headline_model(recipe): margin}
    lr = recipe.optimizer.lr
    return Criteria({metric: METRICS[metric]}, metric, margins, allow_failures, design.marks, design.stops, lr)


def comparison(
    gaps=GAPS, *, margin=None, average=True, metric="loss", seeds=8, allow_failures=0, drawn=None, made=None, **more
):
    """A finished comparison of batch 8 with batch 32."""
    made = made or recipe(task="digits", data_size=1437, **({} if average else {"ema": None}))
    design = design_of(made, NEW, seeds)
    drawn = drawn or curves(gaps, metric=metric, seeds=seeds, **more)
    if not average:
        for curve in (curve for runs in drawn.values() for curve in runs):
            curve.values.pop("average", None)
    judged = rule(design, metric=metric, margin=margin, allow_failures=allow_failures, recipe=made)
    table = judged.judge(drawn, design.looks.level(0))
    lost = failures(drawn["reference"], judged.metrics, metric, design.stops)
    model = headline_model(made)
    conclusion = conclude(table, model, lost, controls=design.controls)
    margins = {name: test.margin for name, test in table["plan"].items()}
    arms = {name: design.arms.get(name, design.arms["plan"]) for name in drawn}
    return Comparisons(replace(design, arms=arms), judged, drawn, table, conclusion, margins, 1.5)
