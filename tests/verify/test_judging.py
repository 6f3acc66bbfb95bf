"""The judge: gaps by kind, fixed margins, failures that never become gaps, controls: verdicts that cannot be fooled."""

import math

import numpy as np
import pytest
from tests.fabricated import GAPS, comparison, curves
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.tasks import LOSS, Metric
from isobatch.verify import RecipeFails, Verdict, conclude, judge, margin_of
from isobatch.verify.intervals import Level
from isobatch.verify.judging import ArmTest, cannot_tell, failure, gaps
from isobatch.verify.workers import Curve

MARKS = tuple(range(2, 21, 2))
ACCURACY = {"percent": Metric("difference", better="higher", unit="percent"),
            "fraction": Metric("difference", better="higher", unit="fraction")}  # fmt: skip
DENSITY = Metric("difference", better="higher", unit="nats", scale=2.0)
NATS = Metric("difference", better="lower", unit="nats", scale=2.0)


@pytest.mark.parametrize(("metric", "model", "given", "wanted"), [
    (LOSS, "average", None, math.log(1.03)),
    (LOSS, "raw", None, math.log(1.05)),
    (LOSS, "raw, 4 views", None, math.log(1.05)),
    (LOSS, "average", 0.1, math.log(1.1)),
    (ACCURACY["percent"], "average", None, 0.5),
    (ACCURACY["fraction"], "average", None, 0.005),
    (ACCURACY["percent"], "raw", None, 1.0),
    (ACCURACY["fraction"], "raw", None, 0.01),
    (ACCURACY["percent"], "average", 2.0, 2.0),
    (NATS, "average", None, 0.01),
    (NATS, "raw", 0.05, 0.05),
])  # fmt: skip
def test_a_margin_depends_on_the_declaration_alone(metric, model, given, wanted):
    assert margin_of(metric, model, given) == pytest.approx(wanted)


@pytest.mark.parametrize(("metric", "given", "message"), [
    (LOSS, 0.26, r"margin=0.26 must be in \(0, 0.25\] \(of the ratio\)"),
    (LOSS, 0.0, "margin=0 must be in"),
    (LOSS, -1.0, "margin=-1 must be in"),
    (LOSS, math.inf, "margin=inf must be in"),
    (LOSS, math.nan, "margin=nan must be in"),
    (ACCURACY["percent"], 26.0, r"margin=26 must be in \(0, 5\] \(percent\)"),
    (ACCURACY["fraction"], 0.5, r"margin=0.5 must be in \(0, 0.05\] \(fraction\)"),
    (NATS, 0.11, r"margin=0.11 must be in \(0, 0.1\] \(nats\)"),
])  # fmt: skip
def test_a_margin_that_would_swallow_everything_is_refused(metric, given, message):
    with pytest.raises(InputError, match=message):
        margin_of(metric, "average", given)


def test_gaps_are_logarithms_of_ratios_or_differences_and_nothing_is_clipped():
    arm, reference = np.array([[1.0, 1e15]]), np.array([[2.0, 1.1]])
    assert gaps(arm, reference, LOSS).tolist() == [pytest.approx([math.log(0.5), math.log(1e15 / 1.1)])]
    assert gaps(arm, reference, NATS).tolist() == [pytest.approx([-1.0, 1e15 - 1.1])]


def run(series, *, seed=0, stopped="", name="loss"):
    return Curve("plan", seed, {"raw": {name: list(series)}}, 10, 0.1, stopped)


