"""Where a value or a batch is left out, and what seeds alone say when they are coarse or on one side."""

import math

import numpy as np
import pytest
from scipy import stats
from tests.reference import critical as slow

from isobatch.critical import Table, TablePoint, fit_table

BATCHES = (16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)
NOISE = (0.03, -0.02, 0.01, 0.02, -0.04, 0.0)


def table(rows, every=None):
    """Rows of samples; every: how far evaluations lie apart."""
    points = (TablePoint(b, tuple(v), () if every is None else tuple(x - every for x in v)) for b, v in rows.items())
    return Table("t", "samples", tuple(points))


@pytest.mark.parametrize("shift", [0.3, 0.5, 0.7, 0.85, 1.5])
def test_a_batch_is_left_out_at_a_thousandth_over_all_batches(shift):
    """By the slow fit of the others: away / (residual sqrt(lever)) over Student's t, two sides, one of six batches."""
    values = [1e5 * (1 + b / 300) * math.exp(e) for b, e in zip(BATCHES, NOISE, strict=True)]
    values[2] *= math.exp(shift)
    rest = [i for i in range(6) if i != 2]
    least, critical, *_ = slow.hyperbola([BATCHES[i] for i in rest], [values[i] for i in rest])
    errors = [math.log(values[i] / (least * (1 + BATCHES[i] / critical))) for i in rest]
    slope = [critical / (critical + b) for b in BATCHES]
    centre = sum(slope[i] for i in rest) / 5
    lever = 1 + 1 / 5 + (slope[2] - centre) ** 2 / sum((slope[i] - centre) ** 2 for i in rest)
    away = math.log(values[2] / (least * (1 + BATCHES[2] / critical)))
    score = away / math.sqrt(sum(e * e for e in errors) / 3 * lever)
    wanted = away > math.log(1.5) and bool(score > stats.t.ppf(1 - 0.0005 / 6, 3))
    found = fit_table(table({b: [v] for b, v in zip(BATCHES, values, strict=True)}), draws=100)
    assert [o.batch for o in found.outliers] == [256.0] * wanted
    assert wanted == (shift > 0.8), "a score between t at 0.0005 (12.9) and at a sixth of it (23.6) is no outlier"


def test_a_value_within_two_evaluations_of_the_others_is_no_outlier():
    rows = {b: [1000 * (1 + b / 300)] * 3 for b in BATCHES[1:4]} | {16.0: [1000, 1000, 1000, 1000, 2000]}
    rows = dict(sorted(rows.items()))
    assert [(o.batch, o.value) for o in fit_table(table(rows, 10.0), draws=100).outliers] == [(16.0, 2000)]
    assert fit_table(table(rows, 1000.0), draws=100).outliers == ()


@pytest.mark.parametrize(("critical", "low", "high"), [(1e9, False, True), (1e-5, True, False), (300, False, False)])
def test_an_interval_over_seeds_is_open_where_the_batches_end(critical, low, high):
    rows = {b: 1e5 * (1 + b / critical) * np.exp([-0.05, -0.02, 0.02, 0.05]) for b in BATCHES[:4]}
    found = fit_table(table(rows), draws=400).seeds
    assert (found.low == 0, found.high == math.inf) == (low, high)


def test_seeds_that_agree_because_evaluations_are_rare_are_one_seed():
    """All of them reached the goal in the same span: more of them say no more about where in it."""
    widths = []
    for seeds in (2, 8):
        rows = {b: [1e5 * (1 + b / 300)] * seeds for b in BATCHES[:4]}
        found = fit_table(table(rows, 2e4), draws=1000).seeds
        widths.append(math.log(found.high / found.low))
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
