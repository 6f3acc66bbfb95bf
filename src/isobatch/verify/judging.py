"""One judge for every comparison: failed runs, gaps by the metric's kind, margins fixed before the run, verdicts.

A failed run (stopped, not finite, or a loss ten times its start) is never turned into a gap: it stands in the verdict
by arm and seed, and SAME is impossible beside it unless so many failures were allowed beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isobatch.errors import InputError
from isobatch.tasks.metric import Metric
from isobatch.units import whole
from isobatch.verify.equivalence import LEVEL, Comparison, Level, Verdict, compare, failure_bound, failures_differ
from isobatch.verify.workers import Curve, check_curves, check_percent, check_values

MARGINS = {"ratio": {"average": 0.03, "raw": 0.05}, "difference": {"average": 0.005, "raw": 0.01}}
"""Largest gap that counts as the same: of a ratio its excess over 1, of a difference its share of the scale."""
WIDEST = {"ratio": 0.25, "difference": 0.05}
CEILING = 10.0
MOVES = 2.0
"""Margins by which the reference itself must move in a whole run before SAME means anything."""
_FEWEST = 2


@dataclass(frozen=True)
class Failure:
    """A run that says nothing about the gap.

    Args:
        seed: of the run.
        why: in a few words.
    """

    seed: int
    why: str


@dataclass(frozen=True)
class ArmTest:
    """The test of one arm against the reference, for one model.

    Args:
        verdict: SAME, DIFFERENT or UNDECIDED, failures counted in.
        gaps: the test of the gaps where both sides ended, None where fewer than two seeds did.
        marks: how many.
        margin: largest gap that counts as the same.
        seeds: that were run.
        failures: of the arm.
        reasons: why the verdict is not what the intervals alone would say.
        moved: how far the reference's mean moved in the whole run, in the unit of the gap.
    """

    verdict: Verdict
    gaps: Comparison | None
    marks: int
    margin: float
    seeds: int
    failures: tuple[Failure, ...]
    reasons: tuple[str, ...] = ()
    moved: float = math.nan

    def _of(self, name: str) -> np.ndarray:
        return np.full(self.marks, math.nan) if self.gaps is None else getattr(self.gaps, name)

    @property
    def mean(self) -> np.ndarray:
        """Mean gap at each mark, over the seeds that ended."""
        return self._of("mean")

    @property
    def low(self) -> np.ndarray:
        """Lower end of the interval at each mark."""
        return self._of("low")

    @property
    def high(self) -> np.ndarray:
        """Upper end of the interval at each mark."""
        return self._of("high")

    @property
    def worst(self) -> float:
        """Largest mean gap over the marks, with its sign; NaN without gaps."""
        return math.nan if self.gaps is None else self.gaps.worst

    @property
    def end(self) -> float:
        """Mean gap at the last mark; NaN without gaps."""
        return math.nan if self.gaps is None else self.gaps.end

    @property
    def first_outside(self) -> int | None:
        """Index of the first mark whose mean lies outside the margin."""
        return None if self.gaps is None else self.gaps.first_outside

    @property
    def seeds_to_decide(self) -> int | None:
        """Fresh seeds that would decide four times in five, None where nothing would or all is decided."""
        return None if self.gaps is None or self.verdict is not Verdict.UNDECIDED else self.gaps.seeds_to_decide


class RecipeFails(InputError):
    """The reference itself fails: a verdict about the recipe, not about its plan.

    Args:
        failures: of the reference.
        seeds: that were run.
        lr: the recipe's learning rate.
        kept: where the finished runs are, empty where nowhere.
    """

    def __init__(self, failures: Sequence[Failure], seeds: int, lr: float, kept: str = ""):
        self.failures = tuple(failures)
        listed = "; ".join(f"seed {f.seed}: {f.why}" for f in failures)
        super().__init__(
            f"the recipe itself fails in {len(failures)} of {seeds} seeds ({listed}), so there is nothing to compare "
            f"with: lower optimizer.lr ({lr:g}), lengthen schedule.warmup or set optimizer.clip; where such failures "
            f"are part of the recipe, --allow-failures {len(failures)} judges the other seeds; a metric that may rise "
            f'to {CEILING:g} times its start, as from pre-trained weights, is a Metric("difference"){kept}'
        )


def failure(curve: Curve, metrics: Mapping[str, Metric], judged: str, stops: Sequence[int] | None = None) -> str:
    """Return why a run says nothing about gaps.

    Args:
        curve: of the run.
        metrics: declared by the task.
        judged: the metric that is compared.
        stops: samples at which it was evaluated, for the words.

    Returns:
        A few words, empty for a run that ended well.
    """
    if curve.stopped or not curve.values:
        return curve.stopped or "never started"
    for model, series in curve.values.items():
        for name in (judged, *(other for other in series if other != judged)):
            found = _lost(np.array(series[name], dtype=float), metrics.get(name), judged=name == judged)
            if found is not None:
                at = f"after {stops[found]:,} samples" if stops is not None else f"at evaluation {found}"
                return (
                    f"{name} of the {model} model is {series[name][found]:.3g} {at}, {series[name][0]:.3g} at the start"
                )
    return ""


def failures(
    runs: Sequence[Curve], metrics: Mapping[str, Metric], metric: str, stops: Sequence[int] | None = None
) -> tuple[Failure, ...]:
    """Return the failed runs of an arm.

    Args:
        runs: of the arm.
        metrics: declared by the task.
        metric: that is compared.
        stops: samples at which runs were evaluated.

    Returns:
        Seeds and reasons.
    """
    found = [(curve.seed, failure(curve, metrics, metric, stops)) for curve in runs]
    return tuple(Failure(seed, why) for seed, why in found if why)


def _lost(values: np.ndarray, metric: Metric | None, *, judged: bool) -> int | None:
    """Index of the first value that is not finite, or that has left the start by far in the wrong direction."""
    bad = ~np.isfinite(values) if judged or np.isfinite(values[0]) else np.zeros(len(values), dtype=bool)
    if metric is not None and np.isfinite(values[0]):
        worse = 1 if metric.better == "lower" else -1
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            if metric.kind == "ratio" and values[0] > 0 and worse > 0:
                bad |= values > CEILING * values[0]
            elif metric.kind == "difference" and metric.scale is not None:
                bad |= worse * (values - values[0]) > CEILING * metric.scale
    return int(bad.argmax()) if bad.any() else None


def margin_of(metric: Metric, model: str, given: float | None = None) -> float:
    """Return the margin of a model's metric in the unit of its gap; it depends on nothing that is measured.

    Args:
        metric: that is compared.
        model: "average", "raw", or a view of it.
        given: excess of the ratio over 1, or a difference in the metric's unit, instead of the fixed one.

    Returns:
        log(1 + margin) of a ratio; margin x scale of a difference.

    Raises:
        InputError: a margin that is not positive, or so wide that everything would be the same.

    Example:
        >>> round(margin_of(Metric("difference", better="higher", unit="percent"), "average"), 3)
        0.5
    """
    share = MARGINS[metric.kind]["average" if model == "average" else "raw"]
    scale = 1.0 if metric.scale is None else metric.scale
    if given is not None:
        widest = WIDEST[metric.kind] * scale
        if not 0 < given <= widest:
            of = "of the ratio" if metric.kind == "ratio" else metric.unit
            raise InputError(
                f"margin={given:g} must be in (0, {widest:g}] ({of}): a wider one would call different runs the same"
            )
        share = given / scale
    return math.log1p(share) if metric.kind == "ratio" else share * scale


def gaps(arm: np.ndarray, reference: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the paired gaps of an arm to the reference.

    Args:
        arm: metric of each seed at each mark, shape (seeds, marks), finite.
        reference: the same for the reference.
        metric: its kind.

    Returns:
        log(arm) - log(reference) of a ratio, arm - reference of a difference, in its unit.

    Example:
        >>> gaps(np.array([[4.0]]), np.array([[2.0]]), Metric("ratio", better="lower")).round(3).tolist()
        [[0.693]]
    """
    return np.log(arm) - np.log(reference) if metric.kind == "ratio" else arm - reference


