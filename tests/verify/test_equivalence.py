"""The test itself: known answers, and how often it is wrong when the truth is planted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.fabricated import comparison, curves

from isobatch.errors import InputError
from isobatch.verify import Verdict, compare, equivalence, gaps, margins
from isobatch.verify.comparison import judge

MARKS, MARGIN = 10, np.full(10, 0.03)


def exactly(mean, deviation, seeds=10, marks=MARKS):
    """Gaps with exactly this mean and standard deviation over seeds, at every mark."""
    z = np.linspace(-1, 1, seeds)
    z = z / z.std(ddof=1)
    return np.broadcast_to(mean, marks) + np.outer(z, np.broadcast_to(deviation, marks))


HALF = stats.t.ppf(0.95, 9) / math.sqrt(10)
WIDE = stats.t.ppf(1 - 0.005 / 2, 9) / math.sqrt(10)


@pytest.mark.parametrize(("mean", "deviation", "wanted"), [
    (0.0, 0.01, "SAME"),
    (0.02, 0.99 * 0.01 / HALF, "SAME"),
    (0.02, 1.01 * 0.01 / HALF, "UNDECIDED"),
    (-0.02, 0.99 * 0.01 / HALF, "SAME"),
    (-0.02, 1.01 * 0.01 / HALF, "UNDECIDED"),
    (0.05, 0.99 * 0.02 / WIDE, "DIFFERENT"),
    (0.05, 1.01 * 0.02 / WIDE, "UNDECIDED"),
    (-0.05, 0.99 * 0.02 / WIDE, "DIFFERENT"),
    (0.03, 1e-9, "UNDECIDED"),
    (0.0, 1.0, "UNDECIDED"),
])  # fmt: skip
def test_the_intervals_decide(mean, deviation, wanted):
    test = compare(exactly(mean, deviation), MARGIN)
    assert str(test.verdict) == wanted
    assert test.worst == pytest.approx(mean, abs=1e-12)
    assert (test.high - test.low) == pytest.approx(2 * HALF * deviation)


def test_one_mark_outside_is_enough_and_is_named():
    mean = np.zeros(MARKS)
    mean[3], mean[7] = 0.06, -0.09
    test = compare(exactly(mean, 0.001), MARGIN)
    assert test.verdict is Verdict.DIFFERENT
    assert test.first_outside == 3
    assert test.worst == pytest.approx(-0.09)
    assert test.seeds_to_decide is None
    assert compare(exactly(0.0, 0.001), MARGIN).first_outside is None


def test_a_margin_may_differ_between_marks():
    gap = exactly(0.05, 0.001)
    assert compare(gap, np.linspace(0.1, 0.06, MARKS)).verdict is Verdict.SAME
    assert compare(gap, np.linspace(0.1, 0.04, MARKS)).verdict is Verdict.DIFFERENT


def rate(verdict, mean, deviation, seeds, monkeypatch, draws=3000, correlation=0.0):
    monkeypatch.setattr(equivalence, "seeds_to_decide", lambda *_: 0)
    rng, count = np.random.default_rng(1), 0
    for _ in range(draws):
        shared = rng.standard_normal((seeds, 1))
        noise = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.standard_normal((seeds, MARKS))
        count += compare(mean + deviation * noise, MARGIN).verdict is verdict
    return count / draws


ERROR = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.parametrize("seeds", [8, 16])
def test_same_is_rarely_wrong_when_the_true_gap_is_the_margin(seeds, monkeypatch):
    mean = np.zeros(MARKS)
    mean[4] = 0.03
    found = rate(Verdict.SAME, mean, 0.005, seeds, monkeypatch)
    assert 0.03 < found <= ERROR


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_same_is_rarely_wrong_when_all_marks_are_at_the_margin(correlation, monkeypatch):
    assert rate(Verdict.SAME, np.full(MARKS, -0.03), 0.01, 8, monkeypatch, 2000, correlation) <= ERROR


@pytest.mark.parametrize(("mean", "correlation"), [(0.03, 0.0), (0.03, 0.9), (-0.03, 0.5), (0.0, 0.0)])
def test_different_is_rarely_wrong_when_no_true_gap_leaves_the_margin(mean, correlation, monkeypatch):
    found = rate(Verdict.DIFFERENT, np.full(MARKS, mean), 0.05, 8, monkeypatch, 2000, correlation)
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_test_has_power(monkeypatch):
    assert rate(Verdict.SAME, np.zeros(MARKS), 0.01, 10, monkeypatch, 500) > 0.99
    assert rate(Verdict.DIFFERENT, np.full(MARKS, 0.06), 0.01, 10, monkeypatch, 500) > 0.99


@settings(max_examples=40)
@given(
    mean=st.lists(st.floats(-0.06, 0.06), min_size=1, max_size=10), deviation=st.floats(0.002, 0.1),
    margin=st.floats(0.02, 0.1),
)  # fmt: skip
def test_seeds_to_decide_is_the_least_number(mean, deviation, margin):
    mean, spread, limit = np.array(mean), np.full(len(mean), deviation), np.full(len(mean), margin)

    def decided(seeds):
        error = deviation / math.sqrt(seeds)
        half, wide = (stats.t.ppf(1 - q, seeds - 1) * error for q in (0.05, 0.05 / len(mean) / 2))
        return (np.abs(mean) + half < margin).all() or (np.abs(mean) - wide > margin).any()

    found = equivalence.seeds_to_decide(mean, spread, limit)
    wanted = next((n for n in range(2, 400) if decided(n)), None)
    assert found == wanted if wanted is not None else found >= 400


def test_a_gap_exactly_at_the_margin_never_decides():
    assert equivalence.seeds_to_decide(np.array([0.03]), np.array([0.01]), np.array([0.03])) == 100_000


def test_gaps_are_paired_logarithms_and_a_diverged_run_counts_as_the_ceiling():
    arm, reference = np.array([[1.0, math.nan], [math.inf, 50.0]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    wanted = [[math.log(0.5), math.log(20)], [math.log(20), math.log(10)]]
    assert gaps(arm, reference, 20.0).tolist() == [pytest.approx(row) for row in wanted]


def test_gaps_in_points_are_differences():
    assert gaps(np.array([[90.0, math.nan]]), np.array([[80.0, 90.0]]), 100.0, ratio=False).tolist() == [[10, -190]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reference_that_diverges_is_refused(bad):
    with pytest.raises(InputError, match=r"the reference run diverged: nothing to compare with; lower optimizer\.lr"):
        gaps(np.ones((2, 2)), np.array([[1.0, 1.0], [1.0, bad]]), 10.0)


def test_margins_are_wider_early_and_never_estimated_from_the_gap():
    assert margins(0.03, 2.3, np.array([2.3, 0.23, 0.023])) == pytest.approx([0.032, 0.05, 0.23])


def test_one_seed_gives_no_interval():
    with pytest.raises(InputError, match="seeds=1 must be at least 2"):
        compare(np.zeros((1, 3)), np.ones(3))


def test_a_diverged_arm_is_different_and_an_arm_that_never_started_too():
    found = comparison({"plan": 0.0, "unscaled": math.nan})
    assert found.verdicts == {"plan": "SAME", "unscaled": "DIFFERENT"}
    assert found.table["unscaled"]["average"].worst == pytest.approx(math.log(20 / 0.1), rel=0.01)
    drawn = curves({"plan": 0.0})
    for curve in drawn["plan"]:
        curve.values = {}
    table, _, _ = judge(drawn, tuple(range(2, 21, 2)), None, "average")
    assert table["plan"]["average"].verdict is Verdict.DIFFERENT


def test_a_reference_that_cannot_start_or_diverges_is_refused_by_the_judge():
    drawn = curves({"plan": 0.0})
    drawn["reference"][2].values = {}
    drawn["reference"][0].stopped = "stopped at step 1"
    with pytest.raises(InputError, match="the reference run cannot start: stopped at step 1"):
        judge(drawn, (2, 4), None, "average")
    drawn = curves({"plan": 0.0})
    drawn["reference"][1].values["raw"]["loss"][8] = math.nan
    with pytest.raises(InputError, match="the reference run diverged"):
        judge(drawn, (2, 4, 6, 8), None, "average")


@pytest.mark.parametrize(("gap", "stop", "wanted"), [
    (0.028, 4, "SAME"), (0.04, 4, "DIFFERENT"), (0.04, 20, "SAME"), (0.075, 20, "DIFFERENT"), (0.09, 3, "SAME"),
])  # fmt: skip
def test_one_mark_decides_by_its_own_margin_and_points_between_marks_are_not_tested(gap, stop, wanted):
    planted = np.zeros(21)
    planted[stop] = gap
    test = comparison({"plan": planted}, spread=1e-4).table["plan"]["average"]
    assert str(test.verdict) == wanted
    assert test.margin[[1, 9]] == pytest.approx([0.03 + 0.002 / 0.05**0.2, 0.03 + 0.002 * 20])


def test_the_headline_is_the_average_where_there_is_one():
    between = comparison({"plan": 0.06}, margin=0.2)
    assert between.headline == "average"
    assert between.verdict is Verdict.SAME
    assert between.table["plan"]["raw"].verdict is Verdict.DIFFERENT
    alone = comparison({"plan": 0.06}, average=False)
    assert alone.headline == "raw"
    assert alone.verdict is Verdict.DIFFERENT
    assert alone.table["plan"].keys() == {"raw"}


def test_other_metrics_are_compared_in_points():
    inside, outside = comparison({"plan": 0.2}, metric="accuracy"), comparison({"plan": 0.8}, metric="accuracy")
    assert inside.metric == "accuracy"
    assert inside.verdict is Verdict.SAME
    assert outside.verdict is Verdict.DIFFERENT
    assert inside.table["plan"]["average"].margin == pytest.approx([0.5] * 10)
