"""The test itself: known answers, the slow twin, what it must never depend on, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import verdicts as slow

from isobatch.errors import InputError
from isobatch.verify import Verdict, compare, equivalence
from isobatch.verify.equivalence import Level

MARKS, MARGIN = 10, np.full(10, 0.03)


def exactly(mean, deviation, seeds=20, marks=MARKS):
    """Symmetric gaps with exactly this mean and standard deviation over seeds, at every mark."""
    z = np.linspace(-1, 1, seeds)
    z = z / z.std(ddof=1)
    return np.broadcast_to(mean, marks) + np.outer(z, np.broadcast_to(deviation, marks))


def halves(seeds, rate, each):
    """Half an interval of symmetric gaps with deviation 1 at fully correlated marks."""
    flat = exactly(0.0, 1.0, seeds).tolist()
    return slow.interval(flat, [1.0] * MARKS, 0, rate, each)[2]


HALF, WIDE = halves(20, 0.05, 0.05), halves(20, 0.025, 0.0025)


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
    assert test.end == pytest.approx(mean, abs=1e-12)
    assert (test.high - test.low) == pytest.approx(2 * HALF * deviation)


def test_one_mark_outside_is_enough_and_the_first_one_is_named():
    mean = np.zeros(MARKS)
    mean[3], mean[7] = 0.06, -0.09
    test = compare(exactly(mean, 0.001), MARGIN)
    assert test.verdict is Verdict.DIFFERENT
    assert test.first_outside == 3
    assert test.worst == pytest.approx(-0.09)
    assert test.end == pytest.approx(0)
    assert test.seeds_to_decide is None
    assert test.reasons == test.outliers == ()
    assert compare(exactly(0.0, 0.001), MARGIN).first_outside is None


def test_a_mark_whose_interval_alone_leaves_the_margin_is_not_called_outside():
    test = compare(exactly(0.0, 0.2), MARGIN)
    assert test.verdict is Verdict.UNDECIDED
    assert test.first_outside is None
    assert (test.high > test.margin).all()


def test_a_margin_may_differ_between_marks():
    gap = exactly(0.05, 0.001)
    assert compare(gap, np.linspace(0.1, 0.06, MARKS)).verdict is Verdict.SAME
    assert compare(gap, np.linspace(0.1, 0.04, MARKS)).verdict is Verdict.DIFFERENT


SHAPES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "right": lambda rng, shape: np.exp(rng.standard_normal(shape)) - 1.65,
    "left": lambda rng, shape: 1.65 - np.exp(rng.standard_normal(shape)),
    "heavy": lambda rng, shape: rng.standard_t(2, shape),
    "ties": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "rare": lambda rng, shape: (rng.random(shape) < 0.08) * 9.0,
}


def drawn(seed, shape, seeds, marks, scale, offset, correlated):
    rng = np.random.default_rng(seed)
    gap = SHAPES[shape](rng, (seeds, marks))
    if correlated:
        gap = 0.5 * gap + SHAPES[shape](rng, (seeds, 1))
    return scale * (gap + offset * rng.standard_normal(marks))


made = st.builds(
    drawn, seed=st.integers(0, 10**6), shape=st.sampled_from(list(SHAPES)), seeds=st.integers(2, 30),
    marks=st.integers(1, 10), scale=st.sampled_from([0.003, 0.01, 0.03, 0.1]), offset=st.sampled_from([0.0, 0.5, 4.0]),
    correlated=st.booleans(),
)  # fmt: skip
levels = st.sampled_from([Level(), Level(0.0125, 0.00625), Level(0.05, 0.001)])


@settings(max_examples=120)
@given(gap=made, level=levels, margin=st.floats(0.01, 0.1))
def test_the_slow_twin_says_the_same(gap, level, margin):
    gap = gap[:, :5]
    limit = margin * np.linspace(1, 1.5, gap.shape[1])
    test = compare(gap, limit, level=level)
    d, D = gap.tolist(), limit.tolist()
    assert str(test.verdict) == slow.verdict(d, D, level.same, level.different)
    assert list(test.outliers) == slow.outliers(d, D)
    ends = [slow.interval(d, D, j, level.same, level.same) for j in range(len(D))]
    assert np.stack([test.mean, test.low, test.high], 1) == pytest.approx(np.array(ends), rel=1e-6, abs=1e-9)


@settings(max_examples=150)
@given(gap=made, seed=st.integers(0, 999), power=st.sampled_from([-40, -3, 5, 20]))
def test_signs_scales_and_orders_of_seeds_and_marks_change_nothing(gap, seed, power):
    margin = 0.03 * np.linspace(1, 1.5, gap.shape[1])
    test = compare(gap, margin)
    mirrored = compare(-gap, margin)
    assert (mirrored.verdict, mirrored.outliers, mirrored.reasons) == (test.verdict, test.outliers, test.reasons)
    assert -mirrored.low == pytest.approx(test.high)
    factor = 2.0**power
    scaled = compare(factor * gap, factor * margin)
    assert (scaled.verdict, scaled.outliers, scaled.reasons) == (test.verdict, test.outliers, test.reasons)
    assert scaled.low / factor == pytest.approx(test.low)
    rng = np.random.default_rng(seed)
    rows, places = rng.permutation(gap.shape[0]), rng.permutation(gap.shape[1])
    mixed = compare(gap[rows][:, places], margin[places])
    assert (mixed.verdict, mixed.reasons) == (test.verdict, test.reasons)
    assert sorted(rows[list(mixed.outliers)]) == sorted(test.outliers)
    assert mixed.high == pytest.approx(test.high[places])


ORDER = {Verdict.DIFFERENT: 0, Verdict.UNDECIDED: 1, Verdict.SAME: 2}


@settings(max_examples=150)
@given(gap=made, factor=st.floats(1, 30))
def test_a_wider_margin_or_a_stricter_level_never_turns_a_verdict_around(gap, factor):
    margin = np.full(gap.shape[1], 0.02)
    test, wider = compare(gap, margin), compare(gap, factor * margin)
    assert ORDER[wider.verdict] >= ORDER[test.verdict]
    stricter = compare(gap, margin, level=Level().shared(3))
    assert stricter.verdict in (test.verdict, Verdict.UNDECIDED)


def test_gaps_that_do_not_vary_decide_nothing():
    for value in (0.0, 0.012, 5.0):
        test = compare(np.full((20, MARKS), value), MARGIN)
        assert test.verdict is Verdict.UNDECIDED
        assert "do not vary from seed to seed at any mark" in test.reasons[0]
        assert test.seeds_to_decide is None
    rounding = 1e-17 * np.random.default_rng(0).standard_normal((20, MARKS))
    assert compare(rounding, MARGIN).verdict is Verdict.UNDECIDED


def test_a_mark_without_spread_is_given_the_largest_one_of_the_others():
    gap = exactly(0.0, np.linspace(0.001, 0.01, MARKS))
    gap[:, 4] = 0.0
    test = compare(gap, MARGIN)
    assert test.verdict is Verdict.SAME
    assert test.high[4] == pytest.approx(test.high[9])
    gap[:, 4] = 0.028
    test = compare(gap, MARGIN)
    assert test.verdict is Verdict.UNDECIDED
    assert "1 of 10 marks do not vary from seed to seed" in test.reasons[1]
    gap[:, 4] = 0.1
    assert compare(gap, MARGIN).verdict is Verdict.DIFFERENT


def test_skewed_gaps_widen_the_side_of_the_tail_and_the_disagreement_is_told():
    rng = np.random.default_rng(3)
    gap = 0.02 * (np.exp(0.5 * rng.standard_normal((20, MARKS))) - 0.7)
    test = compare(gap, MARGIN)
    assert (test.high - test.mean > 1.5 * (test.mean - test.low)).all()
    assert test.verdict is Verdict.UNDECIDED
    (reason,) = test.reasons
    assert reason == (
        "the t interval lies inside the margin, but not once it is stretched for skewed gaps, which 20 seeds do not "
        "rule out"
    )
    outside = compare(0.042 - 1.5 * (gap - gap.mean(0)), MARGIN)
    assert outside.verdict is Verdict.UNDECIDED
    assert "lies outside the margin" in outside.reasons[0]


@pytest.mark.parametrize("seeds", [8, 20, 40])
@pytest.mark.parametrize("size", [4.0, 10.0, 1000.0, 1e6])
@pytest.mark.parametrize("everywhere", [True, False])
def test_one_bad_seed_is_named_and_never_part_of_a_same(seeds, size, everywhere):
    rng = np.random.default_rng(seeds)
    gap = 0.003 * rng.standard_normal((seeds, MARKS))
    gap[5, slice(None) if everywhere else 2] += size * 0.03
    test = compare(gap, MARGIN)
    assert test.verdict is Verdict.UNDECIDED
    assert test.outliers == (5,)


@pytest.mark.parametrize(("last", "wanted"), [(7.0, ()), (9.0, (19,))])
def test_where_most_seeds_tie_the_mean_distance_says_what_is_far(last, wanted):
    gap = np.array([0.0] * 14 + [1.0, -1.0, 1.0, -1.0, 1.0, last])[:, None]
    assert compare(gap, np.ones(1)).outliers == wanted


def test_the_outlier_is_the_only_reason_where_the_mean_is_well_inside():
    gap = 0.001 * np.random.default_rng(0).standard_normal((400, MARKS))
    gap[7, 0] += 0.15
    test = compare(gap, MARGIN)
    assert (test.high < 0.01).all()
    assert test.verdict is Verdict.UNDECIDED
    assert test.reasons == (
        "1 of 400 seeds lies more than 3 margins and 10 robust deviations from the median: the mean hides what "
        "such seeds do",
    )


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: compare(np.zeros((1, 3)), np.ones(3)), "seeds=1 must be at least 2 for an interval; verdicts take 8"),
    (lambda: compare(np.full((3, 2), math.nan), np.ones(2)), "gap must be finite: leave out the seeds that failed"),
    (lambda: compare(np.zeros((3, 2)), np.array([1.0, 0.0])), r"margin=\[1.0, 0.0\] must be positive and finite"),
    (lambda: compare(np.zeros((3, 2)), np.array([1.0, math.inf])), "must be positive and finite"),
    (lambda: compare(np.zeros((3, 2)), np.ones(3)), r"gap has shape \(3, 2\) and margin \(3,\)"),
    (lambda: compare(np.zeros((3, 0)), np.ones(0)), r"must be \(seeds, marks\) and \(marks,\)"),
    (lambda: equivalence.failure_bound(3, 2), "failures=3 must be at most seeds=2"),
    (lambda: equivalence.failure_bound(0, 0), "seeds=0 must be at least 1"),
    (lambda: equivalence.failures_differ(0, 9, 8), "failures=9 must be at most seeds=8"),
    (lambda: equivalence.failures_differ(9, 0, 8), "failures=9 must be at most seeds=8"),
])  # fmt: skip
def test_what_cannot_be_tested_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


@pytest.mark.parametrize(("failures", "seeds"), [(0, 8), (0, 10), (1, 10), (3, 20), (19, 20), (20, 20), (0, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_failure_bound_is_exact(failures, seeds, confidence):
    found = equivalence.failure_bound(failures, seeds, confidence)
    assert found == pytest.approx(slow.failure_bound(failures, seeds, confidence), abs=1e-9)


@pytest.mark.parametrize("seeds", [1, 8, 13])
def test_failures_differ_by_the_exact_test(seeds):
    for a in range(seeds + 1):
        for b in range(seeds + 1):
            rare = min(slow.fisher(a, b, seeds), slow.fisher(b, a, seeds))
            assert equivalence.failures_differ(a, b, seeds) == (rare <= 0.025)
            strict = Level(different=0.001)
            assert equivalence.failures_differ(a, b, seeds, level=strict) == (rare <= 0.001)
