"""Numbers as people read them, and the sentences of sweep, branch and advice."""

import math
from typing import Any

from isobatch.critical.hyperbola import Hyperbola, Interval


def plain(number: float) -> str:
    """Return a number with three digits that count, thousands apart and no exponent.

    Args:
        number: any; infinity is spelt.

    Returns:
        Text.

    Example:
        >>> plain(123456.0), plain(0.01234), plain(math.inf)
        ('123,000', '0.0123', 'infinity')
    """
    if not math.isfinite(number):
        return "infinity"
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(number)))
    return f"{round(number, digits):,.{max(digits, 0)}f}"


def sized(batch: float) -> str:
    """Return a batch for people, every digit of a whole one.

    Args:
        batch: samples or tokens.

    Returns:
        Text.

    Example:
        >>> sized(1048576.0), sized(1.5)
        ('1,048,576', '1.5')
    """
    return f"{batch:,.0f}" if batch == int(batch) else f"{batch:,.6g}"


def ranged(interval: Interval) -> str:
    """Return an interval: from low to high, or the bound that exists.

    Args:
        interval: with open ends as 0 and infinity.

    Returns:
        Text.

    Example:
        >>> ranged(Interval(5.0, 2.0, math.inf)), ranged(Interval(5.0, 2.0, 9.0))
        ('at least 2.00', '2.00 to 9.00')
    """
    if interval.low == 0 and not math.isfinite(interval.high):
        return "unbounded"
    if not math.isfinite(interval.high):
        return f"at least {plain(interval.low)}"
    return (
        f"at most {plain(interval.high)}" if interval.low == 0 else f"{plain(interval.low)} to {plain(interval.high)}"
    )


def sweep_sentence(metric: str, goal: float, fit: Hyperbola | None, points: int, unit: str) -> str:
    """Return what a sweep found for one goal.

    Args:
        metric: that was followed.
        goal: its value.
        fit: the hyperbola, None with too few points.
        points: batches that reached the goal.
        unit: what the clock counts.

    Returns:
        A sentence.
    """
    where = f"{metric} {goal:g}"
    if fit is None:
        return f"{where}: only {points} batches reached it, a fit takes 3; raise limit or choose an easier goal"
    interval = f"{fit.level * 100:g}% interval {ranged(fit.critical)}"
    if not fit.identified:
        return f"{where}: critical batch not identified ({interval} {unit}); {wanting(fit)}"
    return (
        f"{where}: critical batch {plain(fit.critical.value)} {unit} ({interval}); at least "
        f"{plain(fit.steps.value)} steps or {plain(fit.samples.value)} {unit}, twice either at the critical batch"
    )


FEWEST_SEEDS = 3
"""Branched runs below which no interval over seeds is given."""


def branch_sentence(
    unit: str,
    seen: int,
    batches: tuple[int, int, int],
    seeds: int,
    tolerance: float,
    metric: str,
    *,
    largest: bool,
    most: int,
) -> str:
    """Return what branched training found.

    Args:
        unit: what the clock counts.
        seen: samples at which the branches began.
        batches: the largest within the tolerance, and the ends of its interval.
        seeds: that were run.
        tolerance: in the metric.
        metric: that was compared.
        largest: whether no larger batch was tried.
        most: the largest batch that was tried.

    Returns:
        A sentence.
    """
    batch, low, high = batches
    interval = f" ({low:,} to {high:,}{' or more' if high == most else ''} over {seeds} seeds)"
    if seeds < FEWEST_SEEDS:
        interval = f" (of {seeds} seed{'s' if seeds > 1 else ''}; an interval takes {FEWEST_SEEDS})"
    found = f"from {seen:,} {unit} on, batch {batch:,}{interval} is the largest within {tolerance:g} in {metric}"
    return (
        found
        + " of every smaller one"
        + ("; no larger one was tried, so the critical batch is at least that" if largest else "")
    )


def fit_sentences(data: dict[str, Any], found: Hyperbola, seeds: Interval | None) -> tuple[str, ...]:
    """Return what the fit of a table found.

    Args:
        data: the fit as plain values.
        found: its hyperbola.
        seeds: interval over the seeds alone.

    Returns:
        Sentences.
    """
    amount, scale = data["amount"], data["scale"]
    said = [_critical_sentence(data, found)]
    if found.identified and scale is not None:
        said.append(f"at least {plain(found.steps.value * scale)} steps, or {plain(found.samples.value)} {amount}")
    elif found.identified:
        said.append(f"at least {plain(found.samples.value)} {amount}; steps need the samples of one of them (size)")
    if seeds is not None:
        said.append(f"seeds alone: {ranged(seeds)}; the interval above also holds what the batches do not agree on")
    if data["left_out"] is not None:
        worst = max((p for p in data["points"] if p["left_out"] is not None), key=lambda p: abs(p["left_out"]))
        said.append(
            f"residuals {found.residual:.1%}; a batch left out is predicted within {data['left_out']:.1%} (root mean "
            f"square), worst {math.expm1(worst['left_out']):+.1%} at {sized(worst['batch'])}"
        )
    said += [
        f"left out as an outlier: {o['value']:,.12g} at batch {sized(o['batch'])}, {o['ratio']:.3g} times what is "
        "expected"
        for o in data["outliers"]
    ]
    coarse = max(data["points"], key=lambda p: p["quantum"] / p["mean"])
    if coarse["quantum"] > 0.02 * coarse["mean"]:
        said.append(
            f"evaluated rarely: every {coarse['quantum'] / coarse['mean']:.0%} of the way at batch "
            f"{sized(coarse['batch'])}; half of that is taken off, and the interval is no narrower than it allows"
        )
    bent = data["bend"]
    if bent is not None and bent["better"]:
        how = "harder" if bent["exponent"] > 1 else "softer"
        said.append(
            f"bends {how} than the hyperbola: (B/B_crit)^{bent['exponent']:.2g} fits better, with B_crit "
            f"{plain(bent['critical'])}, residuals {bent['residual']:.1%} instead of {found.residual:.1%}"
        )
    return tuple(said)


def _critical_sentence(data: dict[str, Any], found: Hyperbola) -> str:
    interval = f"{found.level * 100:g}% interval {ranged(found.critical)}"
    if found.identified:
        unit = "" if data["batch_unit"] == "samples" else f" {data['batch_unit']}"
        value = f"{plain(found.critical.value)}{unit}"
        return f"{data['name']}: critical batch {value} ({interval}), {found.batches} batches"
    return f"{data['name']}: critical batch not identified ({interval}), {found.batches} batches; {wanting(found)}"


def wanting(found: Hyperbola) -> str:
    """Return what a fit that is not identified lacks.

    Args:
        found: the fit.

    Returns:
        An advice.
    """
    if found.critical.low == 0 and math.isfinite(found.critical.high):
        return "add smaller batches"
    if found.critical.low > 0 and not math.isfinite(found.critical.high):
        return "add larger batches"
    return "add batches on both sides, or seeds"
