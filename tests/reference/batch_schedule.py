"""Batch schedules the slow way: one step after another, one sample after another."""

from fractions import Fraction


def batch_at(stages, seen):
    batch = None
    for start, b in stages:
        if start <= seen:
            batch = b
    return batch


def walk(stages, length):
    """The samples of every step of a run, the last one cut."""
    seen, steps = 0, []
    while seen < length:
        stop = min(seen + batch_at(stages, seen), length)
        steps.append(range(seen, stop))
        seen = stop
    return steps


def linear_ramp(first, last, start, stop, grain, seen):
    """The last multiple of the grain that the straight line has reached at `seen`."""
    if seen <= start:
        return first
    if seen >= stop:
        return last
    line = first + Fraction(last - first) * (seen - start) / (stop - start)
    moved = abs(line - first) // grain * grain
    return first + moved if last > first else first - moved


def geometric_ramp(first, last, start, stop, grain, seen):
    """The last multiple of the grain that the exponential has reached: (B/first)**span <= (last/first)**(s-start)."""
    if seen <= start:
        return first
    best, span = first, stop - start
    up = 1 if last > first else -1
    batch = first + up * grain
    while up * batch <= up * last:
        reached, line = Fraction(batch, first) ** span, Fraction(last, first) ** min(seen - start, span)
        if up * reached > up * line:
            break
        best, batch = batch, batch + up * grain
    return best


def lr_per_sample(staircase, batch, length):
    """What each sample adds to the sum of the learning rate: the stair's value / the reference batch."""
    return [Fraction(staircase.at(sample)) / batch for sample in range(length)]
