"""Advice: throughput x (1 + B_crit/B), the front of time against compute, and the batch for each wish."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isobatch.critical.hyperbola import Interval
from isobatch.critical.machine import Network, StepTime, fit_steps
from isobatch.critical.words import plain, ranged
from isobatch.errors import InputError
from isobatch.rules import goodput, samples_factor, steps_factor
from isobatch.units import finite, whole

_TOP = 64
"""Largest batch considered, in critical batches."""
_BEYOND = 1e4
_FLAT, _OFF = 0.1, 0.5
"""Share of a step that must grow with the batch before it is extrapolated, and misfit from which a fit is no line."""


@dataclass(frozen=True)
class Option:
    """One batch on one number of devices.

    Args:
        batch: global samples a step.
        devices: that share it.
        step_seconds: of one step.
        seconds: to the goal; relative to the least possible samples where E_min is not known.
        compute: devices times seconds.
        steps_factor: S/S_min.
        samples_factor: E/E_min.
        goodput: useful samples a second, in samples of the batch in use: throughput times gain over scale.
        front: whether no other option is both faster and cheaper.
    """

    batch: int
    devices: int
    step_seconds: float
    seconds: float
    compute: float
    steps_factor: float
    samples_factor: float
    goodput: float
    front: bool = False


@dataclass(frozen=True)
class Advice:
    """What to choose, and how sure it is.

    Args:
        critical: B_crit with its interval.
        options: every batch and number of devices.
        picks: "cheapest", "within" (the fastest for at most `extra` more compute) and "fastest".
        ranges: the same picks' batches when B_crit is at the low and the high end of its interval; an open end is far
            below or above all batches.
        extra: share of compute that may be spent beyond the cheapest.
        sentences: for a person.
        assumptions: of the model.
        unit: what the batch counts.
        absolute: whether seconds are those of a whole run, E_min being known.
    """

    critical: Interval
    options: tuple[Option, ...]
    picks: dict[str, Option]
    ranges: dict[str, tuple[int, int]]
    extra: float
    sentences: tuple[str, ...]
    assumptions: tuple[str, ...]
    unit: str
    absolute: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain values."""
        return asdict(self)


def advise(
    critical: Interval | float,
    throughput: Mapping[float, float] | StepTime,
    *,
    now: int,
    devices: Sequence[int] = (1,),
    network: Network | None = None,
    samples: float | None = None,
    extra: float = 0.1,
    largest_local: int | None = None,
    most: int | None = None,
    unit: str = "samples",
) -> Advice:
    """Turn a critical batch and a throughput curve into time and compute of every batch, and into advice.

    seconds = S_min (1 + B_crit/B) * step(B, N), compute = N * seconds. Each batch is taken at its own best learning
    rate, as in the sweep that measured B_crit; B_simple is not B_crit unless it was calibrated.

    Args:
        critical: B_crit, best with its interval.
        throughput: local batch -> seconds of one step on one device, or its fit.
        now: the batch in use, to compare with.
        devices: numbers of devices to consider.
        network: all-reduce model; needed for more than one device.
        samples: E_min, the fewest samples to the goal, for absolute times.
        extra: share of compute beyond the cheapest for the middle pick.
        largest_local: samples that fit into one pass of a device; more are accumulated.
        most: largest global batch considered; 64 critical batches unless given.
        unit: what the batch counts.

    Returns:
        The advice.

    Raises:
        InputError: values out of range, several devices without a network, or no batch that fits.

    References:
        arXiv 1812.06162, 2.11 and 5.1; step time: arXiv 2008.12260.
    """
    crit = critical if isinstance(critical, Interval) else Interval(critical, critical, critical)
    finite("critical batch", crit.value, 0, open_low=True)
    counts = sorted({whole("devices", n) for n in devices})
    if not counts:
        raise InputError("devices=[] is empty; give numbers of devices")
    size, share = whole("now", now), finite("extra", extra, 0)
    if counts[-1] > 1 and network is None:
        raise InputError(f"devices={counts[-1]} need a network: give gradient bytes, latency and bandwidth")
    step = throughput if isinstance(throughput, StepTime) else fit_steps(throughput)
    net = network or Network(0.0)
    local = math.inf if largest_local is None else whole("largest_local", largest_local)
    top = whole("most", most) if most is not None else max(size, math.ceil(_TOP * crit.value))
    pairs = [(b, n) for n in counts for b in _batches(n, top, size)]
    timed, told = max(b for b, _ in step.points), _doubts(step, unit)
    if pairs and step.per_sample * timed < _FLAT * step.base:  # samples look free as far as was timed
        pairs = [(b, n) for b, n in pairs if min(b / n, local) <= timed]
        if not pairs:
            raise InputError(f"{told[0]}; no batch is small enough for {counts} devices by these times")
    if not pairs:
        raise InputError(f"no batch up to {top} {unit} can be shared by {counts} devices; raise most, or fewer devices")

    def options(at: float) -> tuple[Option, ...]:
        least = finite("samples", samples, 0, open_low=True) if samples is not None else 1.0
        return _marked([_option(b, n, at, least, net.step(step.at(b / n, local), n), size) for b, n in pairs])

    made = options(crit.value)
    picks = _picks(made, share)
    ends = (max(crit.low, pairs[0][0] / _BEYOND), min(crit.high, top * _BEYOND))  # an open end lies past all batches
    low, high = (_picks(options(end), share) for end in ends)
    ranges = {}
    for name in picks:
        found = (low[name].batch, picks[name].batch, high[name].batch)
        ranges[name] = (min(found), max(found))
    sentences = (*told, *_about(crit, size, unit), *_wishes(picks, ranges, share, unit))
    each = unit.removesuffix("s")
    worst = f"a step takes {step.base:.3g} s + {step.per_sample:.3g} s a {each} (worst misfit {step.misfit:.0%} at "
    assumptions = (
        worst + f"{len(step.points)} timed batches); beyond {max(b for b, _ in step.points):g} it is extrapolated",
        *(net.assumptions() if counts[-1] > 1 else ()),
        "every batch runs at its own best learning rate, with the steps of the hyperbola; the goal is the one at which "
        "the critical batch was measured",
    )
    return Advice(crit, made, picks, ranges, share, sentences, assumptions, unit, samples is not None)


