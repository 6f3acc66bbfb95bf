"""Seeds that a verdict takes, advice that holds when it is followed, and looks fixed before the run."""

import numpy as np
import pytest
from scipy import stats
from tests.reference import verdicts as slow

from isobatch.errors import InputError
from isobatch.verify import compare
from isobatch.verify.equivalence import DEFAULT_SEEDS, LEAST_SEEDS, LEVEL, MOST_SEEDS, Level, Verdict, seeds_for_power
from isobatch.verify.intervals import SAME, UNDECIDED, decide
from isobatch.verify.power import least, seeds_to_decide
from isobatch.verify.sequential import Looks


def same(ratio, seeds, marks=10, repetitions=2000):
    gap = ratio * np.random.default_rng(5).standard_normal((repetitions, seeds, marks))
    return np.mean(decide(gap, np.ones(marks)).verdict == SAME)


@pytest.mark.parametrize(("ratio", "marks"), [(0.5, 10), (1.0, 10), (1.0, 1)])
def test_the_number_of_seeds_has_the_power_and_one_less_has_not(ratio, marks):
    seeds = seeds_for_power(ratio, marks=marks, repetitions=1000)
    assert same(ratio, seeds, marks) > 0.77
    assert same(ratio, seeds - 1, marks) < 0.83
    assert same(ratio, seeds - 3, marks) < 0.8 or seeds - 3 < LEAST_SEEDS


@pytest.mark.slow
def test_the_default_is_what_a_deviation_of_one_margin_takes():
    assert seeds_for_power(1.0, repetitions=20_000) == DEFAULT_SEEDS
    assert 0.8 <= same(1.0, DEFAULT_SEEDS, repetitions=20_000) < 0.86


def test_few_seeds_are_never_too_few_and_many_are_refused():
    assert seeds_for_power(0.01, repetitions=100) == LEAST_SEEDS == 8
    with pytest.raises(InputError, match=r"3 margins takes more than most=50 seeds for a power of 0.8: widen"):
        seeds_for_power(3.0, most=50, repetitions=100)
    with pytest.raises(InputError, match="deviation_over_margin=0"):
        seeds_for_power(0.0)
    with pytest.raises(InputError, match="power=1"):
        seeds_for_power(1.0, power=1.0)
    with pytest.raises(InputError, match="most=7 must be at least 8"):
        seeds_for_power(1.0, most=7)


def followed(ratio, truth, correlation, first, runs):
    """Of runs that end undecided: how often advice is given, and how often fresh runs that follow it are decided."""
    rng, margin = np.random.default_rng(first), np.ones(6)

    def draw(count, seeds):
        z = np.sqrt(1 - correlation) * rng.standard_normal((count, seeds, 6))
        return truth + ratio * (z + np.sqrt(correlation) * rng.standard_normal((count, seeds, 1)))

    given, decided = 0, []
    undecided = [gap for gap in draw(20 * runs, first) if decide(gap, margin).verdict == UNDECIDED][:runs]
    for gap in undecided:
        number = seeds_to_decide(gap, margin, repetitions=200)
        if number is not None:
            assert LEAST_SEEDS <= number <= MOST_SEEDS
            given += 1
            decided.append(np.mean(decide(draw(20, number), margin).verdict != UNDECIDED))
    return given / len(undecided), np.mean(decided)


def test_advice_that_is_followed_decides():
    given, decided = followed(1.0, 0.0, 0.8, 10, 12)
    assert given > 0.7
    assert decided > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "truth", "correlation", "first"), [
    (1.0, 0.0, 0.0, 10), (1.0, 0.0, 0.8, 10), (2.0, 0.0, 0.8, 20), (1.0, 2.0, 0.8, 10), (1.0, 2.0, 0.0, 8),
    (0.5, 1.5, 0.8, 8), (1.0, 3.0, 0.8, 8),
])  # fmt: skip
def test_advice_holds_in_fresh_runs(ratio, truth, correlation, first):
    _, decided = followed(ratio, truth, correlation, first, 60)
    assert decided > 0.75


def test_no_advice_where_the_mean_is_at_the_margin_or_a_seed_is_bad():
    z = np.linspace(-1, 1, 40)[:, None]
    assert seeds_to_decide(1.0 + 0.3 * z, np.ones(1), repetitions=200) is None
    bad = 0.01 * np.random.default_rng(0).standard_normal((12, 3))
    bad[4] += 50
    assert compare(bad, np.ones(3)).outliers == (4,)
    assert compare(bad, np.ones(3)).seeds_to_decide is None