def judge(
    curves: Mapping[str, Sequence[Curve]],
    marks: Sequence[int],
    metrics: Mapping[str, Metric],
    *,
    metric: str = "loss",
    margins: Mapping[str, float] | None = None,
    allow_failures: int = 0,
    level: Level = LEVEL,
    lr: float = math.nan,
    stops: Sequence[int] | None = None,
) -> dict[str, dict[str, ArmTest]]:
    """Compare every arm with the reference at the marks.

    Args:
        curves: arm -> curves, of the same seeds in every arm; "reference" among them.
        marks: indices of the evaluations that count.
        metrics: declared by the task.
        metric: that is compared.
        margins: model -> margin as `margin_of` takes it, the fixed one for models that are missing.
        allow_failures: failed seeds of an arm, or of the reference, beside which SAME is still possible.
        level: error rates of the verdicts.
        lr: the recipe's learning rate, for the words.
        stops: samples at which runs were evaluated, for the words.

    Returns:
        arm -> model -> test.

    Raises:
        RecipeFails: more failures of the reference than were allowed.
        InputError: a metric without a declaration or values that it rules out, arms of other seeds, runs with other
            numbers of evaluations, or a margin for a model that is not there.
    """
    if metric not in metrics:
        raise InputError(f"metric={metric!r} is not declared; declared: {', '.join(metrics) or 'none'}")
    whole("allow_failures", allow_failures, 0)
    curves = check_curves(curves, metric, marks, margins or {})
    kind, reference = metrics[metric], curves["reference"]
    for runs in curves.values():
        for curve in runs:
            check_values(curve, metrics, metric)
    lost = {name: failures(runs, metrics, metric, stops) for name, runs in curves.items()}
    if len(lost["reference"]) > allow_failures or len(lost["reference"]) == len(reference):
        raise RecipeFails(lost["reference"], len(reference), lr)
    check_percent(reference, kind, metric)
    models = next(curve.values for curve in reference if curve.values)
    table: dict[str, dict[str, ArmTest]] = {}
    for name, runs in curves.items():
        if name == "reference":
            continue
        gone = {f.seed for f in (*lost["reference"], *lost[name])}
        pairs = [(a, b) for a, b in zip(runs, reference, strict=True) if b.seed not in gone]
        table[name] = {}
        for model in models:
            margin = margin_of(kind, model, (margins or {}).get(model))
            found, moved = None, math.nan
            if len(pairs) >= _FEWEST:
                arm, base = (np.array([pair[side].values[model][metric] for pair in pairs]) for side in (0, 1))
                moved = float(np.ptp(gaps(base, base[:, :1], kind).mean(0)))
                gap = gaps(arm, base, kind)[:, list(marks)]
                found = compare(gap, np.full(len(marks), margin), level=level)
            told = ArmTest(Verdict.UNDECIDED, found, len(marks), margin, len(runs), lost[name], moved=moved)
            table[name][model] = _decided(told, lost["reference"], allow_failures, level)
    return table