def _doubts(step: StepTime, unit: str) -> tuple[str, ...]:
    """What the timed steps do not tell, or tell wrongly."""
    largest, told = max(b for b, _ in step.points), ()
    if step.per_sample * largest < _FLAT * step.base:
        told = (
            f"steps of up to {largest:,g} {unit} on a device take as long as small ones, so that nothing says what "
            "larger ones take: they are left out; time larger batches",
        )
    if step.misfit > _OFF:
        far, seconds = max(step.points, key=lambda point: abs(step.at(point[0]) / point[1] - 1))
        told += (
            f"the timed steps lie on no line: {seconds:.3g} s at batch {far:g}, where the line says "
            f"{step.at(far):.3g} s; time after compilation and warm-up, the median of several steps",
        )
    return told


def _batches(devices: int, top: int, now: int) -> list[int]:
    """Multiples of the devices by powers of two, and the batch in use where it divides."""
    found = (
        {devices * 2**i for i in range(max(0, int(math.log2(max(top / devices, 1)))) + 1)} if devices <= top else set()
    )
    return sorted(found | ({now} if now % devices == 0 and now <= top else set()))


def _option(batch: int, devices: int, critical: float, least: float, step: float, now: int) -> Option:
    steps, samples = steps_factor(batch, critical), samples_factor(batch, critical)
    seconds = least * samples / batch * step
    good = goodput(batch / step, batch, now, critical)
    return Option(batch, devices, step, seconds, devices * seconds, steps, samples, good)


def _marked(options: list[Option]) -> tuple[Option, ...]:
    """Mark the front: going from fast to slow, every option that is cheaper than all before it."""
    best, front = math.inf, set()
    for index in sorted(range(len(options)), key=lambda i: (options[i].seconds, options[i].compute)):
        if options[index].compute < best:
            best = options[index].compute
            front.add(index)
    return tuple(Option(**{**asdict(option), "front": index in front}) for index, option in enumerate(options))


def _picks(options: Sequence[Option], extra: float) -> dict[str, Option]:
    front = [option for option in options if option.front]
    cheapest = min(front, key=lambda o: (o.compute, o.seconds))
    affordable = [option for option in front if option.compute <= cheapest.compute * (1 + extra)]
    return {
        "cheapest": cheapest,
        "within": min(affordable, key=lambda o: o.seconds),
        "fastest": min(front, key=lambda o: o.seconds),
    }


def _about(critical: Interval, now: int, unit: str) -> list[str]:
    """What the batch in use keeps, and what four times it would buy; ends of the interval in brackets."""

    def over(of: Callable[[float], float], form: str, times: str = "") -> str:
        ends = sorted(of(end) for end in (critical.low, critical.high) if 0 < end < math.inf)
        value = f"{of(critical.value):{form}}{times}"
        return f"{value} [{ends[0]:{form}} to {ends[-1]:{form}}]" if len(ends) == 2 and ends[0] < ends[1] else value

    kept = over(lambda c: 1 / samples_factor(now, c), ".0%")
    bigger = 4 * now
    cut = over(lambda c: steps_factor(now, c) / steps_factor(bigger, c), ".2g", "x")
    cost = over(lambda c: samples_factor(bigger, c) / samples_factor(now, c), ".2g", "x")
    about = f"critical batch {plain(critical.value)} {unit}"
    interval = f", interval {ranged(critical)}" if critical.low < critical.high else ", given without an interval"
    return [
        f"{now:,} {unit} keeps {kept} of the best sample efficiency; {bigger:,} cuts steps {cut} for {cost} samples",
        about + interval,
    ]


def _wishes(picks: Mapping[str, Option], ranges: Mapping[str, tuple[int, int]], extra: float, unit: str) -> list[str]:
    words = {"cheapest": "cheapest", "within": f"at most {extra:.0%} more compute", "fastest": "fastest"}
    found, base = [], picks["cheapest"]
    for name, option in picks.items():
        low, high = ranges[name]
        about = f" ({low:,} to {high:,} over the interval)" if low < high else ""
        where = f" on {option.devices:,} devices" if option.devices > 1 else ""
        line = f"{words[name]}: batch {option.batch:,} {unit}{where}{about}"
        if name != "cheapest" and option == base:
            line += ": the cheapest one"
        elif name != "cheapest":
            faster, dearer = base.seconds / option.seconds, option.compute / base.compute
            line += f": {plain(faster)}x faster than the cheapest for {plain(dearer)}x its compute"
        found.append(line)
    return found
