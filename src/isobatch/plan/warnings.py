"""When a plan is weak: what its rules, the run, the data or a limit say; and what helps past the noise scale."""

import math
from collections.abc import Iterator

from isobatch import rules
from isobatch.curves import RAMPS, Pieces, Staircase
from isobatch.errors import InputError
from isobatch.plan.plan import PlanWarning, Remedy, count, show
from isobatch.plan.settings import Moves, Settings, curve, lr_rule_of, normalised_over, row_of
from isobatch.recipe import LAWS, RecipeData
from isobatch.rules import Severity, Side
from isobatch.units import finite, half_life

FEW_STEPS = 100
"""Steps of a run, or of its warm-up times ten, below which it is called short."""


def warnings_of(
    recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves
) -> Iterator[PlanWarning]:
    """Yield the conditions under which the plan may not be the same run.

    Args:
        recipe: the reference recipe.
        after: the scaled recipe.
        old: settings at the reference batch.
        new: settings at the new batch.
        moved: every number beside its rule.

    Yields:
        One warning a condition that holds, the worst first.
    """
    if new.batch != old.batch:
        yield from sorted(_all(recipe, after, old, new, moved), key=lambda warning: warning.severity)


def _all(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings, moved: Moves) -> Iterator[PlanWarning]:
    yield from _of_rules(recipe, moved)
    yield from _stability(recipe, old, new)
    yield from _steps(recipe, old, new)
    yield from _conventions(recipe, old)
    yield from _averages_late(recipe, old)
    yield from _kinds(recipe, after, old, new)
    if recipe.data_size is not None and new.batch > recipe.data_size >= old.batch:
        message = f"the data hold {recipe.data_size:,}; a step then holds samples more than once, which no rule expects"
        yield PlanWarning(f"batch {new.batch:,} is larger than the data", message, "derived", Side.UP)
    over = normalised_over(recipe), normalised_over(recipe, after.batch)
    if recipe.batch_norm is not None and over[0] != over[1]:
        message = (
            f"batch statistics over {over[1]} instead of {over[0]} samples are another regulariser; keep batch.micro "
            "to keep them"
        )
        yield PlanWarning("batch norm sees another batch", message, "derived")


def _of_rules(recipe: RecipeData, moved: Moves) -> Iterator[PlanWarning]:
    """Yield what the rules of the numbers that this recipe has say of themselves."""
    has = row_of(recipe).keys
    for name, applied in moved.items():
        setting = name.partition("[")[0]
        if setting in ("momentum", "betas", "alpha", "eps", "weight_decay") and setting not in has:
            continue
        if name == "lr":
            found = lr_rule_of(recipe).warn(applied.change, applied.becomes)
        else:
            found = applied.rule.warn(applied.change, applied.becomes)
        for condition, message, source, side, severity in found:
            said = condition if not condition.startswith("is ") else f"{name} {condition}"
            yield PlanWarning(said, message, source, side, severity)