@pytest.mark.parametrize(("curve", "metrics", "wanted"), [
    (run([2.0, 1.0]), {"loss": LOSS}, ""),
    (run([2.0, 19.9]), {"loss": LOSS}, ""),
    (run([2.0, 20.1]), {"loss": LOSS}, "loss of the raw model is 20.1 after 64 samples, 2 at the start"),
    (run([2.0, math.inf]), {"loss": LOSS}, "loss of the raw model is inf"),
    (run([2.0, math.nan]), {"loss": LOSS}, "loss of the raw model is nan"),
    (run([2.0, 1.0], stopped="stopped at step 3"), {"loss": LOSS}, "stopped at step 3"),
    (Curve("plan", 0, {}, 0, 0.0), {"loss": LOSS}, "never started"),
    (run([-1.0, -2.0], name="nll"), {"nll": NATS}, ""),
    (run([-1.0, 20.0], name="nll"), {"nll": NATS}, "nll of the raw model is 20"),
    (run([-1.0, math.inf], name="nll"), {"nll": NATS}, "nll of the raw model is inf"),
    (run([10.0, 90.0], name="accuracy"), {"accuracy": ACCURACY["percent"]}, ""),
    (run([-1.0, 40.0], name="density"), {"density": DENSITY}, ""),
    (run([-1.0, -20.9], name="density"), {"density": DENSITY}, ""),
    (run([-1.0, -21.1], name="density"), {"density": DENSITY}, "density of the raw model is -21.1"),
])  # fmt: skip
def test_a_failed_run_is_one_that_stopped_left_the_finite_or_lost_ten_times_its_start(curve, metrics, wanted):
    found = failure(curve, metrics, next(iter(metrics)), (0, 64))
    assert found.startswith(wanted)
    assert bool(found) == bool(wanted)


def test_a_failure_of_another_metric_counts_too():
    curve = Curve("plan", 0, {"raw": {"loss": [1.0, 1.0], "aux": [1.0, 11.0]}}, 1, 0.1)
    assert "aux of the raw model is 11" in failure(curve, {"loss": LOSS, "aux": LOSS}, "loss")


def spoilt(bad, value=math.nan, arm="plan", gap=0.0, seeds=8):
    """Curves of which some seeds of an arm leave the finite (or take a value) half-way."""
    drawn = curves({**GAPS, "plan": gap}, seeds=seeds)
    for curve in drawn[arm]:
        if curve.seed in bad:
            for series in curve.values.values():
                series["loss"][10:] = [value] * 11
    return drawn


@pytest.mark.parametrize(("bad", "value", "wanted"), [
    ((), math.nan, "SAME"),
    ((3,), math.nan, "UNDECIDED"),
    ((3,), math.inf, "UNDECIDED"),
    ((3,), 1e15, "UNDECIDED"),
    ((0, 1), math.nan, "UNDECIDED"),
    ((0, 1, 2, 3, 4), math.nan, "DIFFERENT"),
    (tuple(range(8)), math.nan, "DIFFERENT"),
    (tuple(range(8)), 1e15, "DIFFERENT"),
    (tuple(range(8)), 1e300, "DIFFERENT"),
])  # fmt: skip
def test_a_diverged_seed_is_never_same_and_stands_in_the_headline(bad, value, wanted):
    found = comparison(drawn=spoilt(bad, value))
    assert str(found.verdict) == wanted
    assert [f.seed for f in found.table["plan"]["average"].failures] == list(bad)
    for seed in bad:
        assert f"plan failed in {len(bad)} of 8 seeds" in found.conclusion.headline
        assert str(seed) in found.conclusion.headline


@pytest.mark.parametrize(
    ("bad", "allowed", "wanted"),
    [((3,), 1, "SAME"), ((3, 4), 1, "UNDECIDED"), ((3, 4), 2, "SAME"), ((0, 1, 2, 3, 4), 4, "DIFFERENT")],
)
def test_failures_may_be_allowed_beforehand_and_are_still_named(bad, allowed, wanted):
    found = comparison(drawn=spoilt(bad), allow_failures=allowed)
    assert str(found.verdict) == wanted
    assert f"plan failed in {len(bad)} of 8 seeds ({', '.join(map(str, bad))})" in found.conclusion.headline


