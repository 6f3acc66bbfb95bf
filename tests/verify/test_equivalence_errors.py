"""How often the test is wrong when the truth is planted: at the margin, for normal, skewed and heavy-tailed gaps."""

import math

import numpy as np
import pytest

from isobatch.verify.intervals import DIFFERENT, LEVEL, SAME, Level, decide
from isobatch.verify.sequential import Looks

WIDE = 10.0
FAMILIES = {"one": (1, 0.0), "ten": (10, 0.0), "alike": (10, 0.8)}


def lognormal(sigma, sign=1):
    """Standardised, with the long tail to the side of the sign."""
    square = math.exp(sigma**2)
    return lambda rng, z: sign * (np.exp(sigma * z) - math.sqrt(square)) / math.sqrt(square * (square - 1))


def t3(rng, z):
    return z / np.sqrt(rng.chisquare(3, (*z.shape[:2], 1)))


LAWS = {
    "normal": lambda rng, z: z,
    "t3": t3,
    "right 0.5": lognormal(0.5),
    "left 0.5": lognormal(0.5, -1),
    "right 1": lognormal(1.0),
    "left 1": lognormal(1.0, -1),
}


def drawn(rng, law, repetitions, seeds, marks, correlation):
    z = math.sqrt(1 - correlation) * rng.standard_normal((repetitions, seeds, marks))
    z += math.sqrt(correlation) * rng.standard_normal((repetitions, seeds, 1))
    return LAWS[law](rng, z)


def at_the_margin(law, family, seeds, repetitions):
    """Shares of SAME where one mark is at the margin, of DIFFERENT where all are, and both of plain t intervals."""
    marks, correlation = FAMILIES[family]
    gap = drawn(np.random.default_rng(seeds), law, repetitions, seeds, marks, correlation)
    margin = np.full(marks, WIDE)
    one = decide(gap + WIDE * (np.arange(marks) == marks - 1), margin)
    every = decide(gap + WIDE, margin)
    return tuple(np.mean(x) for x in (one.verdict == SAME, every.verdict == DIFFERENT, one.by_t == SAME,
                                      every.by_t == DIFFERENT))  # fmt: skip


def bound(rate, repetitions):
    return rate + 3 * math.sqrt(rate * (1 - rate) / repetitions)


@pytest.mark.parametrize("seeds", [8, 10, 20])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("law", LAWS)
def test_errors_at_the_margin_stay_below_their_rates(law, family, seeds):
    same, different, _, _ = at_the_margin(law, family, seeds, 1000)
    assert same <= bound(0.05, 1000)
    assert different <= bound(0.025, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [8, 10, 14, 20, 40, 100])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("law", LAWS)
def test_errors_at_the_margin_with_many_repetitions(law, family, seeds):
    same, different, _, _ = at_the_margin(law, family, seeds, 6000)
    assert same <= bound(0.05, 6000)
    assert different <= bound(0.025, 6000)


@pytest.mark.parametrize(("law", "seeds", "wanted"), [("right 1", 10, 0.20), ("right 1", 40, 0.145)])
def test_t_intervals_alone_are_fooled_by_skewed_gaps(law, seeds, wanted):
    _, _, same, _ = at_the_margin(law, "one", seeds, 4000)
    assert same == pytest.approx(wanted, abs=0.02)
    assert at_the_margin(law.replace("right", "left"), "ten", seeds, 1000)[3] > 0.25


@pytest.mark.parametrize("seeds", [20, 40])
def test_normal_gaps_are_not_tested_more_strictly_than_they_need(seeds):
    same, _, _, _ = at_the_margin("normal", "ten", seeds, 4000)
    assert same > 0.03


@pytest.mark.parametrize("family", ["ten", "alike"])
def test_the_true_gap_inside_the_margin_is_hardly_ever_called_different(family):
    marks, correlation = FAMILIES[family]
    gap = drawn(np.random.default_rng(0), "normal", 2000, 10, marks, correlation)
    assert np.mean(decide(gap, np.full(marks, 1.0)).verdict == DIFFERENT) < 0.002


