"""What is fixed before the first run of a comparison: where runs are evaluated, how many seeds, how they are judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.plan import Plan, Recipe
from isobatch.rules import scale_clip
from isobatch.tasks.metric import Metric
from isobatch.units import decay_at, whole
from isobatch.verify import equivalence
from isobatch.verify.equivalence import Level, Looks
from isobatch.verify.judging import ArmTest, judge
from isobatch.verify.workers import Curve, Job

ABLATIONS = ("lr-only", "ema-only", "unscaled", "clip")
"""Names of the controls, each a plan in which something is left as it was."""
MEANING = {
    "reference": "the recipe as it is",
    "plan": "every number by the plan",
    "square root": "the plan with the stock optimizer",
    "lr-only": "optimizer by the plan, weight average left as it was",
    "ema-only": "weight average by the plan, optimizer left as it was",
    "unscaled": "nothing scaled but the schedule's samples",
    "clip": "the plan with the clipping norm kept; its pure-noise limit where the plan keeps it",
    "naive": "a switch that moves the learning rate only",
}
MARKS = 10
MOST_SEED = 2**32 - 1
"""numpy's generators take no larger one."""
BETWEEN = 2
"""Evaluations per mark; those between marks are for the pictures only."""


@dataclass(frozen=True)
class Design:
    """The runs of a comparison.

    Args:
        recipe: the reference.
        plan: that is tested.
        arms: recipes to train by name, "reference" first.
        controls: arms of which one must be DIFFERENT before SAME counts.
        stops: samples at which every run is evaluated, from 0.
        marks: indices of the stops that the test uses.
        looks: numbers of seeds after which it may stop.
        seed_from: the first seed.
        device: where runs are trained.
        timeout: seconds after which a trainer of the user's own that moves nothing hangs.
    """

    recipe: Recipe
    plan: Plan
    arms: dict[str, Recipe]
    controls: tuple[str, ...]
    stops: tuple[int, ...]
    marks: tuple[int, ...]
    looks: Looks
    seed_from: int = 0
    device: str = "cpu"
    timeout: float | None = None

    @property
    def seeds(self) -> range:
        """Every seed up to the last look."""
        return range(self.seed_from, self.seed_from + self.looks.seeds[-1])

    def jobs(self, seeds: Sequence[int], arms: Mapping[str, Recipe] | None = None, stream: int = 0) -> list[Job]:
        """Return the runs of some seeds, the slow ones first.

        Args:
            seeds: of the initial weights.
            arms: recipes by name, those of the design unless given.
            stream: of the first arm's sample order; every other arm has one of its own.

        Returns:
            The jobs.
        """
        made = [
            Job(name, arm, seed, stream + index, self.stops, device=self.device, timeout=self.timeout)
            for index, (name, arm) in enumerate((self.arms if arms is None else arms).items())
            for seed in seeds
        ]
        return sorted(made, key=lambda job: job.recipe.batch.size)


@dataclass(frozen=True)
class Criteria:
    """How curves are judged.

    Args:
        metrics: declared by the task.
        metric: that is compared.
        margins: model -> margin instead of the fixed one.
        allow_failures: failed seeds of an arm beside which SAME is still possible.
        marks: indices of the evaluations that count.
        stops: samples at which runs are evaluated.
        lr: the recipe's learning rate, for the words.
    """

    metrics: dict[str, Metric]
    metric: str
    margins: dict[str, float]
    allow_failures: int
    marks: tuple[int, ...]
    stops: tuple[int, ...]
    lr: float

    def judge(self, curves: Mapping[str, Sequence[Curve]], level: Level) -> dict[str, dict[str, ArmTest]]:
        """Compare every arm with the reference.

        Args:
            curves: arm -> curves in the order of seeds.
            level: error rates of the verdicts.

        Returns:
            arm -> model -> test.
        """
        return judge(
            curves,
            self.marks,
            self.metrics,
            metric=self.metric,
            margins=self.margins,
            allow_failures=self.allow_failures,
            level=level,
            lr=self.lr,
            stops=self.stops,
        )


def arms(
    recipe: Recipe, batch_size: int, ablate: tuple[str, ...] = ABLATIONS, optimizer: str | None = None
) -> dict[str, Recipe]:
    """Return the recipes to train, by name; all see the same samples.

    Args:
        recipe: the reference.
        batch_size: the batch of every other arm.
        ablate: which ablations to train besides the plan.
        optimizer: "invariant" plans for that form, and adds the square-root plan beside it.

    Returns:
        reference, plan and the ablations that differ from the plan. Where the recipe's batch switches, the reference is
        the run that does not, and the one ablation is the naive switch.

    Raises:
        InputError: an unknown ablation, or a batch that the plan refuses.
    """
    unknown = [name for name in ablate if name not in ABLATIONS]
    if unknown:
        raise InputError(f"ablate={unknown[0]!r} must be among {', '.join(ABLATIONS)}")
    plan = recipe.at(batch_size, optimizer=optimizer).recipe
    if recipe.batch.schedule is not None:
        still = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"schedule": None})})
        rules = plan.rules.model_copy(update={"average": "keep", "betas": "keep"})
        naive = {"naive": plan.model_copy(update={"rules": rules})} if "lr-only" in ablate else {}
        return {"reference": still, "plan": plan, **naive}
    made = {
        "lr-only": _without(recipe, plan, average=True),
        "ema-only": _without(recipe, plan, optimizer=True),
        "unscaled": _without(recipe, plan, average=True, optimizer=True),
    }
    wanted = {name: made[name] for name in ABLATIONS if name in ablate and name in made}
    if recipe.ema is None:
        wanted = {name: arm for name, arm in wanted.items() if name == "unscaled"}
    if recipe.optimizer.clip is not None and "clip" in ablate:
        wanted["clip"] = _clipping_otherwise(recipe, plan)
    beside = {"square root": recipe.at(batch_size).recipe} if optimizer else {}
    return {"reference": recipe, "plan": plan, **beside, **wanted}