@pytest.mark.parametrize(("level", "wanted"), [
    (Level(), Verdict.DIFFERENT), (Level(0.0125, 0.00625), Verdict.UNDECIDED), (Level().shared(2), Verdict.UNDECIDED),
    (Level(0.05, 0.017), Verdict.DIFFERENT), (Level(0.05, 0.016), Verdict.UNDECIDED),
])  # fmt: skip
def test_failures_differ_at_the_level_of_the_look(level, wanted):
    """5 of 10 against none: (10 over 5) / (20 over 5) = 252 / 15504 = 0.01625 by chance."""
    drawn = spoilt((0, 1, 2, 3, 4), seeds=10)
    assert judge(drawn, MARKS, {"loss": LOSS}, level=level)["plan"]["average"].verdict is wanted


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e15])
def test_a_reference_that_fails_is_a_verdict_about_the_recipe(value):
    message = r"the recipe itself fails in 2 of 8 seeds \(seed 2: .*; seed 5: .*\).*lower optimizer.lr \(0.1\)"
    with pytest.raises(RecipeFails, match=message) as caught:
        comparison(drawn=spoilt((2, 5), value, arm="reference"), made=recipe(task="digits", optimizer={"lr": 0.1}))
    assert [one.seed for one in caught.value.failures] == [2, 5]
    found = comparison(drawn=spoilt((2, 5), value, arm="reference"), allow_failures=2)
    assert "reference failed in 2 of 8 seeds (2, 5)" in found.conclusion.headline
    assert found.table["plan"]["average"].gaps.gap.shape == (6, 10)


def test_a_reference_without_a_single_whole_run_is_refused_whatever_is_allowed():
    with pytest.raises(RecipeFails, match="in 8 of 8 seeds"):
        judge(spoilt(range(8), arm="reference"), MARKS, {"loss": LOSS}, allow_failures=8)


def test_a_reference_above_the_ceiling_gives_no_gap_of_zero():
    """Both sides far above the start: neither is clipped to the other."""
    drawn = spoilt(range(8), 1e6, arm="reference")
    for curve in drawn["plan"]:
        for series in curve.values.values():
            series["loss"][10:] = [1e9] * 11
    with pytest.raises(RecipeFails):
        comparison(drawn=drawn)


@pytest.mark.parametrize(("gaps_", "wanted", "words"), [
    ({"plan": 0.0, "lr-only": 0.4, "ema-only": 0.0, "unscaled": 0.0}, "SAME", "the plan is SAME (averaged model)"),
    ({"plan": 0.0, "lr-only": 0.0, "ema-only": 0.0, "unscaled": 0.0}, "UNDECIDED",
     "SAME, but this test could not have told: no control is DIFFERENT (lr-only, ema-only, unscaled)"),
    ({"plan": 0.5, "lr-only": 0.0, "ema-only": 0.0, "unscaled": 0.0}, "DIFFERENT", "the plan is DIFFERENT"),
])  # fmt: skip
def test_same_needs_a_control_that_fails(gaps_, wanted, words):
    found = comparison(gaps_)
    assert str(found.verdict) == found.verdicts["plan"] == wanted
    assert found.conclusion.headline.startswith(words)


@pytest.mark.parametrize(("moved", "margin", "tells"), [
    (0.0, 0.03, False), (0.0599, 0.03, False), (0.0601, 0.03, True), (1.5, 1.0, False), (2.0, 1.0, True),
])  # fmt: skip
def test_a_reference_that_moves_by_less_than_two_margins_tells_nothing(moved, margin, tells):
    plan, control = (
        ArmTest(verdict, None, 10, margin, 8, (), moved=moved) for verdict in (Verdict.SAME, Verdict.DIFFERENT)
    )
    why = cannot_tell(plan, {"unscaled": control})
    assert (why == "") == tells
    assert tells or f"moves by {moved:.3g} in the whole run, less than 2 margins of {margin:.3g}" in why
    found = conclude({"plan": {"raw": plan}, "unscaled": {"raw": control}}, "raw")
    assert found.verdict is (Verdict.SAME if tells else Verdict.UNDECIDED)


