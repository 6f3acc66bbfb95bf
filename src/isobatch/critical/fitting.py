"""The critical batch from a table: outliers named, evaluations that are rare, seeds and batches left out in turn."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from isobatch.critical.hyperbola import Bend, Hyperbola, Interval, bend, critical_batches, fit
from isobatch.critical.tables import Table, TablePoint, checked
from isobatch.critical.words import fit_sentences
from isobatch.student import student_t
from isobatch.units import finite, whole

_WIDE, _APART, _SMALL = 6.0, math.log(1.5), 0.005
_FAR = 1e4  # a B_crit so far outside the batches is none
_DENOMINATOR = 10**6
_MANY, _FEWEST_DRAWS = 8, 100


@dataclass(frozen=True)
class FitPoint:
    """One batch of a fit.

    Args:
        batch: samples of an update.
        values: of the seeds that were used, in the amount's unit.
        mean: their geometric mean, half an evaluation interval earlier than reported.
        quantum: how far evaluations lie apart; 0 where it does not show.
        residual: log of the mean over the fit.
        left_out: log of the mean over the fit of all other batches; None where those are fewer than three.
    """

    batch: float
    values: tuple[float, ...]
    mean: float
    quantum: float
    residual: float
    left_out: float | None


@dataclass(frozen=True)
class Outlier:
    """A value that was left out.

    Args:
        batch: where it stands.
        value: in the table's unit.
        ratio: over what the other seeds, or the other batches, say.
    """

    batch: float
    value: float
    ratio: float


@dataclass(frozen=True)
class TableFit:
    """The critical batch of a table.

    Args:
        name: of the table.
        unit: of its values.
        amount: unit of what grows with the batch.
        scale: samples in one of it; None where unknown.
        hyperbola: the fit; its intervals count misfit, seeds and rare evaluations as noise.
        seeds: B_crit over bootstrap draws of the seeds alone; None where no batch has two.
        points: by rising batch.
        outliers: that were left out.
        bend: the fit with a free exponent; None below five batches.
        notes: on the table.
        batch_unit: samples or tokens, what a batch counts.
    """

    name: str
    unit: str
    amount: str
    scale: float | None
    hyperbola: Hyperbola
    seeds: Interval | None
    points: tuple[FitPoint, ...]
    outliers: tuple[Outlier, ...]
    bend: Bend | None
    notes: tuple[str, ...]
    batch_unit: str = "samples"

    @property
    def left_out(self) -> float | None:
        """Root mean square of the leave-one-batch-out errors in logs."""
        errors = [p.left_out for p in self.points if p.left_out is not None]
        return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in words."""
        return fit_sentences(asdict(self) | {"left_out": self.left_out}, self.hyperbola, self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values.

        Returns:
            All fields, the error of leaving a batch out, whether the fit is identified, and sentences.
        """
        more = {"left_out": self.left_out, "identified": self.hyperbola.identified, "sentences": self.sentences}
        return asdict(self) | more


def fit_table(
    table: Table, *, level: float = 0.95, outliers: bool = True, draws: int = 1000, seed: int = 0
) -> TableFit:
    """Fit the hyperbola to a table, E = E_min (1 + B/B_crit).

    A run is seen to be at its goal at the next evaluation: reported values lie up to a quantum above the truth, so that
    half of it is taken off, and the interval is at least as wide as the rest of it makes it. A value is left out where
    it is 1.5 times and six robust standard deviations off the median of its batch; a batch where it is as far off the
    fit of all others (Student t, 0.1% over all batches). Where a third of a batch disagrees, the other batches decide.

    Args:
        table: of batches and values.
        level: coverage of the intervals.
        outliers: whether values far off are left out.
        draws: bootstrap draws over seeds.
        seed: of the draws.

    Returns:
        The fit.

    Raises:
        InputError: fewer than three batches.

    Example:
        >>> from isobatch.critical.tables import TablePoint
        >>> points = tuple(TablePoint(b, (1e5 * (1 + b / 200),)) for b in (16.0, 64.0, 256.0, 1024.0))
        >>> found = fit_table(Table("runs", "samples", points))
        >>> round(found.hyperbola.critical.value), round(found.hyperbola.samples.value), found.outliers
        (200, 100000, ())
    """
    whole("draws", draws, _FEWEST_DRAWS)
    finite("level", level, 0, 1, open_low=True, open_high=True)
    table = checked(table)
    batches = [p.batch for p in table.points]
    factor = [b if table.unit == "steps" else 1.0 for b in batches]
    quanta = [q * f for q, f in zip(_quanta(table.points), factor, strict=True)]
    reported = [[v * f for v in p.values] for p, f in zip(table.points, factor, strict=True)]
    kept = _without(batches, reported, quanta) if outliers else reported
    used = [i for i, values in enumerate(kept) if values]
    named = tuple(
        Outlier(batches[i], v / factor[i], v / _expected(i, batches, kept, quanta))
        for i, values in enumerate(reported)
        for v in values
        if v not in kept[i]
    )
    b, means = [batches[i] for i in used], [_mean(kept[i], quanta[i]) for i in used]
    steps = [m / size for m, size in zip(means, b, strict=True)]
    coarse = _coarse([kept[i] for i in used], [quanta[i] for i in used])
    found = fit(b, steps, level, known=_felt(b, fit(b, steps, level).critical.value, coarse))
    others = [_prediction(b, steps, i) for i in range(len(b))]
    points = tuple(
        FitPoint(
            batch=size,
            values=tuple(kept[i]),
            mean=mean,
            quantum=quanta[i],
            residual=math.log(mean / (found.samples.value * (1 + size / found.critical.value))),
            left_out=None if guess is None else math.log(mean / (guess * size)),
        )
        for i, size, mean, guess in zip(used, b, means, others, strict=True)
    )
    draw = _seeds(b, [kept[i] for i in used], [quanta[i] for i in used], draws, seed)
    seeds = None
    if draw is not None:
        low, high = (float(q) for q in np.quantile(draw, [(1 - level) / 2, (1 + level) / 2]))
        reach = (b[0] / _FAR, b[-1] * _FAR)
        seeds = Interval(found.critical.value, low if low > reach[0] else 0.0, high if high < reach[1] else math.inf)
    bent = bend(b, steps, level)
    return TableFit(
        table.name, table.unit, table.amount, table.scale, found, seeds, points, named, bent, table.notes,
        table.batch_unit,
    )  # fmt: skip


def _quanta(points: Sequence[TablePoint]) -> list[float]:
    """How far evaluations lie apart at each batch: as told, or the greatest common divisor of values that differ.

    A batch whose seeds all agree takes it from the nearest one that shows it, or from all batches where none does. One
    value a batch shows nothing, unless its history tells which evaluation came before.
    """
    values = [p.values for p in points]
    told = [float(np.mean([v - s for v, s in zip(p.values, p.since, strict=True)])) if p.since else None
            for p in points]  # fmt: skip
    found = [_divisor(v) if len(set(v)) > 1 else None for v in values]
    shown = [i for i, q in enumerate(found) if q is not None]
    every = _divisor([x for v in values for x in v])
    quanta = []
    for i, v in enumerate(values):
        near = found[min(shown, key=lambda j: abs(j - i))] if shown else every
        guess = (found[i] or near or 0.0) if len(v) > 1 else 0.0
        known = told[i]
        quanta.append(min(guess if known is None else known, min(v)))
    return quanta


def _divisor(values: Sequence[float]) -> float | None:
    parts = [Fraction(repr(float(v))).limit_denominator(_DENOMINATOR) for v in set(values)]
    bottom = math.lcm(*(p.denominator for p in parts))
    return float(Fraction(reduce(math.gcd, (int(p * bottom) for p in parts)), bottom)) or None


def _mean(values: Sequence[float], quantum: float) -> float:
    """Geometric mean of the middles of the intervals between evaluations."""
    return math.exp(sum(math.log(v - quantum / 2) for v in values) / len(values))


def _coarse(values: Sequence[Sequence[float]], quanta: Sequence[float]) -> np.ndarray:
    """Variance of each point, in logs, that evaluating rarely leaves; seeds average it where they scatter."""
    parts = []
    for v, q in zip(values, quanta, strict=True):
        scattered = len(v) > 1 and np.std(v) > q / 2
        parts.append((q / _mean(v, q)) ** 2 / 12 / (len(v) if scattered else 1))
    return np.array(parts)


def _felt(batches: Sequence[float], critical: float, variance: np.ndarray) -> float:
    """The deviation that, were it the same at every point, would leave S_min, E_min and B_crit as uncertain.

    With X the gradient of the fit, an estimate a'(X'X)^-1 X'y has the variance w'Dw, and s^2 w'w where D = s^2: what
    counts is where the rarely evaluated batches stand. The largest of the three, and at least the root mean square.
    """
    design = np.stack([np.ones(len(batches)), critical / (critical + np.asarray(batches))], 1)
    weights = np.linalg.pinv(design)
    both = np.stack([weights[0], weights[1], weights.sum(0)])
    share = np.square(both) / np.square(both).sum(1, keepdims=True)
    return math.sqrt(max(float(variance.mean()), *(share @ variance).tolist()))


def _prediction(batches: Sequence[float], steps: Sequence[float], i: int) -> float | None:
    """Steps at a batch by the fit of all others, None where those are fewer than three."""
    rest = [j for j in range(len(batches)) if j != i]
    if len(rest) < 3:
        return None
    found = fit([batches[j] for j in rest], [steps[j] for j in rest])
    return found.steps.value * (1 + found.critical.value / batches[i])


def _expected(i: int, batches: Sequence[float], kept: Sequence[Sequence[float]], quanta: Sequence[float]) -> float:
    """What a value at batch i should be: the median of its seeds, or what the other batches say."""
    if kept[i]:
        return float(np.median(kept[i]))
    rest = [j for j in range(len(batches)) if kept[j] and j != i]
    found = fit([batches[j] for j in rest], [_mean(kept[j], quanta[j]) / batches[j] for j in rest])
    return found.samples.value * (1 + batches[i] / found.critical.value)


def _without(batches: Sequence[float], values: Sequence[Sequence[float]], quanta: Sequence[float]) -> list[list[float]]:
    """The values without those far off: of their own batch's seeds first, then batches off all others.

    Where a third of a batch's seeds would go, its median is in doubt too, and the other batches decide.
    """
    logs = [np.log(v) for v in values]
    middles = np.array([np.median(one) for one in logs])
    off = [np.abs(one - middle) for one, middle in zip(logs, middles, strict=True)]
    scattered = np.concatenate([o for o in off if len(o) > 2] or [np.zeros(1)])
    scale = max(1.4826 * float(np.median(scattered)), _SMALL)
    kept = []
    for i, (v, q) in enumerate(zip(values, quanta, strict=True)):
        own = 1.4826 * float(np.median(off[i])) if len(v) >= _MANY else 0.0
        limit = max(_WIDE * max(scale, own), _APART, 2 * q / min(v)) if len(v) > 2 else 2 * _APART
        good = off[i] <= limit
        if 3 * good.sum() <= 2 * len(v):
            guess = _prediction(batches, np.exp(middles) / np.array(batches), i)
            near = np.zeros(0) if guess is None else np.abs(logs[i] - math.log(guess * batches[i])) <= 2 * _APART
            good = near if near.any() else np.ones(len(v), bool)
        kept.append([x for x, fine in zip(v, good, strict=True) if fine])
    for _ in range(len(batches) // 5):
        odd = _odd_batch(batches, kept, quanta)
        if odd is None:
            break
        kept[odd] = []
    return kept


def _odd_batch(batches: Sequence[float], kept: Sequence[Sequence[float]], quanta: Sequence[float]) -> int | None:
    """The batch that lies farthest off the fit of all others, where that is no chance."""
    used = [i for i, v in enumerate(kept) if v]
    if len(used) < 5:
        return None
    b = np.array([batches[i] for i in used])
    steps = np.array([_mean(kept[i], quanta[i]) for i in used]) / b
    worst, found = 0.0, None
    for place, i in enumerate(used):
        rest = np.arange(len(used)) != place
        other = fit(b[rest], steps[rest])
        slope = other.critical.value / (other.critical.value + b)
        centre = slope[rest].mean()
        spread = ((slope[rest] - centre) ** 2).sum()
        lever = 1 + 1 / rest.sum() + (slope[place] - centre) ** 2 / max(spread, 1e-12)
        away = abs(math.log(steps[place] / (other.steps.value * (1 + other.critical.value / b[place]))))
        score = away / (max(other.residual, _SMALL) * math.sqrt(lever))
        if away > _APART and score > max(worst, student_t(len(used) - 3, 1 - 0.0005 / len(used))):
            worst, found = score, i
    return found


def _seeds(
    batches: Sequence[float], values: Sequence[Sequence[float]], quanta: Sequence[float], draws: int, seed: int
) -> np.ndarray | None:
    """B_crit over draws of the seeds at each batch, each value anywhere within its evaluation interval."""
    if not any(len(v) > 1 for v in values):
        return None
    rng = np.random.default_rng(seed)
    many = []
    for size, v, q in zip(batches, values, quanta, strict=True):
        drawn = rng.choice(np.asarray(v), (draws, len(v)))
        early = rng.random((draws, 1 if np.std(v) <= q / 2 else len(v))) * min(q, 0.999 * min(v))
        many.append(np.log(drawn - early).mean(1) - math.log(size))
    return critical_batches(batches, np.exp(np.stack(many, 1)))
