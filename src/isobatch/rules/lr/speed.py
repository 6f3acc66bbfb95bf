"""Not the same run at another batch, but the fastest to the same loss, by a measured critical batch."""

from isobatch.errors import InputError
from isobatch.rules.critical_batch import optimal_lr, samples_factor
from isobatch.rules.rule import Change, Confidence, LearningRate, OptimizerRow, Rule, RuleWarning, Side, Span


def _critical(c: Change) -> float:
    if c.critical is None:
        raise InputError('rules.lr = "speed" needs [critical]; measure it with `isobatch noise sweep --calibrate`')
    return c.critical


def _curves(span: Span, c: Change) -> Span:
    """The whole curve stretches with the samples that the run takes; a batch that stays keeps its steps."""
    size = _critical(c)
    if c.kappa == 1:
        return span
    times = samples_factor(c.new_batch, size) / samples_factor(c.batch, size)
    start = None if span.decay_from is None else span.decay_from * times
    return span._replace(length=span.length * times, warmup=span.warmup * times, decay_from=start, stair=c.new_batch)


def _another(c: Change, _: float) -> tuple[str, str]:
    message = (
        "steps, samples and learning rate differ from the reference's by design; it assumes that the recipe's learning "
        "rate is the best one at its own batch"
    )
    return "another run, not the same one", message


def _no_critical(c: Change, _: float) -> tuple[str, str]:
    message = (
        "B_simple was up to 20 times off the critical batch in 1812.06162 and orders of magnitude under Adam; "
        "calibrate it with `isobatch noise sweep --calibrate`"
    )
    return "a noise scale is not a critical batch", message


LENGTH = Rule(
    "E*(1+B'/Bc)/(1+B/Bc)",
    "(S/S_min-1)(E/E_min-1) = 1: samples to the same loss, each batch at its own best learning rate",
    "arXiv 1812.06162, 2.11",
    Confidence.MEASURED,
)
WARMUP = Rule("the same share of the run", "stretched with its length", "convention", Confidence.CONVENTION)
OPTIMAL_SGD = Rule(
    "eta*(1+Bc/B)/(1+Bc/B')",
    "fastest progress per step of a quadratic, if eta was the best at B; beyond twice it the loss may rise",
    "arXiv 1812.06162, 2.6",
    Confidence.DERIVED,
    lambda c: optimal_lr(c.value, c.batch, c.new_batch, _critical(c)),
    warnings=(RuleWarning(Side.BOTH, _another, "arXiv 1812.06162, 2.2"),),
    curves=_curves,
    length=LENGTH,
    warmup=WARMUP,
    run="the fastest run",
)
TUNED = OPTIMAL_SGD.but(
    formula="eta*sqrt((1+Bc/B)/(1+Bc/B'))",
    because="nearest of eight rules to the rates that authors tuned on 13 benchmarks, there a factor of 1.4 off (root "
    "mean square); a square root well below Bc, flat above it",
    source="docs/evidence.md; form: arXiv 1812.06162, section 4",
    confidence=Confidence.MEASURED,
    number=lambda c: optimal_lr(c.value, c.batch, c.new_batch, _critical(c), power=0.5),
)
UNTUNED = TUNED.but(
    because="taken over from Adam, LAMB and LARS: no published rates of this optimizer were compared; a square root "
    "well below Bc, flat above it",
    confidence=Confidence.UNKNOWN,
)


def _rule(row: OptimizerRow) -> Rule:
    if row.sign_like or row.decay == "trust-ratio":
        return TUNED if CHOICE.word in row.measured else UNTUNED
    return OPTIMAL_SGD if CHOICE.word in row.theory else OPTIMAL_SGD.but(confidence=Confidence.UNKNOWN)


def _guessed(rule: Rule) -> Rule:
    """The same by a critical batch that is only a noise scale."""
    return rule.but(
        confidence=Confidence.UNKNOWN,
        length=LENGTH.but(confidence=Confidence.UNKNOWN),
        warnings=(*rule.warnings, RuleWarning(Side.BOTH, _no_critical, "arXiv 1812.06162, table 1; 2505.23971")),
    )


CHOICE = LearningRate("speed", _rule, guessed=_guessed)