def test_without_controls_nothing_is_same_and_the_control_must_fail_on_the_same_model():
    table = comparison({"plan": 0.0, "unscaled": 0.04}).table
    assert table["unscaled"]["average"].verdict is Verdict.DIFFERENT
    assert conclude({"plan": table["plan"]}, "average").headline.endswith("no control was trained")
    assert conclude({"plan": table["plan"]}, "average").verdict is Verdict.UNDECIDED
    raw_only = comparison({"plan": 0.0, "unscaled": 0.02})  # twice that for the raw model
    assert raw_only.table["unscaled"]["average"].verdict is Verdict.SAME
    assert raw_only.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(("values", "unit", "message"), [
    ([0.1, 0.9], "percent", 'never exceeds 0.9 in the reference: declare unit="fraction"'),
    ([10.0, 90.0], "fraction", "accuracy is 10 in arm reference, seed 0, raw model, outside 0 to 1 of unit='fraction'"),
    ([10.0, 101.0], "percent", "outside 0 to 100 of unit='percent'"),
    ([-0.1, 0.5], "fraction", "accuracy is -0.1"),
])  # fmt: skip
def test_percent_and_fraction_cannot_be_confused(values, unit, message):
    drawn = {
        arm: [Curve(arm, s, {"raw": {"accuracy": values}}, 1, 0.1) for s in range(8)] for arm in ("reference", "plan")
    }
    with pytest.raises(InputError, match=message):
        judge(drawn, (1,), {"accuracy": ACCURACY[unit]}, metric="accuracy")


@pytest.mark.parametrize("value", [0.0, -0.3])
def test_a_ratio_of_zero_or_less_is_refused_with_the_way_out(value):
    drawn = spoilt((4,), value)
    with pytest.raises(InputError, match=rf"loss is {value:g} in arm plan, seed 4.*declare it as Metric\(.difference"):
        comparison(drawn=drawn)


def test_a_metric_that_is_not_declared_is_not_judged():
    with pytest.raises(InputError, match="metric='loss' is not declared; declared: accuracy"):
        judge(curves(), MARKS, {"accuracy": ACCURACY["percent"]})


@pytest.mark.parametrize(
    ("points", "wanted"), [(0.2, "SAME"), (0.8, "DIFFERENT"), (-0.8, "DIFFERENT"), (26.0, "DIFFERENT")]
)
@pytest.mark.parametrize(("unit", "scale"), [("percent", 1.0), ("fraction", 0.01)])
def test_points_are_judged_alike_in_percent_and_as_a_fraction(points, wanted, unit, scale):
    drawn = curves({"plan": -points, "unscaled": 9.0}, metric="accuracy", spread=0.05)
    for runs in drawn.values():
        for curve in runs:
            for series in curve.values.values():
                series["accuracy"] = [min(max(v, 0.0), 100.0) * scale for v in series["accuracy"]]
    table = judge(drawn, MARKS, {"accuracy": ACCURACY[unit]}, metric="accuracy")
    assert str(table["plan"]["average"].verdict) == wanted


def test_the_headline_is_the_average_where_there_is_one():
    between = comparison({**GAPS, "plan": 0.06}, margin=0.2)
    assert between.headline == "average"
    assert between.verdict is Verdict.SAME
    assert between.table["plan"]["raw"].verdict is Verdict.DIFFERENT
    alone = comparison({**GAPS, "plan": 0.06}, average=False)
    assert alone.headline == "raw"
    assert alone.verdict is Verdict.DIFFERENT
    assert alone.table["plan"].keys() == {"raw"}


@pytest.mark.parametrize(("gap", "stop", "wanted"), [
    (0.025, 4, "SAME"), (0.04, 4, "DIFFERENT"), (0.04, 20, "DIFFERENT"), (-0.04, 20, "DIFFERENT"), (0.09, 3, "SAME"),
])  # fmt: skip
def test_one_mark_decides_and_points_between_marks_are_not_tested(gap, stop, wanted):
    planted = np.zeros(21)
    planted[stop] = gap
    test = comparison({**GAPS, "plan": planted}, spread=1e-4).table["plan"]["average"]
    assert str(test.verdict) == wanted


