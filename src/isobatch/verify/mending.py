"""What should mend a plan that is not the same run, tried as further arms with their own share of the error rate."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.verify.campaign import Campaign
from isobatch.verify.design import Criteria, Design
from isobatch.verify.equivalence import Level, Verdict
from isobatch.verify.judging import ArmTest, cannot_tell
from isobatch.verify.workers import Curve

_STREAM = 2000
"""Sample orders of arms that mend, away from those of the others."""
EARLY = 0.4
"""A gap is early where no mean leaves the margin after this share of the run."""
MEANING = {
    "invariant": "the batch-size invariant form of the optimizer",
    "hold": 'the average by first-order hold (ema.kind = "hold")',
    "invariant, hold": "the invariant form and the hold together",
}


@dataclass(frozen=True)
class Mended:
    """What was tried where the plan is not SAME.

    Args:
        recipes: by name of the change.
        tests: of the headline model, at a level shared between the changes.
        curves: of every change, by seed.
        told: whether the comparison could tell, without which no SAME counts.
    """

    recipes: dict[str, Recipe]
    tests: dict[str, ArmTest]
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    told: bool = True

    @property
    def best(self) -> str | None:
        """The first change that is SAME, None where none is or where the test could not have told."""
        if not self.told:
            return None
        return next((name for name, test in self.tests.items() if test.verdict is Verdict.SAME), None)


def early(test: ArmTest) -> bool:
    """Return whether a gap sits at the first marks only: a harmless start, not a lasting one.

    Args:
        test: of an arm.

    Returns:
        True where some mean leaves the margin, and none does later.
    """
    if test.gaps is None or test.first_outside is None:
        return False
    later = test.mean[int(EARLY * test.marks) :]
    return bool((abs(later) <= test.margin).all())


def candidates(plan: Recipe, reference: Recipe, average: ArmTest | None) -> dict[str, Recipe]:
    """Return the changes that are known to mend such a gap.

    Args:
        plan: that was tested.
        reference: the recipe.
        average: test of the averaged model, None without one.

    Returns:
        Recipes by name, cheapest change first.
    """
    made: dict[str, Recipe] = {}
    if plan.optimizer.name == reference.optimizer.name:
        with suppress(InputError):  # an optimizer without such a form
            other = reference.at(plan.batch.size, optimizer="invariant").recipe
            if other.optimizer.name != plan.optimizer.name:
                made["invariant"] = other
    if average is None or plan.ema is None or plan.ema.kind != "plain":
        return made
    held = {"ema": plan.ema.model_copy(update={"kind": "hold"})}
    if early(average):
        made["hold"] = plan.model_copy(update=held)
    if "invariant" in made:
        made["invariant, hold"] = made["invariant"].model_copy(update=held)
    return made


def mended(
    design: Design,
    work: Campaign,
    rule: Criteria,
    reference: Sequence[Curve],
    tests: Mapping[str, Mapping[str, ArmTest]],
    level: Level,
    model: str,
) -> Mended | None:
    """Train what should mend a plan, and judge it against the same reference.

    Args:
        design: of the comparison.
        work: trains the runs.
        rule: judges them.
        reference: its curves.
        tests: arm -> model -> test, of the plan and its controls.
        level: of the comparison, shared between the changes.
        model: whose verdict counts.

    Returns:
        What was tried, None where nothing is known to help.
    """
    tried = candidates(design.arms["plan"], design.recipe, tests["plan"].get("average"))
    if not tried:
        return None
    jobs = design.jobs([curve.seed for curve in reference], tried, _STREAM)
    curves = work.train(jobs, rule)
    table = rule.judge({"reference": reference, **curves}, level.shared(len(tried)))
    told = not cannot_tell(tests["plan"][model], {arm: models[model] for arm, models in tests.items()})
    return Mended(tried, {name: table[name][model] for name in tried}, curves, told)
