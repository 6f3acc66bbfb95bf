"""The methods by name: what each one keeps, which update it takes, and what it asks of the topology."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

from isobatch.decentralized import updates
from isobatch.decentralized.topology import Topology
from isobatch.decentralized.updates import Array, Step
from isobatch.errors import InputError
from isobatch.units import finite, whole

Slots = dict[str, Array]
Scale = Callable[[Array, Array], Array] | None


@dataclass(frozen=True)
class Method(ABC):
    """One method: an update, the state that it keeps for each weight, and what it needs.

    Args:
        beta: momentum factor in [0, 1).
    """

    beta: Any = 0.9
    name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ("m",)
    early: ClassVar[bool] = False  # what is sent is known before the gradient
    exchanges: ClassVar[int] = 1  # with neighbours, in one step
    divides: ClassVar[bool] = False  # by gamma

    def __post_init__(self):
        if isinstance(self.beta, int | float):
            finite("momentum", self.beta, 0, 1, open_high=True)

    def start(self, x: Array) -> Slots:
        """Return the state before the first step.

        Args:
            x: weights.

        Returns:
            Values by slot: zeros unless the method says otherwise.
        """
        zero = 0 * x
        return dict.fromkeys(self.slots, zero)

    @abstractmethod
    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return one node's step as a generator that ends in (x, state).

        Args:
            x: weights.
            state: values by slot.
            g: gradient.
            gamma: learning rate.
            count: steps before this one.
            scale: scales a mean gradient by layer, for the methods that do so.

        Returns:
            The step, for `updates.advance` or an engine.
        """

    def check(self, topology: Topology) -> None:
        """Refuse a topology on which the method does not work.

        Args:
            topology: on which it would run.
        """
        del topology


