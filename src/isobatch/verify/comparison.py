"""verify run: train every arm over several seeds, compare at matched samples, reach a verdict."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.markup import panel
from isobatch.plan import Plan, Recipe
from isobatch.tasks.metric import headline
from isobatch.units import finite, whole
from isobatch.verify import equivalence, store
from isobatch.verify.campaign import Campaign, Kind, kind
from isobatch.verify.cells import missing
from isobatch.verify.design import ABLATIONS, Criteria, Design, design_of, looks_of
from isobatch.verify.equivalence import Level, Verdict
from isobatch.verify.judging import ArmTest, Conclusion, conclude, failures, margin_of
from isobatch.verify.mending import Mended, mended
from isobatch.verify.workers import Curve, Probe


@dataclass(frozen=True)
class Comparisons:
    """What `verify run` found.

    Args:
        design: what was fixed before the first run.
        rule: how curves were judged.
        curves: arm -> seed -> curve.
        table: arm -> model ("raw", "average") -> test against the reference.
        conclusion: verdict and headline of the plan.
        margins: model -> largest gap that counts as the same, in the unit of the gap.
        seconds: wall time.
        folder: where finished runs are kept.
        reused: an earlier judgement of the same question with some of these seeds, None without one.
        mended: what was tried where the plan is not SAME, None where nothing was.
    """

    design: Design
    rule: Criteria
    curves: dict[str, list[Curve]]
    table: dict[str, dict[str, ArmTest]]
    conclusion: Conclusion
    margins: dict[str, float]
    seconds: float
    folder: Path | None = None
    reused: dict[str, Any] | None = None
    mended: Mended | None = None

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        models = sorted(self.table["plan"], key=lambda model: model != self.headline)
        rows = [["arm", *(word for model in models for word in (f"{model} model", "worst gap"))]]
        for arm, tests in self.table.items():
            told = [(str(test.verdict), "-" if math.isnan(test.worst) else f"{test.worst:+.4f}") for test in
                    (tests[model] for model in models)]  # fmt: skip
            rows.append([arm, *(word for pair in told for word in pair)])
        margins = ", ".join(f"±{margin:.4g} ({model})" for model, margin in self.margins.items())
        notes = [f"{len(self.seeds)} seeds, {self.seconds:.0f} s; margins fixed before the run: {margins}"]
        return panel(self.conclusion.headline, rows, notes, badge=str(self.verdict))

    @property
    def recipe(self) -> Recipe:
        """The reference."""
        return self.design.recipe

    @property
    def plan(self) -> Plan:
        """The plan that was tested."""
        return self.design.plan

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were trained, each by every arm."""
        return tuple(curve.seed for curve in self.curves["reference"])

    @property
    def metric(self) -> str:
        """The metric that was compared."""
        return self.rule.metric

    @property
    def headline(self) -> str:
        """The model whose verdict counts: the averaged one where there is an average."""
        return headline_model(self.recipe)

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict of every arm for the headline model; the plan's counts the controls in."""
        found = {arm: str(models[self.headline].verdict) for arm, models in self.table.items()}
        return {**found, "plan": str(self.conclusion.verdict)}

    @property
    def verdict(self) -> Verdict:
        """Verdict of the plan: SAME only where a control was DIFFERENT."""
        return self.conclusion.verdict


def headline_model(recipe: Recipe) -> str:
    """Return the model whose verdict counts.

    Args:
        recipe: the reference.

    Returns:
        "average" where the recipe has one, else "raw".
    """
    return "average" if recipe.ema is not None else "raw"