def _clipping_otherwise(recipe: Recipe, plan: Recipe) -> Recipe:
    """The plan by the other norm: kept where the plan moves it, 1/sqrt(kappa) of it where the plan keeps it."""
    norm, kappa = recipe.optimizer.clip or 0.0, plan.batch.size / recipe.batch.size
    other = scale_clip(norm, kappa, 1.0) if plan.optimizer.clip == norm else norm
    return plan.model_copy(update={"optimizer": plan.optimizer.model_copy(update={"clip": other})})


def sizes(recipe: Recipe) -> set[int]:
    """Return the batches that a run of a recipe takes.

    Args:
        recipe: an arm.

    Returns:
        Its batch, or those of its schedule.
    """
    stages = recipe.batch.schedule
    return {recipe.batch.size} if stages is None else {size for _, size in stages}


def _without(recipe: Recipe, plan: Recipe, *, average: bool = False, optimizer: bool = False) -> Recipe:
    parts: dict[str, object] = {}
    if optimizer:
        parts["optimizer"] = recipe.optimizer
    if average and recipe.ema is not None:
        kept = recipe.ema.decay
        if kept is None:
            kept = decay_at(recipe.half_life, recipe.batch.size * recipe.ema.every)
        parts["ema"] = recipe.ema.model_copy(update={"decay": kept, "half_life": None})
    return plan.model_copy(update=parts)


def stops_for(length: int, *batches: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where runs are evaluated: 0, ten marks, and points between them, on whole steps of every batch.

    Args:
        length: samples of the run.
        *batches: batches of the arms.

    Returns:
        Stops in samples, and the indices of the ten marks among them.

    Raises:
        InputError: fewer than twenty steps of the largest batch.
    """
    largest, grid = max(batches), math.lcm(*batches)
    if largest * MARKS * BETWEEN > length:
        raise InputError(
            f"batch {largest} leaves {length // largest} steps in a run of {length} samples; {MARKS} marks need at "
            f"least {MARKS * BETWEEN}: lower the batch or lengthen schedule.length"
        )
    if grid * MARKS * BETWEEN > length:
        # no common multiple is fine enough: the smaller batch's steps are cut at the stops, by the rules of the plan
        grid = largest
    points = [length * i // (MARKS * BETWEEN) // grid * grid for i in range(MARKS * BETWEEN + 1)]
    return tuple(points), tuple(range(BETWEEN, MARKS * BETWEEN + 1, BETWEEN))


def looks_of(seeds: int | tuple[int, int]) -> Looks:
    """Return the design of a number of seeds, or of a range of them.

    Args:
        seeds: a number, or (least, most) for a design that stops as soon as it may.

    Returns:
        The looks, fixed before the run.

    Raises:
        InputError: fewer seeds than a verdict takes, or an empty range.
    """
    least, most = seeds if isinstance(seeds, tuple) else (seeds, seeds)
    if whole("seeds", least) < equivalence.LEAST_SEEDS:
        raise InputError(f"seeds={least} must be at least {equivalence.LEAST_SEEDS} for a verdict")
    if whole("seeds", most) < least:
        raise InputError(f"seeds={least}..{most} must rise, such as {least}..{2 * least}")
    return Looks.between(least, most)


def design_of(
    recipe: Recipe,
    batch_size: int,
    seeds: int | tuple[int, int] | None = None,
    seed_from: int = 0,
    ablate: tuple[str, ...] = ABLATIONS,
    optimizer: str | None = None,
    extra: Mapping[str, Recipe] | None = None,
    device: str = "cpu",
    timeout: float | None = None,
) -> Design:
    """Return the design of a comparison.

    Args:
        recipe: the reference.
        batch_size: of the plan.
        seeds: as `looks_of` takes them; the default number unless given.
        seed_from: the first seed.
        ablate: ablations to train besides the plan.
        optimizer: "invariant" plans for that form.
        extra: further arms by name.
        device: where runs are trained.
        timeout: seconds after which a trainer of the user's own that moves nothing hangs.

    Returns:
        The design.

    Raises:
        InputError: too few seeds, a batch that the plan refuses, or too few steps.
    """
    looks = looks_of(equivalence.DEFAULT_SEEDS if seeds is None else seeds)
    if whole("seed_from", seed_from, 0) + looks.seeds[-1] > MOST_SEED:
        raise InputError(f"seed_from={seed_from} must be at most {MOST_SEED - looks.seeds[-1]}: seeds end below 2^32")
    known = arms(recipe, batch_size, ablate, optimizer)
    if taken := sorted({*known} & {*(extra or {})}):
        raise InputError(f"extra={taken[0]!r} is the name of an arm that is trained anyway; give it another name")
    made = known | dict(extra or {})
    stops, marks = stops_for(math.floor(recipe.staircase().length), *set().union(*map(sizes, made.values())))
    return Design(
        recipe=recipe,
        plan=recipe.at(batch_size, optimizer=optimizer),
        arms=made,
        controls=tuple(name for name in known if name not in ("reference", "plan")),
        stops=stops,
        marks=marks,
        looks=looks,
        seed_from=seed_from,
        device=device,
        timeout=timeout,
    )
