"""A rule is one object: it computes the number, and holds the words, the warnings and the effects that belong to it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import NamedTuple, Self


class Confidence(StrEnum):
    """How sure a rule is, from a proof down to nothing."""

    THEOREM = "theorem"
    DERIVED = "derived"
    MEASURED = "measured"
    CONVENTION = "convention"
    UNKNOWN = "unknown"


class Side(StrEnum):
    """The side of kappa = 1 on which a warning holds."""

    BOTH = "any other batch"
    UP = "kappa > 1"
    DOWN = "kappa < 1"

    def holds(self, kappa: float) -> bool:
        """Return whether a change lies on this side; a batch that stays lies on none.

        Args:
            kappa: new batch / old batch.

        Returns:
            True or False.

        Example:
            >>> Side.UP.holds(4.0), Side.UP.holds(0.5), Side.BOTH.holds(1.0)
            (True, False, False)
        """
        return kappa != 1 and (self is Side.BOTH or (kappa > 1) == (self is Side.UP))


class Severity(IntEnum):
    """How much a caution matters, the worst first."""

    FAILS = 0
    ANOTHER = 1
    WEAK = 2


@dataclass(frozen=True, eq=False)
class OptimizerRow:
    """Everything that the house knows of an optimizer; rules, plan, loop, `rescale` and builders read this row alone.

    Args:
        name: in a recipe.
        lr: word of its own learning-rate rule, one of `isobatch.rules.LEARNING_RATES`.
        moments: its decays by the keys of its parameter groups: "momentum", "betas" or "alpha".
        decay: how its weight decay is coupled unless a recipe says otherwise: decoupled, coupled or trust-ratio.
        builder: dotted name of what builds it, called as (params, **numbers); None where it can only be planned.
        classes: names of the classes whose state is moved by this row.
        state: key of a state tensor or count -> what moves it, one of `isobatch.rules.STATE`; keys left out stay.
        adaptive: whether it divides by a second moment with eps.
        invariant: whether that second moment is the one of a reference batch, at any batch.
        normalises_after: whether it normalises what it has averaged (signs, orthogonalised momentum), so that the size
            of the average does not matter.
        mixes: whether betas[0] is no clock but the share of the average in an update beside the fresh gradient.
        lr_kept: word of its learning-rate rule where its averages are kept per step; "" where that changes nothing.
        theory: words of the learning-rate rules that a theory covers for it; its own is a convention where it is not
            among them.
        measured: words of the learning-rate rules that rates tuned by others were compared with (docs/evidence.md).
        nesterov: whether Nesterov's form exists.
        invariant_form: name of its form whose second moment does not depend on the batch, None where it has none.
    """

    name: str
    lr: str
    moments: tuple[str, ...]
    decay: str
    builder: str | None = None
    classes: tuple[str, ...] = ()
    state: Mapping[str, str] = field(default_factory=dict)
    adaptive: bool = False
    invariant: bool = False
    normalises_after: bool = False
    mixes: bool = False
    lr_kept: str = ""
    theory: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    nesterov: bool = False
    invariant_form: str | None = None

    @property
    def convention(self) -> bool:
        """Whether its learning-rate rule is what recipes do, not what theory says."""
        return self.lr not in self.theory

    @property
    def sign_like(self) -> bool:
        """Whether its step is as long whatever the gradient's size, so that only directions count."""
        return self.normalises_after or (self.adaptive and not self.invariant)

    @property
    def proportional(self) -> bool:
        """Whether its step is as long as the gradient is large, so that a summed loss is a larger learning rate."""
        return not (self.adaptive or self.normalises_after or self.decay == "trust-ratio")

    @property
    def keys(self) -> tuple[str, ...]:
        """The numbers per step that its parameter groups hold."""
        return ("lr", *self.moments, *(("eps",) if self.adaptive else ()), "weight_decay")


class Change(NamedTuple):
    """A change of the batch as numbers: all that a rule sees. Letters are those of the printed formulas.

    Args:
        kappa: new batch / old batch.
        value: the setting at the old batch.
        batch: B, samples per step until now.
        optimizer: the optimizer's row.
        lr: eta.
        rate: eta' before the factor of a moved momentum.
        new_lr: eta', as the optimizer multiplies it.
        floor: smallest value that the change may reach.
        share: f, the noise share of the second moment at B; None where it was not measured.
        critical: B_c in samples; None where it was not measured.
        every: updates between two moves of the setting.
        length: samples of the run; infinity where it is open.
        warmup: samples of its warm-up.
        limit: largest stable eta/(1-mu) at mu, in the unit of eta; None where it was not measured.
    """

    kappa: float
    value: float
    batch: float
    optimizer: OptimizerRow
    lr: float = 0.0
    rate: float = 0.0
    new_lr: float = 0.0
    floor: float = 0.0
    share: float | None = None
    critical: float | None = None
    every: int = 1
    length: float = float("inf")
    warmup: float = 0.0
    limit: float | None = None

    @property
    def new_batch(self) -> float:
        """B', samples per step from now on."""
        return self.kappa * self.batch