def test_marks_with_tails_to_both_sides_do_not_hide_each_other():
    gap = drawn(np.random.default_rng(0), "right 1", 2000, 20, 10, 0.0) * np.array([1, -1] * 5)
    margin = np.full(10, WIDE)
    one = decide(gap + WIDE * (np.arange(10) == 0), margin)
    assert np.mean(one.verdict == SAME) <= bound(0.05, 2000)
    assert np.mean(one.by_t == SAME) > 0.15


@pytest.mark.parametrize(("seeds", "most"), [(8, 0.08), (20, 0.002), (60, 0.002)])
def test_normal_seeds_are_rarely_outliers(seeds, most):
    gap = np.random.default_rng(0).standard_normal((2000, seeds, 10))
    assert decide(gap, np.full(10, 1e-6)).outliers.any(-1).mean() <= most


@pytest.mark.parametrize("size", [4.0, 10.0, 100.0])
def test_rare_bad_seeds_are_never_part_of_a_same_once_they_are_seen(size):
    rng, margin = np.random.default_rng(0), np.full(10, 1.0)
    bad = rng.random((3000, 20, 1)) < 0.08
    found = decide(0.3 * rng.standard_normal((3000, 20, 10)) + size * bad, margin)
    seen = bad.any((1, 2))
    assert not (found.verdict[seen] == SAME).any()
    assert (found.verdict[~seen] == SAME).mean() > 0.99
    if size > 4:
        assert (found.outliers == bad[..., 0]).all(-1).mean() > 0.99


def looked(law, family, design, mean, repetitions):
    """Verdict of the look that stops."""
    marks, correlation = FAMILIES[family]
    gap = mean + drawn(np.random.default_rng(1), law, repetitions, design.seeds[-1], marks, correlation)
    verdict = np.zeros(repetitions, np.int8)
    for index, seeds in enumerate(design.seeds):
        now = decide(gap[:, :seeds], np.full(marks, WIDE), design.level(index)).verdict
        verdict = np.where(verdict == 0, now, verdict)
    return verdict


@pytest.mark.parametrize("law", ["normal", "right 1", "left 1"])
@pytest.mark.parametrize("family", ["one", "ten"])
def test_looks_do_not_inflate_the_errors(law, family):
    design, marks = Looks.between(10, 40), FAMILIES[family][0]
    one = looked(law, family, design, WIDE * (np.arange(marks) == marks - 1), 1000)
    assert np.mean(one == SAME) <= bound(0.05, 1000)
    assert np.mean(looked(law, family, design, WIDE, 1000) == DIFFERENT) <= bound(0.025, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("between", [(10, 20), (10, 40), (20, 60), (8, 12)])
def test_looks_do_not_inflate_the_errors_with_many_repetitions(law, between):
    design = Looks.between(*between)
    verdict = looked(law, "one", design, WIDE, 6000)
    assert np.mean(verdict == SAME) <= bound(0.05, 6000)
    assert np.mean(verdict == DIFFERENT) <= bound(0.025, 6000)


def test_looking_at_the_full_level_would_inflate_them():
    design = Looks.between(10, 40)
    gap = WIDE + drawn(np.random.default_rng(1), "normal", 3000, 40, 1, 0.0)
    looks = [decide(gap[:, :n], np.array([WIDE]), LEVEL).by_t == SAME for n in design.seeds]
    assert np.mean(np.any(looks, 0)) > 0.09


def test_one_sample_and_many_are_tested_alike():
    gap = drawn(np.random.default_rng(2), "right 0.5", 50, 12, 4, 0.5)
    margin = np.array([0.5, 1.0, 2.0, 4.0])
    many = decide(gap, margin, Level(0.02, 0.01))
    for i in range(50):
        alone = decide(gap[i], margin, Level(0.02, 0.01))
        assert alone.verdict == many.verdict[i]
        assert alone.high == pytest.approx(many.high[i])