@final
@dataclass(frozen=True)
class DSGD(Method):
    """Decentralized SGD without momentum; beta must be 0."""

    beta: Any = 0.0
    name: ClassVar[str] = "dsgd"
    slots: ClassVar[tuple[str, ...]] = ()

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.dsgd`."""
        x = yield from updates.dsgd(x, g, gamma)
        return x, state


@final
@dataclass(frozen=True)
class DmSGD(Method):
    """Decentralized momentum SGD."""

    name: ClassVar[str] = "dmsgd"

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.dmsgd`."""
        x, m = yield from updates.dmsgd(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@final
@dataclass(frozen=True)
class AWC(Method):
    """AWC-DmSGD: the exchange runs beside the gradient."""

    name: ClassVar[str] = "awc"
    early: ClassVar[bool] = True

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.awc`."""
        x, m = yield from updates.awc(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@final
@dataclass(frozen=True)
class DA(Method):
    """DA-DmSGD: weights and momentum are averaged."""

    name: ClassVar[str] = "da"
    exchanges: ClassVar[int] = 2

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.da`."""
        x, m = yield from updates.da(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@final
@dataclass(frozen=True)
class SlowMo(Method):
    """SlowMo: DmSGD inside, every `period` steps an exact average and a slow momentum.

    Args:
        beta: of the inner momentum.
        period: inner steps of an outer one.
        slow_beta: of the slow momentum.
        slow_lr: factor of the outer step.
    """

    period: int = 8
    slow_beta: float = 0.5
    slow_lr: float = 1.0
    name: ClassVar[str] = "slowmo"
    slots: ClassVar[tuple[str, ...]] = ("m", "u", "old")
    divides: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        whole("period", self.period)
        finite("slow_beta", self.slow_beta, 0, 1, open_high=True)
        finite("slow_lr", self.slow_lr, 0, open_low=True)

    def start(self, x: Array) -> Slots:
        """Return zero momenta, and the weights as those of the last outer step."""
        zero = 0 * x
        return {"m": zero, "u": zero, "old": x + zero}

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.dmsgd`, at the end of a period followed by `updates.slow_outer`."""
        x, m = yield from updates.dmsgd(x, state["m"], g, gamma, self.beta)
        if (count + 1) % self.period:
            return x, {**state, "m": m}
        x, u = yield from updates.slow_outer(x, state["u"], state["old"], gamma, self.slow_beta, self.slow_lr)
        return x, {"m": m, "u": u, "old": x}


@final
@dataclass(frozen=True)
class QG(Method):
    """QG-DmSGD: quasi-global momentum."""

    name: ClassVar[str] = "qg"
    divides: ClassVar[bool] = True

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.qg`."""
        x, m = yield from updates.qg(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@final
@dataclass(frozen=True)
class D2(Method):
    """D2 / Exact Diffusion with momentum."""

    name: ClassVar[str] = "d2"
    slots: ClassVar[tuple[str, ...]] = ("m", "psi")

    def start(self, x: Array) -> Slots:
        """Return zero momentum, and the weights as psi."""
        return {"m": 0 * x, "psi": x + 0 * x}

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.d2`."""
        x, m, psi = yield from updates.d2(x, state["m"], state["psi"], g, gamma, self.beta)
        return x, {"m": m, "psi": psi}

    def check(self, topology: Topology) -> None:
        """Refuse rounds that change, are not symmetric, or have an eigenvalue of -1/3 or less.

        Args:
            topology: on which it would run.

        Raises:
            InputError: such a topology.
        """
        least = topology.at(0).smallest_eigenvalue
        if topology.period > 1 or least is None or least <= -1 / 3 + 1e-9:
            raise InputError(
                f"method='d2' needs one symmetric matrix with eigenvalues above -1/3; {topology.name} on "
                f"{topology.size} nodes has not: take topology.lazy() of a symmetric graph"
            )


@final
@dataclass(frozen=True)
class DecentLaM(Method):
    """DecentLaM: the momentum of a gradient that contains the mixing."""

    name: ClassVar[str] = "decentlam"
    divides: ClassVar[bool] = True

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.decentlam`."""
        x, m = yield from updates.decentlam(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@dataclass(frozen=True)
class PmSGD(Method):
    """Parallel momentum SGD: the gradient is averaged over all nodes; the topology plays no part."""

    name: ClassVar[str] = "pmsgd"
    exchanges: ClassVar[int] = 0

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.pmsgd` without a scale."""
        x, m = yield from updates.pmsgd(x, state["m"], g, gamma, self.beta)
        return x, {"m": m}


@final
@dataclass(frozen=True)
class PmSGDLars(PmSGD):
    """Parallel momentum SGD with LARS on the mean gradient.

    Args:
        beta: momentum factor.
        trust: LARS's eta.
    """

    trust: float = 1e-3
    name: ClassVar[str] = "pmsgd-lars"

    def step(self, x: Array, state: Slots, g: Array, gamma: float, count: int, scale: Scale = None) -> Step:
        """Return `updates.pmsgd` with the engine's scale by layer."""
        x, m = yield from updates.pmsgd(x, state["m"], g, gamma, self.beta, scale)
        return x, {"m": m}


METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (DSGD, DmSGD, AWC, DA, SlowMo, QG, D2, DecentLaM, PmSGD, PmSGDLars)
}
"""Methods by the name that a recipe or study gives."""


def find(method: str | Method, beta: float) -> Method:
    """Return a method by its name, or the method given.

    Args:
        method: one of METHODS, or a method with its own beta.
        beta: momentum factor where a name is given.

    Returns:
        The method.

    Raises:
        InputError: no such method, or a momentum that it cannot have.

    Example:
        >>> find("decentlam", 0.9)
        DecentLaM(beta=0.9)
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise InputError(f"method={method!r} must be one of {', '.join(METHODS)}")
    if method == "dsgd" and beta != 0:
        raise InputError(f"method='dsgd' has no momentum, and momentum={beta:g}; give momentum=0 or method='decentlam'")
    return METHODS[method](beta)
