"""One row a rule; a row buys identity, agreement, composition, there-and-back and refusals (tests/rules)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.reference import rules as slow

from isobatch import rules

State = dict[str, float]


@dataclass(frozen=True)
class Exception_:
    """Where a rule does not compose: moving by a and then by b is not moving by a*b, and why."""

    state: State
    a: float
    b: float
    why: str


@dataclass(frozen=True)
class Case:
    """A scaling rule as a move of a state.

    Args:
        name: of the row.
        move: the state at kappa times the batch.
        slow: the same from tests/reference at a whole kappa.
        domain: range of each entry of the state.
        refused: entries outside the domain, and what the message must hold.
        exception: None where moves compose.
        upwards: whether a rule with an exception still composes for growing batches.
        largest: bound on kappa and 1/kappa in property tests.
    """

    name: str
    move: Callable[[State, float], State]
    slow: Callable[[State, int], State]
    domain: dict[str, tuple[float, float]]
    refused: list[tuple[State, str]] = field(default_factory=list)
    exception: Exception_ | None = None
    upwards: bool = True
    largest: float = 64.0


def _slow_legw(s: State, k: int) -> State:
    return {"lr": slow.adam_lr(s["lr"], 1.0, k), "warmup": sum([s["warmup"]] * k)}


def _decay(s: State, k: float) -> State:
    return {"decay": rules.scale_decay(s["decay"], k)}


def _power(floor: float) -> Callable[[State, float], State]:
    return lambda s, k: {"beta": rules.power(s["beta"], k, floor)}


def _noise_aware(s: State, k: float) -> State:
    return s | {"lr": rules.noise_aware(s["lr"], k, s["noise share"])}


def _noise_measured(s: State, k: float) -> State:
    f = rules.noise_share(s["batch"], s["noise scale"])
    return s | {"lr": rules.noise_aware(s["lr"], k, f), "batch": s["batch"] * k}


def _slow_measured(s: State, k: int) -> State:
    f = s["noise scale"] / s["batch"] / (1 + s["noise scale"] / s["batch"])
    return s | {"lr": slow.adam_lr(s["lr"], f, k), "batch": s["batch"] * k}


def _heavy_ball(s: State, k: float) -> State:
    mu = rules.scale_momentum(s["momentum"], k)
    return {"lr": rules.linear(s["lr"], k) * rules.lr_factor(s["momentum"], mu), "momentum": mu}


def _slow_heavy_ball(s: State, k: int) -> State:
    mu = slow.decay(s["momentum"], k)
    return {"lr": slow.linear_lr(s["lr"], k) * slow.buffer(s["momentum"]) / slow.buffer(mu), "momentum": mu}


def _buffer(s: State, k: float) -> State:
    mu = rules.scale_momentum(s["momentum"], k)
    return {"buffer": s["buffer"] * rules.buffer_factor(s["momentum"], mu), "momentum": mu}


def _slow_buffer(s: State, k: int) -> State:
    mu = slow.decay(s["momentum"], k)
    return {"buffer": s["buffer"] * slow.buffer(mu) / slow.buffer(s["momentum"]), "momentum": mu}


def _eps(s: State, k: float) -> State:
    lr = rules.square_root(s["lr"], k)
    return {"eps": rules.scale_eps(s["eps"], k, s["lr"], lr), "lr": lr}


def _weights(kind: str) -> Callable[[State, float], State]:
    def move(s: State, k: float) -> State:
        lr = rules.square_root(s["lr"], k)
        return {"weight_decay": rules.scale_weight_decay(s["weight_decay"], k, s["lr"], lr, kind), "lr": lr}

    return move


def _slow_weights(kind: str) -> Callable[[State, int], State]:
    def move(s: State, k: int) -> State:
        lr, lam = slow.adam_lr(s["lr"], 1.0, k), s["weight_decay"]
        taken = {
            "decoupled": slow.decoupled_decay(lam, s["lr"], lr, k),
            "independent": slow.decoupled_decay(lam, 1.0, 1.0, k),
            "coupled": lam,
            "trust-ratio": lam,
        }
        return {"weight_decay": taken[kind], "lr": lr}

    return move


_LR = (1e-5, 10.0)
_LAMBDA = {"weight_decay": (0.0, 10.0), "lr": _LR}
_NO_DECAY = [({"weight_decay": -1, "lr": 1.0}, r"weight_decay=-1 must be in \[0, inf\]")]
_FLOOR = Exception_({"beta": 0.9}, 16, 1 / 16, "a floor forgets the beta that it has lifted")
_SHARE = Exception_({"lr": 0.1, "noise share": 0.5}, 2, 2, "f belongs to the batch at which it was measured")

CASES = [
    Case(
        "ema decay",
        _decay,
        lambda s, k: {"decay": slow.decay(s["decay"], k)},
        {"decay": (0.0, 1.0)},
        [({"decay": 1.5}, r"decay=1\.5 must be in \[0, 1\]"), ({"decay": -0.1}, r"decay=-0\.1 must be in \[0, 1\]")],
    ),
    Case(
        "beta, power form",
        _power(0.0),
        lambda s, k: {"beta": slow.decay(s["beta"], k)},
        {"beta": (0.0, 0.9999)},
        [({"beta": 1.0}, r"beta=1 must be in \[0, 1\)"), ({"beta": -0.5}, r"beta=-0\.5 must be in \[0, 1\)")],
    ),
    Case(
        "beta, power form with a floor",
        _power(0.5),
        lambda s, k: {"beta": max(slow.decay(s["beta"], k), min(s["beta"], 0.5))},
        {"beta": (0.0, 0.9999)},
        exception=_FLOOR,
    ),
    Case(
        "beta, form of the SDE",
        lambda s, k: {"beta": rules.sde(s["beta"], k)},
        lambda s, k: {"beta": slow.sde_beta(s["beta"], k)},
        {"beta": (0.99, 0.9999)},
        [({"beta": 1.0}, r"beta=1 must be in \[0, 1\)")],
        largest=8.0,
    ),
    Case(
        "lr, linear",
        lambda s, k: {"lr": rules.linear(s["lr"], k)},
        lambda s, k: {"lr": slow.linear_lr(s["lr"], k)},
        {"lr": _LR},
        [({"lr": -0.1}, r"lr=-0\.1 must be in \[0, inf\]")],
    ),
    Case(
        "lr, square root",
        lambda s, k: {"lr": rules.square_root(s["lr"], k)},
        lambda s, k: {"lr": slow.adam_lr(s["lr"], 1.0, k)},
        {"lr": _LR},
        [({"lr": -0.1}, r"lr=-0\.1 must be in \[0, inf\]")],
    ),
    Case(
        "lr and warm-up, LEGW",
        lambda s, k: dict(zip(("lr", "warmup"), rules.legw(s["lr"], s["warmup"], k), strict=True)),
        _slow_legw,
        {"lr": _LR, "warmup": (0.0, 1e6)},
        [({"lr": 1.0, "warmup": -1.0}, r"warmup=-1 must be in \[0, inf\]")],
    ),
    Case(
        "lr, noise-aware, share kept",
        _noise_aware,
        lambda s, k: s | {"lr": slow.adam_lr(s["lr"], s["noise share"], k)},
        {"lr": _LR, "noise share": (0.0, 1.0)},
        [({"lr": 1.0, "noise share": 1.5}, r"noise share=1\.5 must be in \[0, 1\]")],
        exception=_SHARE,
        upwards=False,
    ),
    Case(
        "lr, noise-aware, noise scale measured",
        _noise_measured,
        _slow_measured,
        {"lr": _LR, "batch": (1.0, 1e4), "noise scale": (1.0, 1e4)},
        [
            ({"lr": 1.0, "batch": 1.0, "noise scale": -1.0}, r"noise scale=-1 must be in \[0, inf\]"),
            ({"lr": 1.0, "batch": 0.0, "noise scale": 1.0}, r"batch=0 must be in \(0, inf\]"),
        ],
    ),
    Case(
        "heavy ball, sample clock",
        _heavy_ball,
        _slow_heavy_ball,
        {"lr": _LR, "momentum": (0.0, 0.95)},
        [({"lr": 1.0, "momentum": 1.0}, r"momentum=1 must be in \[0, 1\)")],
    ),
    Case(
        "momentum buffer",
        _buffer,
        _slow_buffer,
        {"buffer": (-10.0, 10.0), "momentum": (0.0, 0.95)},
        [({"buffer": 1.0, "momentum": -0.1}, r"momentum=-0\.1 must be in \[0, 1\)")],
    ),
    Case(
        "eps beside a square-root lr",
        _eps,
        lambda s, k: {"eps": slow.eps(s["eps"], 1.0, k), "lr": slow.adam_lr(s["lr"], 1.0, k)},
        {"eps": (1e-12, 1e-3), "lr": _LR},
        [({"eps": -1e-8, "lr": 1.0}, r"eps=-1e-08 must be in \[0, inf\]")],
    ),
    *(
        Case(f"weight decay, {kind}", _weights(kind), _slow_weights(kind), _LAMBDA, _NO_DECAY)
        for kind in ("decoupled", "coupled", "independent", "trust-ratio")
    ),
    Case(
        "batch norm",
        lambda s, k: {"batch norm momentum": rules.scale_batch_norm(s["batch norm momentum"], k)},
        lambda s, k: {"batch norm momentum": slow.running_mean(s["batch norm momentum"], k)},
        {"batch norm momentum": (0.0, 0.9)},
        [({"batch norm momentum": 1.1}, r"batch norm momentum=1\.1 must be in \[0, 1\]")],
        largest=8.0,
    ),
]