def _stability(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[PlanWarning]:
    if row_of(recipe).sign_like:
        return
    effective, limit = new.lr / (1 - new.momentum), recipe.optimizer.lr_limit
    if recipe.batch.summed and row_of(recipe).proportional:  # in the unit in which the limit was measured
        effective *= new.batch / old.batch
    if limit is not None and effective > limit / 2:
        message = (
            f"lr/(1-momentum) = {effective:.4g} against a measured limit of {limit:g}; beyond half of it expect a gap"
        )
        yield PlanWarning("near the stability limit", message, "optimizer.lr_limit", Side.BOTH, Severity.FAILS)
    elif limit is None and new.batch >= 4 * old.batch and recipe.batch_norm is None:
        message = (
            f"lr/(1-momentum) grows to {effective:.4g} and optimizer.lr_limit is not given; every such rule ends where "
            "large steps are unstable: find it with `isobatch verify run --max-kappa`"
        )
        yield PlanWarning("stability limit unknown", message, "derived", Side.UP, Severity.WEAK)


def _conventions(recipe: RecipeData, old: Settings) -> Iterator[PlanWarning]:
    """Yield the numbers that look like another library's convention, and an average that the run is too short for."""
    ema, norm = recipe.ema, recipe.batch_norm
    if ema is not None and ema.decay is not None and 0 < ema.decay < 0.5:
        message = f"it looks like 1 - decay, as mmengine writes it; then ema.decay = {show(1 - ema.decay)} here"
        yield PlanWarning(f"ema.decay = {ema.decay:g} forgets in one update", message, "derived")
    if norm is not None and 0.5 < norm.momentum < 1:
        message = f"it looks like the share that is kept, as Keras writes it; then it is {show(1 - norm.momentum)} here"
        yield PlanWarning(f"batch_norm.momentum = {norm.momentum:g} forgets in one pass", message, "derived")
    if recipe.schedule is None or ema is None or not math.isfinite(old.half_life):
        return
    length = curve(recipe).length
    if old.half_life > length:
        left, unit = 0.5 ** (length / old.half_life), recipe.batch.unit
        message = f"of {count(length)} {unit}: at its end the average still holds {left:.0%} of the first weights"
        yield PlanWarning(f"the half-life of {count(old.half_life)} {unit} is longer than the run", message, "derived")


def _averages_late(recipe: RecipeData, old: Settings) -> Iterator[PlanWarning]:
    """Yield that the stated decay of an average never acts, because of its ramp: with the half-life that does."""
    ema = recipe.ema
    if recipe.schedule is None or ema is None or ema.ramp is None or not 0 < old.half_life < math.inf:
        return
    length, unit = curve(recipe).length, recipe.batch.unit
    acting = _ramped(recipe, old.half_life, length)
    if acting < old.half_life / 2:
        stated, real = (f"{count(span)} {unit}" for span in (old.half_life, acting))
        message = f"its ramp has the half-life at {real} at the end of the run ({acting / old.batch:,.4g} updates)"
        yield PlanWarning(f"the half-life of {stated} never acts", message, "derived from the ramp", Side.BOTH)


def _ramped(recipe: RecipeData, stated: float, length: float) -> float:
    """Return the half-life in samples that the ramp of the average leaves at the end of a run."""
    ema = recipe.ema
    if ema is None or ema.ramp is None or ema.ramp.by == "post-hoc":
        return stated
    span = recipe.batch.size * ema.every
    updates = max(1.0, length / span)
    if ema.ramp.by == "ratio":
        return min(stated, (ema.ramp.ratio or 1.0) * length)
    scale = ema.ramp.scale
    if ema.ramp.tau is not None:
        scale = recipe.samples(ema.ramp.tau, "ema.ramp.tau") / span
    allowed = RAMPS[LAWS[ema.ramp.by]](updates, scale, ema.ramp.exponent)
    decay = recipe.average_decay * allowed if ema.ramp.by == "exp" else min(recipe.average_decay, allowed)
    return half_life(decay, span)


CRITICAL = "arXiv 1812.06162; docs/evidence.md: published rates, and the regret on Step Law's grids"


def _kinds(recipe: RecipeData, after: RecipeData, old: Settings, new: Settings) -> Iterator[PlanWarning]:
    """Yield what is known of kinds of runs: past the critical batch, another length, a stable phase, adapters."""
    known, row = recipe.critical, row_of(recipe)
    if row.normalises_after and "momentum" in row.moments and not old.momentum:
        message = (
            f"{row.name} then orthogonalises each gradient alone; optimizers of that name keep 0.95 unless told, and "
            "with it another rule holds: say optimizer.momentum"
        )
        yield PlanWarning("optimizer.momentum is 0", message, "torch.optim.Muon's default", Side.BOTH)
    if known is not None and new.batch > known.batch and lr_rule_of(recipe).length is None:
        message = (
            "more samples are needed for the same loss, and the learning rate hardly matters there: published rates "
            "fit no rule better than another, and a raised one loses (language models, 256 to 1,024: kept 0.0027 "
            "nats, square root 0.0142, linear 0.618); see remedies"
        )
        size = f"{new.batch:,.6g} is past the critical batch of {known.batch:,.6g} {recipe.batch.unit}"
        yield PlanWarning(size, message, CRITICAL, Side.UP)
    if recipe.schedule is None:
        return
    was, becomes = curve(recipe), curve(recipe, new.batch)
    if not math.isclose(was.length, becomes.length, rel_tol=1e-9):
        times = becomes.length / was.length
        message = (
            "no rule here keeps a run of another length the same; Marin's heuristic multiplies lr by "
            f"(old/new length)**{rules.horizon.MARIN} beside sqrt(kappa), here by "
            f"{times**-rules.horizon.MARIN:.3g}, and landed within 0.2% of its forecast where sqrt alone diverged"
        )
        yield PlanWarning(f"the length changes too, by {times:.3g}", message, "measured by Marin", Side.BOTH)
    if _stable_then_falls(was) and recipe.batch.size != new.batch:
        message = "compare runs after the decay alone: before it the loss of one batch says little of the other's"
        source = "arXiv 2601.05034"
        yield PlanWarning("curves of different batches cross (WSD)", message, source, Side.BOTH, Severity.WEAK)
    words = [*recipe.options, *recipe.options.values(), *(word for group in recipe.groups for word in group.patterns)]
    if any("lora" in str(word).lower() for word in words):
        message = "adapters lose more at a large batch than full training, at any learning rate; verify it"
        if new.batch < old.batch:
            message = "adapters are trained best at small batches; the rules themselves are not measured on them"
        yield PlanWarning("LoRA", message, "LoRA Without Regret; contradicted by 2602.09492", Side.BOTH, Severity.WEAK)


def _stable_then_falls(curve_: Staircase | Pieces) -> bool:
    """Return whether a learning rate holds for half of the run or more and falls at its end."""
    if isinstance(curve_, Pieces):
        held = sum(piece.samples for piece in curve_.pieces if piece.by == "hold")
        return held >= curve_.length / 2 and curve_.pieces[-1].by not in ("hold", "step")
    falls = curve_.shape != "constant" and curve_.decay_from is not None
    return falls and (curve_.decay_from or 0.0) - curve_.warmup >= curve_.length / 2


def _steps(recipe: RecipeData, old: Settings, new: Settings) -> Iterator[PlanWarning]:
    if recipe.schedule is None or new.batch < old.batch:
        return
    stairs = curve(recipe, new.batch)
    steps = math.ceil(stairs.length / new.batch)
    if steps < FEW_STEPS:
        yield PlanWarning(
            f"only {steps} steps are left",
            "too few for any rule; lower kappa or train longer",
            "derived",
            Side.UP,
            Severity.FAILS,
        )
    if 0 < stairs.warmup / new.batch < FEW_STEPS / 10:
        message = f"{stairs.warmup / new.batch:.3g} steps cover it, used through their mean; the start is coarse"
        yield PlanWarning("the warm-up is short", message, "derived", Side.UP, Severity.WEAK)


def remedies(recipe: RecipeData, size: int, noise_scale: float | None) -> tuple[Remedy, ...]:
    """Return what applies when a batch goes past the noise scale; nothing below it, or where none is known.

    Args:
        recipe: the reference recipe; its own measured noise scale counts where none is given.
        size: the batch that is planned.
        noise_scale: in the recipe's unit, None where it was not given.

    Returns:
        Remedies, the cheapest first.
    """
    if noise_scale is None and recipe.critical is not None:
        noise_scale = recipe.critical.noise_scale
    if noise_scale is None or size <= finite("noise scale", noise_scale, 0) or size <= recipe.batch.size:
        return ()
    return tuple(_remedies(recipe, size, noise_scale))


def _remedies(recipe: RecipeData, size: int, noise_scale: float) -> Iterator[Remedy]:
    kappa, row = size / recipe.batch.size, row_of(recipe)
    if recipe.schedule is not None and not recipe.schedule.searches:
        if _warmup_fits(recipe, kappa):
            yield Remedy(
                "LEGW",
                "isobatch plan --rule legw",
                "nothing per step; the full rate comes later",
                "arXiv 1901.08256; study legw: 1.6 points lost at 16x, 1.1 without the longer warm-up",
            )
        yield Remedy(
            "AutoWU",
            'schedule.shape = "autowu", optimizer.lr = the highest rate to try',
            "up to half the run is the search; a few ms a test",
            "arXiv 2107.05855; study autowu. It finds a usable rate, not a better one than tuning",
        )
    if not (row.sign_like or row.adaptive or row.convention or recipe.optimizer.momentum):  # plain SGD
        worth = rules.gain(size, recipe.batch.size, noise_scale)
        yield Remedy(
            "AdaScale",
            "isobatch.control.AdaScale in your own loop",
            f"a step is worth {worth:.3g} base steps, so the run takes {kappa / worth:.3g} times the samples",
            "arXiv 2007.05105",
        )
    yield from _other_ways(row)


def _other_ways(row: rules.OptimizerRow) -> Iterator[Remedy]:
    if row.decay != "trust-ratio":
        other = "lamb" if row.adaptive else "lars"
        yield Remedy(
            other.upper(),
            f'optimizer.name = "{other}"',
            "another optimizer: its rate must be found anew",
            "arXiv 1904.00962, 1708.03888; but tuned Nesterov and Adam match them at 32K (2102.06356)",
        )
    yield Remedy(
        "batch augmentation",
        "isobatch.augment: M views of each sample",
        "M times the work a step, on parallel hardware the same time",
        "arXiv 1901.09335; study batch-augmentation. More updates on the same images do more, where there is time",
    )
    yield Remedy(
        "concurrent adversarial",
        "isobatch.augment: one-step perturbations made ahead",
        "twice the rows a step, and one more pass that may run beside it",
        "arXiv 2106.00221; study concurrent-adversarial. Noise of its own best size may do as well",
    )


def _warmup_fits(recipe: RecipeData, kappa: float) -> bool:
    stairs = curve(recipe)
    try:
        rules.legw(recipe.optimizer.lr, stairs.warmup, kappa, stairs.length)
    except InputError:
        return False
    return lr_rule_of(recipe).others is None