class Span(NamedTuple):
    """The samples that a learning-rate curve is made of.

    Args:
        length: of the whole run.
        warmup: of the linear warm-up.
        decay_from: where the decay begins, None for the end of the warm-up.
        stair: one reference step.
    """

    length: float
    warmup: float
    decay_from: float | None
    stair: float


class RuleWarning(NamedTuple):
    """When a rule is weak.

    Args:
        side: of kappa = 1 on which it can hold.
        find: (change, new value) -> (condition, what to expect and what to do), None where it does not hold.
        source: where the condition comes from.
        severity: how much it matters.
    """

    side: Side
    find: Callable[[Change, float], tuple[str, str] | None]
    source: str
    severity: Severity = Severity.ANOTHER


@dataclass(frozen=True, eq=False)
class Rule:
    """What happens to one setting when the batch changes.

    Args:
        formula: as printed, in the letters of the docs; a phrase where the setting stays in samples.
        because: why, in half a sentence, with the condition under which it holds.
        source: arXiv id (section where known) or "derived".
        confidence: how sure it is.
        number: the setting at the new batch; the formula evaluates to it.
        warnings: when it is weak.
        exponent: p where the learning rate goes as kappa**p, else None.
        curves: what it does to the curve of the learning rate; None where the curve stays in samples.
        length: words beside the length of the run, where `curves` moves it.
        warmup: words beside the warm-up, where `curves` moves it.
        others: letter -> the rule of every other number of the optimizer, for a rule that allows no other to move.
        state: (old value, new value) -> factor on the state that this setting fills, at a change in mid-run.
        run: what a run by this learning-rate rule is, for the title of a plan.
    """

    formula: str
    because: str
    source: str
    confidence: Confidence
    number: Callable[[Change], float] = lambda change: change.value
    warnings: tuple[RuleWarning, ...] = ()
    exponent: float | None = None
    curves: Callable[[Span, Change], Span] | None = None
    length: "Rule | None" = None
    warmup: "Rule | None" = None
    others: "Callable[[str], Rule] | None" = None
    state: Callable[[float, float], float] | None = None
    run: str = "the same run"

    def but(self, **changes: object) -> Self:
        """Return the rule with some fields replaced.

        Args:
            **changes: fields.

        Returns:
            The other rule.

        Example:
            >>> Rule("eta", "kept", "recipe", Confidence.UNKNOWN).but(formula="mu").formula
            'mu'
        """
        return replace(self, **changes)

    def warn(self, change: Change, new: float) -> Iterator[tuple[str, str, str, Side, Severity]]:
        """Yield the warnings that hold for a change.

        Args:
            change: what the rule sees.
            new: the number that it gave.

        Yields:
            Condition, message, source, side of kappa = 1 and severity of each.
        """
        for warning in self.warnings:
            found = warning.find(change, new) if warning.side.holds(change.kappa) else None
            if found is not None:
                yield (*found, warning.source, warning.side, warning.severity)


class Applied(NamedTuple):
    """One setting moved by its rule.

    Args:
        rule: the rule that computed it.
        change: what it saw.
        becomes: the number that it gave.
    """

    rule: Rule
    change: Change
    becomes: float

    @classmethod
    def by(cls, rule: Rule, change: Change) -> "Applied":
        """Apply a rule; a batch that stays moves nothing.

        Args:
            rule: the rule.
            change: what it sees.

        Returns:
            The setting at the new batch beside its rule.
        """
        return cls(rule, change, change.value if change.kappa == 1 else rule.number(change))


class LearningRate(NamedTuple):
    """One word of a recipe's rules.lr: a file in `isobatch/rules/lr` that holds its `CHOICE` is found there.

    Args:
        word: in the recipe.
        rule: optimizer -> the rule that serves it.
        share: whether it needs f, the noise share of the second moment.
        guessed: what becomes of its rule where the critical batch is only a noise scale; None where it asks for none.
    """

    word: str
    rule: Callable[[OptimizerRow], Rule]
    share: bool = False
    guessed: Callable[[Rule], Rule] | None = None