def test_advice_is_read_from_a_comparison_and_is_the_same_each_time():
    gap = np.random.default_rng(1).standard_normal((10, 4))
    first, second = compare(gap, np.ones(4)), compare(gap.copy(), np.ones(4))
    assert first.verdict is Verdict.UNDECIDED
    assert first.seeds_to_decide == second.seeds_to_decide == seeds_to_decide(gap, np.ones(4))
    assert 12 < first.seeds_to_decide < 100
    gap[:, 2] = 0.0
    assert 8 <= compare(gap, np.ones(4)).seeds_to_decide < 100
    assert compare(0.1 * gap, np.ones(4)).seeds_to_decide is None


@pytest.mark.parametrize("answer", range(8, 41))
def test_the_least_number_is_found(answer):
    asked = []
    assert least(lambda n: asked.append(n) or n >= answer, 8, 40) == answer
    assert len(asked) == len(set(asked)) <= 12
    assert max(asked) <= 40


def test_the_least_number_may_not_exist():
    assert least(lambda n: n > 40, 8, 40) is None
    assert least(lambda n: True, 8, 8) == 8


@pytest.mark.parametrize(("least", "most", "wanted"), [
    (10, 40, (10, 20, 30, 40)), (10, 10, (10,)), (10, 11, (10, 11)), (10, 15, (10, 15)), (10, 20, (10, 15, 20)),
    (8, 200, (8, 72, 136, 200)), (20, 60, (20, 33, 47, 60)),
])  # fmt: skip
def test_looks_are_fixed_before_the_run(least, most, wanted):
    assert Looks.between(least, most).seeds == wanted


@pytest.mark.parametrize("seeds", [(10, 20, 30, 40), (8, 9), (10, 100), (5, 7, 9, 10)])
def test_the_levels_of_the_looks_spend_the_error_rates(seeds):
    design = Looks(seeds)
    levels = [design.level(i) for i in range(len(seeds))]
    assert sum(level.different for level in levels) == pytest.approx(LEVEL.different)
    n, bounds = np.array(seeds), stats.norm.isf([level.same for level in levels])
    shared = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    for k in range(1, len(seeds) + 1):
        law = stats.multivariate_normal(np.zeros(k), shared[:k, :k], seed=0)
        assert 1 - law.cdf(bounds[:k]) == pytest.approx(0.05 * seeds[k - 1] / seeds[-1], abs=2e-4)
        assert levels[k - 1].different == pytest.approx(0.025 * (n[k - 1] - (n[k - 2] if k > 1 else 0)) / n[-1])


def test_the_levels_hold_on_paths_walked_one_by_one():
    design = Looks.between(10, 40)
    levels = [design.level(i).same for i in range(4)]
    assert slow.crossing(design.seeds, levels, 20_000, np.random.default_rng(0)) == pytest.approx(0.05, abs=0.005)


def test_one_look_has_the_whole_level():
    assert Looks((20,)).level(0) == LEVEL == Level(0.05, 0.025)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: Looks(()), r"seeds=\(\) must be rising"),
    (lambda: Looks((10, 10)), r"seeds=\(10, 10\) must be rising"),
    (lambda: Looks((1, 10)), "must be rising whole numbers from 2 on"),
    (lambda: Looks.between(10, 9), r"most=9 must be at least least=10: 10\.\.20"),
    (lambda: Looks.between(1, 9), "least=1 must be at least 2"),
    (lambda: Looks.between(10, 20).level(3), "index=3 must be from 0 to 2"),
    (lambda: Looks.between(10, 20).level(-1), "index=-1 must be at least 0"),
])  # fmt: skip
def test_designs_that_are_none_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_sequential_runs_of_the_same_stop_early():
    design, rng = Looks.between(10, 40), np.random.default_rng(0)
    gap = 0.3 * rng.standard_normal((500, 40, 10))
    used = np.full(500, 0)
    for index, seeds in enumerate(design.seeds):
        decided = decide(gap[:, :seeds], np.ones(10), design.level(index)).verdict == SAME
        used = np.where((used == 0) & decided, seeds, used)
    assert (used > 0).all()
    assert used.mean() < 15
