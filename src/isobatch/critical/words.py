"""Numbers as people read them, and the sentences of sweep, branch and advice."""

import math

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
        if fit.critical.low == 0 and math.isfinite(fit.critical.high):
            advice = "add smaller batches"
        elif fit.critical.low > 0 and not math.isfinite(fit.critical.high):
            advice = "add larger batches"
        else:
            advice = "add batches on both sides, or seeds"
        return f"{where}: critical batch not identified ({interval} {unit}); {advice}"
    return (
        f"{where}: critical batch {plain(fit.critical.value)} {unit} ({interval}); at least "
        f"{plain(fit.steps.value)} steps or {plain(fit.samples.value)} {unit}, twice either at the critical batch"
    )


def branch_sentence(
    unit: str, seen: int, batches: tuple[int, int, int], seeds: int, tolerance: float, metric: str, *, largest: bool
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

    Returns:
        A sentence.
    """
    batch, low, high = batches
    interval = f" ({low:,} to {high:,} over {seeds} seeds)" if seeds > 1 else ""
    found = f"from {seen:,} {unit} on, batch {batch:,}{interval} is the largest within {tolerance:g} in {metric}"
    return (
        found
        + " of every smaller one"
        + ("; no larger one was tried, so the critical batch is at least that" if largest else "")
    )
