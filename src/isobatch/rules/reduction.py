"""A loss that is summed over the batch, not averaged: the same numbers in another unit, which grows with the batch."""

import re

from isobatch.rules.rule import Applied, OptimizerRow

UNITS = ("mean", "sum", "times batch")


def power_of(setting: str, row: OptimizerRow, coupling: str, *, inside: bool = False) -> int:
    """Return the power of kappa by which a setting's unit grows when the loss is summed over the batch.

    A summed gradient is B times the mean one. A step that is proportional to it has the learning rate lr/B; what stands
    beside the gradient (coupled decay, clip) or beside its size (eps) is B times as large, inside a root B**2.

    Args:
        setting: lr, eps, weight_decay or clip; others have no such unit.
        row: the optimizer's row.
        coupling: of its weight decay.
        inside: whether eps stands inside the root.

    Returns:
        The power.

    Example:
        >>> from isobatch.rules.optimizers import OPTIMIZERS
        >>> [power_of(name, OPTIMIZERS["sgd"], "coupled") for name in ("lr", "weight_decay", "clip")]
        [-1, 1, 1]
    """
    if setting == "lr":
        return -1 if row.proportional else 0
    if setting == "eps":
        return 2 if inside else 1
    if setting == "weight_decay":
        beside = coupling == "coupled" or (coupling == "trust-ratio" and not row.adaptive)
        return 1 if beside else 0
    return 1 if setting == "clip" else 0


def in_unit(found: Applied, power: int) -> Applied:
    """Return a moved setting in the unit of a summed loss.

    Args:
        found: as for a mean.
        power: of kappa, from `power_of`.

    Returns:
        The setting beside its rule, with the factor in number, formula and reason.
    """
    if not power or found.change.kappa == 1:
        return found
    formula, *letters = re.split(r", (?=\w+ = )", found.rule.formula, maxsplit=1)
    factor = {-1: "/kappa", 1: "*kappa", 2: "*kappa**2"}[power]
    rule = found.rule.but(
        formula=", ".join([f"({formula}){factor}", *letters]),
        because=f"{found.rule.because}; the loss is summed, so its gradient grows by kappa",
    )
    return found._replace(rule=rule, becomes=found.becomes * found.change.kappa**power)