def run(
    recipe: Recipe,
    batch_size: int,
    *,
    seeds: int | tuple[int, int] | None = None,
    seed_from: int = 0,
    ablate: tuple[str, ...] = ABLATIONS,
    margin: float | None = None,
    metric: str | None = None,
    allow_failures: int = 0,
    budget: float | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    optimizer: str | None = None,
    extra: dict[str, Recipe] | None = None,
    mend: bool = False,
    device: str = "cpu",
    timeout: float | None = None,
    out: Path | None = None,
    on_folder: Callable[[Path, dict[str, object] | None], None] | None = None,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Curve], None] | None = None,
) -> Comparisons:
    """Train reference, plan and ablations over several seeds and test each against the reference.

    Seed s gives every arm the same initial weights and an independent sample order. Margins, seeds and looks are fixed
    before the run. Every finished run is kept as it ends, and a second call trains only what is missing.

    Args:
        recipe: the reference; its task is trained.
        batch_size: the batch of the plan.
        seeds: seeds per arm, at least 8; (least, most) stops at a look in between as soon as it may. Unless given, the
            number that finds runs that are the same four times in five where the gap's deviation equals the margin,
            or what the budget allows.
        seed_from: the first seed.
        ablate: ablations to train besides the plan: the controls, one of which must be DIFFERENT before SAME counts.
        margin: of the headline model, instead of the fixed one: excess of a ratio, or a difference in its unit.
        metric: judged instead of the task's headline.
        allow_failures: failed seeds of an arm beside which SAME is still possible.
        budget: refuse to start when the estimate exceeds this many seconds.
        workers: processes, one a core or a GPU unless given.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
        optimizer: "invariant" plans for the batch-size invariant form of the recipe's optimizer.
        extra: further arms by name.
        mend: where the plan is not SAME, try what should mend it.
        device: device and its options in one word, such as "cuda,bf16".
        timeout: seconds without an update after which a trainer of the user's own hangs; None waits for ever.
        out: where finished runs are kept, a folder under the user's cache unless given.
        on_folder: called with that folder, and with an earlier judgement that used some of the same seeds.
        on_estimate: called with estimated seconds and number of runs before training.
        on_done: called with each finished curve.

    Returns:
        Curves, tests and verdicts.

    Raises:
        InputError: bad arguments, a recipe that cannot be trained, a metric that is not declared, an estimate above
            the budget, or a folder that holds another comparison.
        RecipeFails: the reference itself fails.
    """
    began, model = time.perf_counter(), headline_model(recipe)
    design = design_of(recipe, batch_size, seeds, seed_from, ablate, optimizer, extra, device, timeout)
    work = Campaign(None, workers, on_done, executor)
    probes = work.probe(design.jobs([design.seed_from]))
    rule = _rule(design, probes, metric, {} if margin is None else {model: margin}, allow_failures)
    home = _Home(rule, optimizer, extra, out, chosen=seeds is None and budget is not None)

    def left(design: Design) -> float:
        return work.seconds(probes, missing(design.jobs(design.seeds), home.folder(design)))

    design = _within(design, left, budget, home)
    which = home.which(design)
    work.folder, reused = store.open_folder(home.folder(design), which, own=out is None), store.judged_before(which)
    if on_folder is not None:
        on_folder(work.folder, reused)
    if on_estimate is not None:
        on_estimate(left(design), len(design.jobs(design.seeds)))
    with work:
        curves, table, level = _trained(design, work, rule, model)
    lost = failures(curves["reference"], rule.metrics, rule.metric, rule.stops)
    conclusion = conclude(table, model, lost, controls=design.controls)
    store.note_judged(which, len(curves["reference"]), str(conclusion.verdict))
    tried = None
    if mend and table["plan"][model].verdict is not Verdict.SAME:
        tried = mended(design, work, rule, curves["reference"], table, level, model)
    return Comparisons(
        design=design,
        rule=rule,
        curves=curves,
        table=table,
        conclusion=conclusion,
        margins={name: test.margin for name, test in table["plan"].items()},
        seconds=time.perf_counter() - began,
        folder=work.folder,
        reused=reused,
        mended=tried,
    )


def _rule(
    design: Design, probes: Mapping[Kind, Probe], metric: str | None, margins: dict[str, float], allow_failures: int
) -> Criteria:
    """How the runs will be judged; refuses what the first evaluation already shows to be wrong."""
    least = design.looks.seeds[0]
    if whole("allow_failures", allow_failures, 0) > least // 2:
        raise InputError(f"allow_failures={allow_failures} must be at most half of the seeds, {least // 2}")
    found = probes[kind(design.jobs([0])[0])]
    judged = headline(str(design.recipe.task), found.declared, found.first["raw"], metric)
    for model, margin in margins.items():
        margin_of(found.declared[judged], model, margin)
    return Criteria(
        found.declared, judged, margins, allow_failures, design.marks, design.stops, design.recipe.optimizer.lr
    )


@dataclass(frozen=True)
class _Home:
    """Where a comparison is kept, whatever its number of seeds turns out to be."""

    rule: Criteria
    optimizer: str | None
    extra: dict[str, Recipe] | None
    out: Path | None
    chosen: bool

    def which(self, design: Design) -> store.Identity:
        return store.identity(design, self.rule, self.optimizer, self.extra)

    def folder(self, design: Design) -> Path:
        return store.place(self.out, self.which(design), chosen=self.chosen)


def _within(design: Design, left: Callable[[Design], float], budget: float | None, home: _Home) -> Design:
    """The design with as many seeds as the budget allows where their number was not given; as before when resumed."""
    if budget is None:
        return design
    held = store.held_looks(home.folder(design), home.which(design)) if home.chosen else None
    free = home.chosen and held is None
    if held is not None:
        design = replace(design, looks=equivalence.Looks(held))
    cost = left(design)
    if free and cost > budget:
        fewer = max(int(budget / cost * design.looks.seeds[-1]), equivalence.LEAST_SEEDS)
        design = replace(design, looks=looks_of(fewer))
        cost = left(design)
    if cost > finite("budget", budget):
        raise InputError(
            f"estimated {cost / 60:.1f} minutes exceed the budget of {budget / 60:.1f}; "
            f"raise --budget, lower --seeds ({equivalence.LEAST_SEEDS} at least), or shorten schedule.length"
        )
    return design


def _trained(
    design: Design, work: Campaign, rule: Criteria, model: str
) -> tuple[dict[str, list[Curve]], dict[str, dict[str, ArmTest]], Level]:
    """Train up to each look, until the plan's verdict is reached; workers with nothing to do go ahead."""
    curves: dict[str, list[Curve]] = {name: [] for name in design.arms}
    for index, count in enumerate(design.looks.seeds):
        fresh = range(design.seed_from + len(curves["reference"]), design.seed_from + count)
        ahead = design.jobs(range(fresh.stop, design.seed_from + design.looks.seeds[-1]))
        for arm, runs in work.train(design.jobs(fresh), rule, sorted(ahead, key=lambda job: job.seed)).items():
            curves[arm] += runs
        level = design.looks.level(index)
        table = rule.judge(curves, level)
        if conclude(table, model, controls=design.controls).verdict is not Verdict.UNDECIDED:
            break
    return curves, table, level
