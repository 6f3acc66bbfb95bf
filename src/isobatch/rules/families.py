"""The optimizers that the rules know, and which rule each one follows."""

import difflib
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.rules import learning_rate
from isobatch.rules.rule import Rule


@dataclass(frozen=True)
class Family:
    """Which rules an optimizer follows.

    Args:
        lr_rule: the words of its default learning-rate rule.
        exponent: kappa's power in that rule, 1 or 0.5.
        decay: how its weight decay is coupled unless the recipe says otherwise.
        moments: names of its beta-like settings: "momentum", "betas" or "alpha".
        adaptive: whether it divides by a second moment with eps.
        invariant: whether that second moment is the one of a reference batch, at any batch.
    """

    lr_rule: Rule
    exponent: float
    decay: str
    moments: tuple[str, ...]
    adaptive: bool = False
    invariant: bool = False


_SQRT, _LINEAR = learning_rate.SQUARE_ROOT_CONVENTION, learning_rate.LINEAR_CONVENTION

FAMILIES = {
    "sgd": Family(learning_rate.LINEAR, 1.0, "coupled", ("momentum",)),
    "adam": Family(learning_rate.SQUARE_ROOT, 0.5, "coupled", ("betas",), True),
    "adamw": Family(learning_rate.SQUARE_ROOT, 0.5, "decoupled", ("betas",), True),
    "rmsprop": Family(learning_rate.SQUARE_ROOT, 0.5, "coupled", ("alpha", "momentum"), True),
    "invariant-adamw": Family(learning_rate.INVARIANT, 1.0, "decoupled", ("betas",), True, invariant=True),
    "invariant-adam": Family(learning_rate.INVARIANT, 1.0, "coupled", ("betas",), True, invariant=True),
    "invariant-rmsprop": Family(learning_rate.INVARIANT, 1.0, "coupled", ("alpha", "momentum"), True, invariant=True),
    "lars": Family(_LINEAR, 1.0, "trust-ratio", ("momentum",)),
    "lamb": Family(_SQRT, 0.5, "trust-ratio", ("betas",), True),
    "adamp": Family(_SQRT, 0.5, "decoupled", ("betas",), True),
    "nadamw": Family(_SQRT, 0.5, "decoupled", ("betas",), True),
    "lion": Family(_SQRT, 0.5, "decoupled", ("betas",)),
    "muon": Family(_SQRT, 0.5, "decoupled", ("momentum",)),
}


def family(name: str) -> Family:
    """Return the rules that an optimizer follows.

    Args:
        name: lower-case name of the optimizer.

    Returns:
        Its family.

    Raises:
        InputError: a name that the rules do not know; the nearest known one is named.

    Example:
        >>> family("adamw").decay
        'decoupled'
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(str(name).lower(), FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"optimizer.name={name!r} is not known; {hint}known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
