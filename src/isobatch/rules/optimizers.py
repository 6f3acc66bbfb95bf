"""The optimizers: one row each, read by the rules, the plan, the loop, `rescale` and the builders."""

import difflib

from isobatch.errors import InputError
from isobatch.rules.rule import OptimizerRow

_ADAM = {"exp_avg_sq": "second moment", "max_exp_avg_sq": "second moment", "step": "steps"}
_RMSPROP = {"square_avg": "second moment", "momentum_buffer": "momentum"}
_MOMENTUM = {"momentum_buffer": "momentum"}
_LEAGUE = ("speed",)
_OURS = "isobatch.optimizers"

_ROWS = (
    OptimizerRow("sgd", "linear", ("momentum",), "coupled", f"{_OURS}.builders.sgd", ("SGD",), _MOMENTUM,
                 theory=("linear", "speed"), nesterov=True),
    OptimizerRow("adam", "sqrt", ("betas",), "coupled", f"{_OURS}.builders.adam",
                 ("Adam", "RAdam", "NAdam"), _ADAM, adaptive=True, theory=("sqrt",), measured=_LEAGUE,
                 invariant_form="invariant-adam"),
    OptimizerRow("adamw", "sqrt", ("betas",), "decoupled", f"{_OURS}.builders.adamw", ("AdamW",), _ADAM,
                 adaptive=True, theory=("sqrt",), measured=_LEAGUE, invariant_form="invariant-adamw"),
    OptimizerRow("rmsprop", "sqrt", ("alpha", "momentum"), "coupled", f"{_OURS}.builders.rmsprop", ("RMSprop",),
                 _RMSPROP, adaptive=True, theory=("sqrt",), invariant_form="invariant-rmsprop"),
    OptimizerRow("invariant-adamw", "linear", ("betas",), "decoupled", f"{_OURS}.InvariantAdamW", ("InvariantAdamW",),
                 adaptive=True, invariant=True, theory=("linear",)),
    OptimizerRow("invariant-adam", "linear", ("betas",), "coupled", f"{_OURS}.InvariantAdam", ("InvariantAdam",),
                 adaptive=True, invariant=True, theory=("linear",)),
    OptimizerRow("invariant-rmsprop", "linear", ("alpha", "momentum"), "coupled", f"{_OURS}.InvariantRMSprop",
                 ("InvariantRMSprop",), _MOMENTUM, adaptive=True, invariant=True, theory=("linear",)),
    OptimizerRow("lars", "linear", ("momentum",), "trust-ratio", f"{_OURS}.layer_wise.lars", ("LARS",), _MOMENTUM,
                 measured=_LEAGUE, nesterov=True),
    OptimizerRow("lamb", "linear", ("betas",), "trust-ratio", f"{_OURS}.layer_wise.lamb", ("Lamb",), _ADAM,
                 adaptive=True, normalises_after=True, lr_kept="sqrt", theory=("linear", "sqrt"), measured=_LEAGUE),
    OptimizerRow("adamp", "sqrt", ("betas",), "decoupled", f"{_OURS}.layer_wise.adamp", ("AdamP",), _ADAM,
                 adaptive=True),
    OptimizerRow("nadamw", "sqrt", ("betas",), "decoupled", None, ("NAdam",), _ADAM, adaptive=True),
    OptimizerRow("lion", "linear", ("betas",), "decoupled", "pytorch_optimizer.Lion", ("Lion",),
                 normalises_after=True, mixes=True, lr_kept="sqrt", theory=("linear", "sqrt")),
    OptimizerRow("muon", "linear", ("momentum",), "decoupled", f"{_OURS}.builders.muon", ("Muon",),
                 normalises_after=True, lr_kept="sqrt", theory=("linear", "sqrt"), nesterov=True),
)  # fmt: skip

OPTIMIZERS: dict[str, OptimizerRow] = {row.name: row for row in _ROWS}
"""Name -> row. A row with a builder can be trained; the others can be planned."""


def optimizer_row(name: str) -> OptimizerRow:
    """Return an optimizer's row.

    Args:
        name: of the optimizer, as in a recipe.

    Returns:
        The row.

    Raises:
        InputError: a name that is not known; the nearest known one is named.

    Example:
        >>> optimizer_row("adamw").decay
        'decoupled'
    """
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(str(name).lower(), OPTIMIZERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"optimizer.name={name!r} is not known; {hint}known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def row_of_class(kind: type) -> OptimizerRow | None:
    """Return the row by which the state of an optimizer class is moved.

    Args:
        kind: the class of an optimizer; its own name counts, then those of the classes that it extends.

    Returns:
        The row, None for a class that no row knows.

    Example:
        >>> row_of_class(int) is None
        True
    """
    for base in kind.__mro__:
        for row in OPTIMIZERS.values():
            if _is(base, row):
                return row
    return None


def extends(kind: type, row: OptimizerRow) -> bool:
    """Return whether an optimizer class is one of a row's, or extends one.

    Args:
        kind: the class of an optimizer.
        row: the row.

    Returns:
        True or False.

    Example:
        >>> extends(int, OPTIMIZERS["sgd"])
        False
    """
    return any(_is(base, row) for base in kind.__mro__)


def _is(kind: type, row: OptimizerRow) -> bool:
    homes = ("torch.", "pytorch_optimizer.", "isobatch.")
    return kind.__name__ in row.classes and kind.__module__.startswith(homes)


def trained() -> str:
    """Return the names of the optimizers that can be trained, for messages.

    Returns:
        Text.
    """
    return ", ".join(name for name, row in OPTIMIZERS.items() if row.builder is not None)
