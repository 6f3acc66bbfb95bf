"""Curves that cannot be judged as they are: paired by seed, complete, numbers, and no run counted twice."""

import math
import re

import numpy as np
import pytest
from tests.fabricated import curves

from isobatch.errors import InputError
from isobatch.tasks import LOSS
from isobatch.verify import Verdict, compare, conclude, judge
from isobatch.verify.equivalence import repeated
from isobatch.verify.workers import Curve

MARKS = tuple(range(2, 21, 2))


def judged(drawn, marks=MARKS, **how):
    return judge(drawn, marks, {"loss": LOSS}, **how)


def test_pairs_are_made_by_seed_in_whatever_order_runs_come():
    drawn = curves()
    for seed, (arm, base) in enumerate(zip(drawn["plan"], drawn["reference"], strict=True)):  # seeds far apart
        for curve in (arm, base):
            for series in curve.values.values():
                series["loss"] = [value * (1 + seed) for value in series["loss"]]
    want = judged(drawn)["plan"]["average"]
    drawn["plan"].reverse()
    drawn["unscaled"] = drawn["unscaled"][3:] + drawn["unscaled"][:3]
    found = judged(drawn)["plan"]["average"]
    assert want.verdict is found.verdict is Verdict.SAME
    assert found.gaps.gap == pytest.approx(want.gaps.gap)


def without(arm, seed):
    def change(drawn):
        drawn[arm] = [curve for curve in drawn[arm] if curve.seed != seed]

    return change


def twice(drawn):
    drawn["plan"][1] = drawn["plan"][0]


def values(change, arm="plan"):
    def changed(drawn):
        change(drawn[arm][3].values)

    return changed


def cut(of):
    of["average"]["loss"] = of["average"]["loss"][:12]


def put(value):
    def change(of):
        of["raw"]["loss"][4] = value

    return change


BROKEN = {
    "no reference": (lambda d: d.pop("reference"), {}, "no runs of 'reference'.*arms: plan, lr-only"),
    "an empty reference": (lambda d: d["reference"].clear(), {}, "no runs of 'reference'"),
    "a seed less": (without("plan", 3), {}, r"arm plan has the seeds \[0, 1, 2, 4, .* takes each seed"),
    "a seed less of the reference": (without("reference", 3), {}, "arm plan has the seeds"),
    "one seed twice": (twice, {}, r"arm plan has the seeds \[0, 0, 2, 3"),
    "cut short": (
        values(cut),
        {},
        "arm plan, seed 3 was evaluated 12 times and others 21 times.*fill the rest with NaN",
    ),
    "the reference cut short": (values(cut, "reference"), {}, "arm reference, seed 3 was evaluated 12 times"),
    "another model": (values(lambda v: v.pop("raw")), {}, "seed 3 measures the models average, others raw, average"),
    "a word": (values(put("0.5")), {}, "loss of the raw model in arm plan, seed 3 holds '0.5', which is no number"),
    "nothing": (values(put(None)), {}, "holds None, which is no number; give NaN"),
    "a truth": (values(put(True)), {}, "holds True"),
    "an empty series": (values(lambda v: v["raw"]["loss"].clear()), {}, "loss of the raw model .* has no values"),
    "a mark beyond": (lambda d: None, {"marks": (2, 21)}, r"marks=\[2, 21\] must be from 0 to 20"),
    "a mark from the end": (lambda d: None, {"marks": (-1,)}, "marks=-1 must be at least 0"),
    "a margin of no model": (lambda d: None, {"margins": {"averge": 0.2}}, "the model 'averge'.*models: raw, average"),
    "failures below none": (lambda d: None, {"allow_failures": -1}, "allow_failures=-1 must be at least 0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_judged_is_refused_by_name(kind):
    change, how, words = BROKEN[kind]
    drawn = curves()
    change(drawn)
    with pytest.raises(InputError, match=words):
        judged(drawn, **how)


def test_runs_that_stopped_may_be_short_and_are_failures():
    drawn = curves()
    for arm, index, short in (("plan", 2, {}), ("plan", 5, {m: {"loss": [2.0]} for m in ("raw", "average")})):
        drawn[arm][index] = Curve(arm, drawn[arm][index].seed, short, 1, 0.1, "stopped at step 1")
    found = judged(drawn, allow_failures=2)["plan"]["average"]
    assert [one.seed for one in found.failures] == [2, 5]
    assert found.gaps.gap.shape == (6, 10)


def test_a_conclusion_needs_its_plan():
    table = judged(curves())
    with pytest.raises(InputError, match=r"no arm 'plan' with a model 'averge' was judged; judged: plan \(raw"):
        conclude(table, "averge")
    with pytest.raises(InputError, match="judged: nothing"):
        conclude({}, "raw")


@pytest.mark.parametrize(("gap", "margin"), [
    ([[1, 2], [3]], [1.0, 1.0]), ([["a"], ["b"]], [1.0]), (None, [1.0]), (np.zeros((8, 1)) * 1j, [1.0]),
    (np.zeros((8, 1)), ["wide"]), (np.zeros((8, 1)), [None]), (np.ones((8, 1), bool), [1.0]),
])  # fmt: skip
def test_gaps_and_margins_are_real_numbers(gap, margin):
    with pytest.raises(InputError, match=r"(gap|margin) must be an array of real numbers"):
        compare(gap, margin)


@pytest.mark.parametrize(("mean", "alone"), [(0.0, Verdict.SAME), (0.5, Verdict.DIFFERENT)])
def test_runs_that_repeat_others_decide_nothing(mean, alone):
    """Four runs given five times each: an interval that took them for twenty would be half as wide as it may be."""
    four = mean + 0.01 * np.random.default_rng(0).standard_normal((4, 10))
    found = compare(np.tile(four, (5, 1)), np.full(10, 0.1))
    assert found.verdict is Verdict.UNDECIDED
    assert found.seeds_to_decide is None
    assert re.match(r"16 of 20 seeds \(positions 4, .*, 11, ...\) repeat.*let the task use its seed", found.reasons[0])
    other = mean + 0.01 * np.random.default_rng(1).standard_normal((20, 10))
    assert compare(other, np.full(10, 0.1)).verdict is alone


def test_what_repeats_by_chance_is_no_repeated_run():
    coarse = np.tile([0.0, 0.01, 0.02, -0.01, 0.0, 0.01], (8, 1))
    assert repeated(coarse) == ()
    bias = np.tile(np.arange(10.0), (8, 1))
    bias[3] += 9.0
    assert repeated(bias) == (), "all but one seed are alike: a metric that hardly varies"
    row = np.arange(1.0, 7.0)
    assert repeated(np.stack([row, 3 * row, 5 * row, 4 * row, row, row + 1e-15])) == (4,)


def test_a_task_that_uses_only_part_of_its_seed_is_found_out():
    drawn = curves()
    for runs in drawn.values():
        for seed in range(4, 8):
            runs[seed] = Curve(runs[seed].arm, seed, runs[seed - 4].values, 100, 0.5)
    found = judged(drawn)
    assert found["plan"]["average"].verdict is found["unscaled"]["average"].verdict is Verdict.UNDECIDED
    assert "4 of 8 seeds (positions 4, 5, 6, 7) repeat the gaps" in found["plan"]["average"].reasons[0]
    assert math.isfinite(found["plan"]["average"].worst)
