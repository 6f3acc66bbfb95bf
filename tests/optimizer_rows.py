"""One row an optimizer: what the plan must say of it and what the loop must write, in literals and slow references."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.reference import rules as slow

REFERENCE = 8
NUMBERS = {"lr": 0.01, "momentum": 0.9, "betas": (0.9, 0.99), "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1}


@dataclass(frozen=True)
class Row:
    """What is known of an optimizer without looking at the library.

    Args:
        name: in a recipe.
        law: of its learning rate, "linear", "root", or "same samples" (a step of kappa times the length, its average
            over the same samples, so that no factor of the momentum belongs to it).
        moments: which of momentum, betas, alpha it has.
        eps: how its eps moves: "root", "kept", None where it has none.
        decay: "per sample" (decoupled: eta*lambda/B kept) or "kept".
        state: state key -> "buffer", "noise", "steps" or "kept": how it moves when the batch changes.
        why_lr: formula, part of the reason and confidence of its rate under auto, linear, sqrt, noise-aware, speed.
        why_decay: the same of its weight decay.
        trained: whether the loop can train it.
        matrices: whether it trains matrices only.
        mixes: whether its first beta is the share of the average in its update.
    """

    name: str
    law: str
    moments: tuple[str, ...]
    eps: str | None
    decay: str
    state: dict[str, str]
    why_lr: tuple[tuple[str, str, str], ...]
    why_decay: tuple[str, str, str]
    trained: bool = True
    matrices: bool = False
    mixes: bool = False


_ADAM = {"exp_avg": "kept", "exp_avg_sq": "noise", "step": "steps"}
_OWN = {"exp_avg": "kept", "exp_avg_sq": "kept"}  # keeps its bias correction itself

LINEAR = ("kappa*eta", "as far as one large one", "theorem")
NO_NOISE = ("kappa*eta", "no noise in the second moment", "derived")
INVARIANT = ("kappa*eta", "micro-batches of the reference size", "derived")
NORMALISED = ("kappa*eta", "the same direction", "derived")
OTHER_RUN = ("sqrt(kappa)*eta", "beside which a linear one keeps the run", "unknown")
LINEAR_CONVENTION = ("kappa*eta", "trust ratio is outside the theory", "convention")
SQRT = ("sqrt(kappa)*eta", "only while gradient noise dominates", "derived")
SQRT_CONVENTION = ("sqrt(kappa)*eta", "no theory covers it", "convention")
NOT_INVARIANT = ("sqrt(kappa)*eta", "does not depend on the batch here, so a square root is another run", "unknown")
AWARE = ("kappa*eta*sqrt((1-f)+f/kappa)", "keeps the drift", "derived")
NO_V = ("kappa*eta*sqrt((1-f)+f/kappa)", "f says nothing of its rate", "unknown")
SGD_SPEED = ("eta*(1+Bc/B)/(1+Bc/B')", "fastest progress per step of a quadratic")
TUNED_SPEED = ("eta*sqrt((1+Bc/B)/(1+Bc/B'))", "nearest of eight rules to the rates that authors tuned", "measured")
UNTUNED_SPEED = ("eta*sqrt((1+Bc/B)/(1+Bc/B'))", "no published rates of this optimizer", "unknown")
DECOUPLED = ("lambda*kappa*eta/eta'", "keeps eta*lambda/B", "derived")
L2 = ("lambda", "it moves as the learning rate does", "derived")
L2_V = ("lambda", "passes through 1/sqrt(v)", "derived")
TRUST = ("lambda", "inside a trust ratio", "convention")
_THEORY = (SQRT, NO_NOISE, SQRT, AWARE, TUNED_SPEED)
_PRACTICE = (SQRT_CONVENTION, NO_NOISE, SQRT_CONVENTION, AWARE, UNTUNED_SPEED)
_REFERENCE = (INVARIANT, INVARIANT, NOT_INVARIANT, NO_V, (*SGD_SPEED, "unknown"))

ROWS = (
    Row("sgd", "linear", ("momentum",), None, "kept", {"momentum_buffer": "buffer"},
        (LINEAR, LINEAR, SQRT_CONVENTION, NO_V, (*SGD_SPEED, "derived")), L2),
    Row("adam", "root", ("betas",), "root", "kept", _ADAM, _THEORY, L2_V),
    Row("adamw", "root", ("betas",), "root", "per sample", _ADAM, _THEORY, DECOUPLED),
    Row("rmsprop", "root", ("alpha", "momentum"), "root", "kept", {"square_avg": "noise", "momentum_buffer": "buffer"},
        (*_THEORY[:4], UNTUNED_SPEED), L2_V),
    Row("invariant-adamw", "linear", ("betas",), "kept", "per sample", _OWN, _REFERENCE, DECOUPLED),
    Row("invariant-adam", "linear", ("betas",), "kept", "kept", _OWN, _REFERENCE, L2),
    Row("invariant-rmsprop", "linear", ("alpha", "momentum"), "kept", "kept",
        {"exp_avg_sq": "kept", "momentum_buffer": "buffer"}, _REFERENCE, L2),
    Row("lars", "linear", ("momentum",), None, "kept", {"momentum_buffer": "buffer"},
        (LINEAR_CONVENTION, LINEAR_CONVENTION, SQRT_CONVENTION, NO_V, TUNED_SPEED), TRUST),
    Row("lamb", "same samples", ("betas",), "root", "kept", {"exp_avg": "kept", "exp_avg_sq": "noise"},
        (NORMALISED, NORMALISED, OTHER_RUN, AWARE, TUNED_SPEED), TRUST),
    Row("adamp", "root", ("betas",), "root", "per sample", {"exp_avg": "kept", "exp_avg_sq": "noise"}, _PRACTICE,
        DECOUPLED),
    Row("nadamw", "root", ("betas",), "root", "per sample", {}, _PRACTICE, DECOUPLED, trained=False),
    Row("lion", "same samples", ("betas",), None, "per sample", {"exp_avg": "kept"},
        (NORMALISED, NORMALISED, OTHER_RUN, NO_V, UNTUNED_SPEED), DECOUPLED, mixes=True),
    Row("muon", "same samples", ("momentum",), None, "per sample", {"momentum_buffer": "kept"},
        (NORMALISED, NORMALISED, OTHER_RUN, NO_V, UNTUNED_SPEED), DECOUPLED, matrices=True),
)  # fmt: skip
"""One row each; `tests/rules/test_rows.py` takes it through every kind of batch change."""


def wanted(row: Row, batch: int) -> dict[str, float | tuple[float, float]]:
    """What the optimizer's groups must hold at a batch that is 8 times or divided by a whole number."""
    same = row.law == "same samples"
    lr = _moved(lambda lr, k: slow.adam_lr(lr, 1.0, k) if row.law == "root" else slow.linear_lr(lr, k), "lr", batch)
    found: dict[str, float | tuple[float, float]] = {}
    factor = 1.0
    for moment in row.moments:
        if moment == "betas" and same:
            first = _mixed(0.9, batch) if row.mixes else _decay(0.9, batch, 0.0)
            found["betas"] = (first, _decay(0.99, batch, 0.0))
        elif moment == "betas":
            found["betas"] = tuple(
                _decay(beta, batch, floor) for beta, floor in zip((0.9, 0.99), (0.5, 0.95), strict=True)
            )
        elif moment == "alpha":
            found["alpha"] = _decay(NUMBERS["alpha"], batch, 0.95)
        else:
            found["momentum"] = mu = _decay(NUMBERS["momentum"], batch, 0.0)
            factor = 1.0 if same else slow.buffer(NUMBERS["momentum"]) / slow.buffer(mu)
    found["lr"] = lr * factor
    if row.eps is not None:
        found["eps"] = 1e-6 if row.eps == "kept" else _moved(lambda e, k: slow.eps(e, 1.0, k), "eps", batch)
    lam = NUMBERS["weight_decay"]
    # with the learning rate that really multiplies it: what the weights lose per sample is kept
    found["weight_decay"] = lam if row.decay == "kept" else lam * NUMBERS["lr"] / REFERENCE * batch / found["lr"]
    return found


def _decay(beta: float, batch: int, floor: float) -> float:
    up = batch >= REFERENCE
    moved = (
        slow.decay(beta, batch // REFERENCE) if up else _back(lambda x: slow.decay(x, REFERENCE // batch), beta, 1.0)
    )
    return max(moved, min(beta, floor))


def _mixed(beta: float, batch: int) -> float:
    """Lion's beta1: the noise of the fresh gradient keeps its size beside the average."""
    if batch >= REFERENCE:
        return slow.fresh_share(beta, batch // REFERENCE)
    return _back(lambda x: slow.fresh_share(x, REFERENCE // batch), beta, 1.0)


def _moved(move: Callable[[float, int], float], name: str, batch: int) -> float:
    """The number at a batch; below the reference the one that `move` takes back to the reference's."""
    value = NUMBERS[name]
    if batch >= REFERENCE:
        return move(value, batch // REFERENCE) if batch > REFERENCE else value
    return _back(lambda x: move(x, REFERENCE // batch), value, 10 * value)


def _back(move: Callable[[float], float], value: float, high: float) -> float:
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if move(middle) < value else (low, middle)
    return (low + high) / 2