def _decided(test: ArmTest, others: tuple[Failure, ...], allowed: int, level: Level) -> ArmTest:
    """The test with the verdict of its gaps, unless failures say otherwise."""
    found, mine, seeds = test.gaps, test.failures, test.seeds
    verdict = Verdict.UNDECIDED if found is None else found.verdict
    reasons = () if found is None else found.reasons
    if failures_differ(len(mine), len(others), seeds, level=level):
        verdict = Verdict.DIFFERENT
        reasons = (f"fails in {len(mine)} of {seeds} seeds, the reference in {len(others)}", *reasons)
    elif len(mine) > allowed:
        if verdict is Verdict.SAME:
            verdict = Verdict.UNDECIDED
        bound = failure_bound(len(mine), seeds)
        reasons = (f"fails in {len(mine)} of {seeds} seeds (up to {bound:.0%} of all, at 95%): never SAME", *reasons)
    if found is None:
        reasons = (*reasons, f"fewer than {_FEWEST} seeds ended on both sides")
    return replace(test, verdict=verdict, reasons=reasons)


@dataclass(frozen=True)
class Conclusion:
    """What a whole comparison says of its plan.

    Args:
        verdict: of the plan; SAME only where a control shows that the test could tell.
        headline: in one sentence.
    """

    verdict: Verdict
    headline: str


def cannot_tell(plan: ArmTest, controls: Mapping[str, ArmTest]) -> str:
    """Return why SAME would mean nothing: no arm that should differ does, or the metric hardly moves at all.

    A control that died differs by that alone, so that the second is asked too.

    Args:
        plan: its test, or another one of the same model.
        controls: tests of the arms that should differ.

    Returns:
        The reason, empty where the test can tell.
    """
    if not any(test.verdict is Verdict.DIFFERENT for test in controls.values()):
        return f"no control is DIFFERENT ({', '.join(controls)})" if controls else "no control was trained"
    if plan.moved < MOVES * plan.margin:
        return (
            f"the reference itself moves by {plan.moved:.3g} in the whole run, less than {MOVES:g} margins of "
            f"{plan.margin:.3g}"
        )
    return ""


def conclude(
    table: Mapping[str, Mapping[str, ArmTest]],
    model: str,
    reference_failures: Sequence[Failure] = (),
    *,
    controls: Sequence[str] | None = None,
) -> Conclusion:
    """Return the verdict of the plan, with failures and controls in its headline.

    Args:
        table: what `judge` returns.
        model: whose verdict counts.
        reference_failures: of the reference, where they were allowed.
        controls: arms that should be DIFFERENT; every arm but the plan unless given.

    Returns:
        Verdict and headline.

    Raises:
        InputError: no arm called plan, or no such model of it.
    """
    if model not in table.get("plan", {}):
        there = ", ".join(f"{arm} ({', '.join(models)})" for arm, models in table.items())
        raise InputError(f"no arm 'plan' with a model {model!r} was judged; judged: {there or 'nothing'}")
    plan = table["plan"][model]
    name = "averaged" if model == "average" else model
    names = [arm for arm in table if arm != "plan"] if controls is None else [arm for arm in controls if arm in table]
    verdict, words = plan.verdict, f"the plan is {plan.verdict} ({name} model)"
    blind = cannot_tell(plan, {arm: table[arm][model] for arm in names})
    if plan.verdict is Verdict.SAME and blind:
        verdict, words = Verdict.UNDECIDED, f"SAME, but this test could not have told: {blind}"
    counted = [("plan", plan.failures), ("reference", tuple(reference_failures))]
    for arm, failed in counted:
        if failed:
            seeds = ", ".join(str(f.seed) for f in failed)
            words += f"; {arm} failed in {len(failed)} of {plan.seeds} seeds ({seeds})"
    return Conclusion(verdict, words)