def invented(rng, kind, gap, metric, seeds, marks=10):
    """One arm beside its reference, of a kind of trouble; the mean gap is planted at one mark or at all."""
    correlation = rng.choice([0.0, 0.8])
    shared = rng.standard_normal((seeds, 1))
    noise = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.standard_normal((seeds, marks))
    if kind == "skewed":
        noise = (np.exp(0.5 * noise) - math.exp(0.125)) / 0.6 * rng.choice([-1, 1])
    at = np.zeros(marks)
    at[rng.integers(marks) if rng.random() < 0.5 else slice(None)] = gap
    scatter = 0.0 if kind in ("constant", "ties") else rng.uniform(0.05, 1.5) * abs(gap)
    shift = at + scatter * noise
    if kind == "ties":
        shift = np.round(shift, 3)
    level = np.linspace(1.0, 0.2, marks) if metric.kind == "ratio" else np.linspace(0.2, 0.9, marks)
    base = np.tile(level, (seeds, 1))
    arm = base * np.exp(shift) if metric.kind == "ratio" else base + shift
    bad = rng.integers(seeds)
    if kind == "diverged":
        arm[bad, 5:] = rng.choice([math.nan, math.inf, 1e15])
    elif kind == "all diverged":
        arm[:, 5:] = rng.choice([math.nan, 1e15])
    elif kind == "one bad seed":
        arm[:] = base
        arm[bad] = base[bad] * math.exp(seeds * gap) if metric.kind == "ratio" else base[bad] + seeds * gap
    start = np.full((seeds, 1), 1.0)
    both = {"reference": np.hstack([start, base]), "plan": np.hstack([start, arm])}
    return {name: [run(v, seed=s, name="m") for s, v in enumerate(values)] for name, values in both.items()}


KINDS = ("shifted", "skewed", "diverged", "all diverged", "constant", "ties", "one bad seed")


@pytest.mark.parametrize("kind", KINDS)
def test_never_same_when_the_planted_difference_exceeds_the_margin(kind):
    """2,100 generated comparisons over the kinds; no gap beyond the margin by a fifth or more may pass."""
    rng = np.random.default_rng(KINDS.index(kind))
    wrong = []
    for trial in range(300):
        metric = LOSS if rng.random() < 0.5 else NATS
        margin = margin_of(metric, "raw")
        gap = margin * rng.choice([1.2, 1.5, 2.0, 5.0, 20.0]) * rng.choice([-1, 1])
        drawn = invented(rng, kind, gap, metric, int(rng.choice([8, 10, 20])))
        for curve in drawn["plan"]:
            series = curve.values["raw"]["m"]
            series[:] = [v if metric.kind == "difference" or not math.isfinite(v) else max(v, 1e-9) for v in series]
        if judge(drawn, range(1, 11), {"m": metric}, metric="m")["plan"]["raw"].verdict is Verdict.SAME:
            wrong.append(trial)
    assert not wrong


@pytest.mark.parametrize("declaration", [LOSS, NATS])
@pytest.mark.parametrize("values", ["zero", "negative"])
def test_zero_and_negative_values_give_a_verdict_as_differences_and_a_refusal_as_ratios(values, declaration):
    rng = np.random.default_rng(0)
    base = np.tile(np.linspace(0.5, 0.0 if values == "zero" else -0.5, 11), (8, 1))
    arms = {"reference": base, "plan": base + 0.001 * rng.standard_normal(base.shape) * (base != 0)}
    drawn = {name: [run(v, seed=s, name="m") for s, v in enumerate(rows)] for name, rows in arms.items()}
    if declaration is LOSS:
        with pytest.raises(InputError, match="a ratio needs values above 0"):
            judge(drawn, range(1, 11), {"m": LOSS}, metric="m")
    else:
        assert judge(drawn, range(1, 11), {"m": NATS}, metric="m")["plan"]["raw"].verdict is Verdict.SAME
