"""What a plan does to each key of a recipe, in words; the formulas are those of the rules themselves."""

from isobatch.errors import InputError
from isobatch.rules import OPTIMIZERS, average, batch_norm, betas, clip, lr_rule, momentum, weight_decay

SPAN = "span"
PER_STEP = "per step"
KEPT = "kept"
IN_SAMPLES = "kept in samples"
ASKED = "what you ask for"
CHOOSES = "kept; chooses the rule"


def _rates() -> str:
    """The own learning-rate rule of every optimizer, by formula."""
    found: dict[str, list[str]] = {}
    for name, row in OPTIMIZERS.items():
        found.setdefault(lr_rule(row).formula, []).append(name)
    return "; ".join(f"{formula}: {', '.join(names)}" for formula, names in found.items())


def _moved(formula: str) -> str:
    return f"moves: {formula}"


_EFFECTS: dict[str, tuple[str, str]] = {
    "task": ("", KEPT),
    "data_size": ("samples", KEPT),
    "options": ("", KEPT),
    "batch.size": ("samples or tokens per step", ASKED),
    "batch.unit": ("", KEPT),
    "batch.micro": ("samples or tokens", f"{KEPT}, or {ASKED}"),
    "batch.devices": ("devices", f"{KEPT}, or {ASKED}"),
    "batch.schedule": ("span, samples per step", "every stage times kappa, its start kept in samples"),
    "batch.schedule_lr": ("", CHOOSES),
    "batch.sequence": ("tokens in a sample", KEPT),
    "batch.reduction": ("", "kept; a sum's lr, eps, coupled decay and clip move as their unit does"),
    "batch.adaptive.settle": (SPAN, KEPT),
    "batch.adaptive": ("", KEPT),
    "optimizer.name": ("", f"{KEPT}; its invariant form under --optimizer invariant"),
    "optimizer.lr": (PER_STEP, _moved(f"{_rates()}; with momentum * (1-mu')/(1-mu)")),
    "optimizer.momentum": (PER_STEP, _moved(momentum.SAMPLE_CLOCK.formula)),
    "optimizer.nesterov": ("", KEPT),
    "optimizer.betas": (PER_STEP, _moved(f"{betas.POWER.formula}, not below rules.floors")),
    "optimizer.alpha": (PER_STEP, _moved(f"{betas.POWER.formula}, not below rules.floors")),
    "optimizer.eps": ("of the gradient", "moves as 1/sqrt(kappa) beside a square-root lr; else kept"),
    "optimizer.eps_inside": ("", f"{KEPT}; eps then moves as 1/kappa beside a square-root lr"),
    "optimizer.weight_decay": (
        PER_STEP,
        _moved(f"{weight_decay.DECOUPLED.formula} (decoupled), {weight_decay.INDEPENDENT.formula} (independent)")
        + "; coupled and trust-ratio: kept",
    ),
    "optimizer.decay": ("", CHOOSES),
    "optimizer.clip": ("of the gradient", _moved(f"{clip.BY_NOISE.formula} where the noise scale is known; else kept")),
    "optimizer.clip_by": ("", KEPT),
    "optimizer.lr_limit": (PER_STEP, KEPT),
    "optimizer.reference_batch": ("samples", "kept; stamped with batch.size at the first plan of an invariant form"),
    "schedule.length": (SPAN, IN_SAMPLES),
    "schedule.warmup": (SPAN, f"{IN_SAMPLES}; legw: kappa times"),
    "schedule.shape": ("", KEPT),
    "schedule.final": ("share of lr", KEPT),
    "schedule.stair": ("samples", "stamped with the samples of a reference step"),
    "schedule.decay_from": (SPAN, IN_SAMPLES),
    "schedule.search": ("", KEPT),
    "curves.NAME[]": ("share of the number, of 1 - decay for momentum and ema", KEPT),
    "curves.NAME[].span": (SPAN, IN_SAMPLES),
    "curves.NAME[].every": (SPAN, IN_SAMPLES),
    "curves.NAME[].scale": (SPAN, IN_SAMPLES),
    "groups[]": ("", KEPT),
    "groups[].lr": (PER_STEP, "moves by the rule of the group's optimizer"),
    "groups[].lr_scale": ("share of optimizer.lr", KEPT),
    "groups[].momentum": (PER_STEP, "moves as optimizer.momentum"),
    "groups[].betas": (PER_STEP, "moves as optimizer.betas"),
    "groups[].alpha": (PER_STEP, "moves as optimizer.alpha"),
    "groups[].eps": ("of the gradient", "moves as optimizer.eps"),
    "groups[].weight_decay": (PER_STEP, "moves as optimizer.weight_decay, beside the group's lr"),
    "spans": (SPAN, IN_SAMPLES),
    "ema.start": (SPAN, IN_SAMPLES),
    "ema.ramp": ("", KEPT),
    "ema.ramp.tau": (SPAN, IN_SAMPLES),
    "ema.ramp.inv_gamma": ("updates", "moves: g*kappa**((1-p)/p)"),
    "ema.ramp.ratio": ("share of the samples seen", KEPT),
    "ema.ramp.gamma": ("updates", KEPT),
    "ema.ramp.std": ("share of the samples seen", KEPT),
    "ema.decay": ("per update", _moved(average.POWER.formula)),
    "ema.half_life": (SPAN, IN_SAMPLES),
    "ema.every": ("steps", KEPT),
    "ema.kind": ("", KEPT),
    "ema.final": ("per update", _moved(average.POWER.formula)),
    "batch_norm.synchronised": ("", f"{KEPT}; b is then the samples of all devices"),
    "batch_norm.momentum": ("per pass", _moved(batch_norm.POWER.formula)),
    "noise": ("", KEPT),
    "augment": ("", KEPT),
    "augment.adjust_norm": (SPAN, IN_SAMPLES),
    "adversary": ("", KEPT),
    "adversary.warmup": (SPAN, IN_SAMPLES),
    "critical": ("samples", KEPT),
    "rules.lr": ("", CHOOSES),
    "rules.momentum": ("", CHOOSES),
    "rules.betas": ("", CHOOSES),
    "rules.average": ("", CHOOSES),
    "rules.floors": (PER_STEP, CHOOSES),
    "rules.noise_share": ("share", "moves: (f/kappa)/((1-f)+f/kappa)"),
    "planned.batches": ("samples per step", "the new batch is added behind it"),
    "planned.held": (PER_STEP, "decays of the first recipe that a floor holds, so that a plan back restores them"),
    "planned.stages": (
        "samples per step",
        "stages of the first recipe that rounding moved, so that a plan back restores them",
    ),
}
"""Key, or the table of all that are not named themselves -> (unit, what a plan does)."""


def effect_of(key: str) -> tuple[str, str]:
    """Return the unit of a key and what a plan does to it.

    Args:
        key: dotted, as in `isobatch plan --keys`.

    Returns:
        Unit and effect; those of its table where it has none of its own.

    Raises:
        InputError: a key of which nothing is said.

    Example:
        >>> effect_of("ema.decay")
        ('per update', 'moves: rho**kappa')
    """
    place = key
    while place:
        if place in _EFFECTS:
            unit, effect = _EFFECTS[place]
            return (unit if place == key else "", effect)
        place = place.rpartition(".")[0]
    raise InputError(f"nothing is said of {key}; add it to isobatch/export/effects.py")
