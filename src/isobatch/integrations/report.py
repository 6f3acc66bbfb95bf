"""What a trainer is told: numbers for its logger, and one sentence at the end."""

import math
import sys

from isobatch.average import ModelAverage
from isobatch.logs import Log
from isobatch.noise import Identification, NoiseEstimate
from isobatch.rules import samples_factor, steps_factor
from isobatch.train import SampleClock


def entries(clock: SampleClock, prefix: str = "isobatch") -> dict[str, float]:
    """Return what a logger is told of a clock: samples seen, half-life, noise scale with its interval.

    Args:
        clock: of the run.
        prefix: before every name.

    Returns:
        Finite numbers alone; a noise scale that is not identified yet has `noise_scale_identified` 0.

    Example:
        >>> entries(SampleClock())
        {'isobatch/seen': 0.0}
    """
    found: dict[str, float | None] = {"seen": clock.seen}
    average = clock.average
    if isinstance(average, ModelAverage):
        found["half_life"] = getattr(average, "half_life", None)
    for number, noise in enumerate(clock.noises):
        estimate, name = noise.estimate(), f"noise_scale_{number}" if number else "noise_scale"
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        found[f"{name}_identified"] = float(estimate.verdict is Identification.IDENTIFIED)
    return {f"{prefix}/{key}": float(v) for key, v in found.items() if v is not None and math.isfinite(v)}


def tell(log: Log | None, clock: SampleClock) -> None:
    """Tell a logger of its own, at the samples seen.

    Args:
        log: with samples on the x axis; None for none.
        clock: of the run.

    Example:
        >>> tell(None, SampleClock())
    """
    if log is not None:
        log.add(entries(clock), int(clock.seen))


def is_larger_worth_it(estimate: NoiseEstimate | None, batch: float, unit: str = "samples") -> str:
    """Answer in one line whether a larger batch would pay, by the noise scale that was measured.

    Twice the batch needs (1 + S/2B)/(1 + S/B) times the steps and (1 + 2B/S)/(1 + B/S) times the samples, with S the
    noise scale in the place of the critical batch, which it is near but not the same as.

    Args:
        estimate: the noise scale; None where it was not measured.
        batch: global batch in use, in the noise scale's unit.
        unit: of both.

    Returns:
        A sentence.

    Example:
        >>> is_larger_worth_it(None, 8)
        'Is a larger batch worth it? Not measured: noise=True measures the noise scale.'

    References:
        arXiv 1812.06162, 2.11 and 2.12.
    """
    question = "Is a larger batch worth it?"
    if estimate is None:
        return f"{question} Not measured: noise=True measures the noise scale."
    if estimate.verdict is not Identification.IDENTIFIED or not estimate.value or batch <= 0:
        return f"{question} Not known yet: {estimate.sentence}."
    scale = estimate.value
    fewer = 1 - steps_factor(2 * batch, scale) / steps_factor(batch, scale)
    more = samples_factor(2 * batch, scale) / samples_factor(batch, scale) - 1
    if batch <= estimate.low:
        answer = "Yes"
    elif batch >= estimate.high:
        answer = "No"
    else:
        answer = "It is near the balance"
    return (
        f"{question} {answer}: the batch is {_count(batch)} {unit}, the noise scale {_count(scale)} "
        f"({estimate.level:.0%} interval {_count(estimate.low)} to {_count(estimate.high)}); twice the batch would "
        f"take about {fewer:.0%} fewer steps and {more:.0%} more {unit}."
    )


def say(line: str) -> None:
    """Write one line to the standard output.

    Args:
        line: without its end.
    """
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def answer(clock: SampleClock, unit: str) -> str:
    """Return the closing line of a run.

    Args:
        clock: of the run, after its last step.
        unit: of the noise scale.

    Returns:
        The sentence for the mean batch of the run, in the noise scale's unit.
    """
    if clock.noise is None:
        return is_larger_worth_it(None, 0)
    steps = clock.steps + clock.skips
    return is_larger_worth_it(clock.noise.estimate(), clock.noise.seen / steps if steps else 0, unit)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
