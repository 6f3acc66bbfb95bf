"""Comparisons made of invented curves: verdicts without training."""

import math

import numpy as np
from tests.recipes import recipe

from isobatch.verify.comparison import Comparisons, judge, stops_for
from isobatch.verify.workers import Curve

BATCH, NEW = 8, 32
GAPS = {"plan": 0.0, "lr-only": 0.4, "ema-only": -0.4, "unscaled": 0.9}


def curves(gaps=GAPS, *, seeds=8, spread=0.002, metric="loss", stops=21):
    """Curves whose log loss lies off the reference's by a gap for the average, and by twice that for the raw model.

    A gap may be an array over the stops, or NaN for a run that diverged half-way.
    """
    rng = np.random.default_rng(0)
    level = 2.0 * 0.05 ** np.linspace(0, 1, stops) if metric == "loss" else np.linspace(10, 95, stops)
    made = {}
    for arm, gap in {"reference": 0.0, **gaps}.items():
        made[arm] = []
        for seed in range(seeds):
            values = {}
            for model, factor in (("raw", 2.0), ("average", 1.0)):
                noise = 0.0 if arm == "reference" else spread * rng.standard_normal(stops)
                shift = np.nan_to_num(factor * np.asarray(gap)) + noise
                series = level * np.exp(shift) if metric == "loss" else level + shift
                if np.isnan(np.asarray(gap)).any():
                    series = np.where(np.arange(stops) < stops // 2, series, math.nan)
                values[model] = {metric: series.tolist()}
            made[arm].append(Curve(arm, seed, values, 100, 0.5, facts={"data": "invented"}))
    return made


def comparison(gaps=GAPS, *, margin=None, average=True, **more):
    """A finished comparison of batch 8 with batch 32."""
    made = recipe(task="digits", data_size=1437, **({} if average else {"ema": None}))
    stops, marks = stops_for(int(made.staircase().length), BATCH, NEW)
    drawn = curves(gaps, **more)
    if not average:
        for curve in (curve for runs in drawn.values() for curve in runs):
            curve.values.pop("average")
    headline = "average" if average else "raw"
    table, metric, bases = judge(drawn, marks, margin, headline)
    seeds = tuple(range(len(drawn["reference"])))
    return Comparisons(made, made.at(NEW), seeds, stops, marks, drawn, table, metric, bases, 1.5)
