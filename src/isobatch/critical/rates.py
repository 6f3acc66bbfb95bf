"""Which learning rates a sweep tries at a batch: outwards until the best is not at an edge, then once between."""

import math
from collections.abc import Callable, Mapping, Sequence

STEP = 2.0
MOST = 10
"""Learning rates at one batch after which no further ones are begun."""


def first(centre: float) -> list[float]:
    """Return the first rates to try: the centre and a factor of two to either side.

    Args:
        centre: the best guess.

    Returns:
        Three rates.

    Example:
        >>> first(0.1)
        [0.05, 0.1, 0.2]
    """
    return [centre / STEP, centre, centre * STEP]


def following(scores: Mapping[float, Sequence[float]]) -> list[float]:
    """Return which rates to try next: beyond an edge that is best for some goal, then half steps beside each best.

    Args:
        scores: learning rate -> score for each goal, the lower the better, infinity where it was lost.

    Returns:
        New rates, none when every goal's best lies between two rates that were tried a half step away.
    """
    if len(scores) >= MOST:
        return []
    rates = sorted(scores)
    goals = range(len(next(iter(scores.values()))))
    bests = {best(scores, goal) for goal in goals}
    outside = {rate / STEP for rate in bests if rate == rates[0]} | {rate * STEP for rate in bests if rate == rates[-1]}
    if outside:
        return sorted(outside)
    new: list[float] = []
    for rate in sorted(rate * math.sqrt(STEP) ** side for rate in bests for side in (-1, 1)):
        if not any(math.isclose(rate, known, rel_tol=1e-6) for known in rates + new):
            new.append(rate)
    return new


def best(scores: Mapping[float, Sequence[float]], goal: int) -> float:
    """Return the rate with the lowest score for a goal; the lower one of equals.

    Args:
        scores: learning rate -> score for each goal.
        goal: index of the goal.

    Returns:
        The learning rate.

    Example:
        >>> best({0.1: [5.0], 0.2: [4.0], 0.4: [math.inf]}, 0)
        0.2
    """
    return min(sorted(scores), key=lambda rate: scores[rate][goal])


def explore(
    centre: float, given: Sequence[float] | None, run: Callable[[list[float]], Mapping[float, Sequence[float]] | None]
) -> dict[float, Sequence[float]] | None:
    """Try learning rates at one batch until the best is inside.

    Args:
        centre: the best guess.
        given: rates to try and no others, None to search.
        run: scores of new rates; None when the budget forbids them.

    Returns:
        Scores of every rate; None when the budget ended the search.
    """
    scores: dict[float, Sequence[float]] = {}
    rates = list(given) if given is not None else first(centre)
    while rates:
        found = run(rates)
        if found is None:
            return None
        scores |= found
        rates = [] if given is not None else following(scores)
    return scores
