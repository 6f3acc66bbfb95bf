"""What a change of the batch does to an optimizer's state: settings need no history, state does."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from isobatch.rules import betas, momentum
from isobatch.rules.noise_share import second_moment_factor
from isobatch.rules.rule import OptimizerRow, Rule


class StateChange(NamedTuple):
    """What the state of an optimizer saw, and what it will see.

    Args:
        kappa: new batch / batch of the steps so far.
        share: noise share of the second moment at the batch so far.
        momentum: before and after.
        beta: decay of the second moment, before and after.
    """

    kappa: float
    share: float
    momentum: tuple[float, float]
    beta: tuple[float, float]


def _by(rule: Rule, pair: tuple[float, float]) -> float:
    return 1.0 if rule.state is None or pair[0] == pair[1] else rule.state(*pair)


STATE: Mapping[str, Callable[[StateChange], float]] = {
    "momentum": lambda b: _by(momentum.SAMPLE_CLOCK, b.momentum),
    "second moment": lambda b: second_moment_factor(b.kappa, b.share),
    "steps": lambda b: _by(betas.POWER, b.beta),
}
"""What a row may say of a state key -> the factor on it.

momentum: the buffer stays the buffer of the same gradient. second moment: v follows the noise share. steps: bias
correction follows the accumulated decay.
"""


def state_factors(row: OptimizerRow, change: StateChange) -> dict[str, float]:
    """Return the factor on each key of an optimizer's state.

    Args:
        row: the optimizer's row.
        change: what its state saw.

    Returns:
        Key -> factor; keys that are not named stay.

    Example:
        >>> from isobatch.rules.optimizers import OPTIMIZERS
        >>> state_factors(OPTIMIZERS["sgd"], StateChange(4, 1.0, (0.9, 0.6561), (0.999, 0.999)))
        {'momentum_buffer': 0.290...}
    """
    return {key: STATE[what](change) for key, what in row.state.items()}
