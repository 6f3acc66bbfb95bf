"""The adaptive batch: B = sqrt(r * B_simple) at the reference's temperature, held unless the evidence is clear."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isobatch.control.evidence import Action, Decision, Evidence
from isobatch.control.limits import Limits, multiples_near
from isobatch.errors import InputError
from isobatch.units import finite, whole

if TYPE_CHECKING:
    from collections.abc import Mapping


class AdaptiveBatch:
    """Batch that follows the noise scale: B = sqrt(r * B_simple * T/T_ref).

    B_simple is about 1/T: a batch that changes T changes the measurement that chose it, so B_simple alone has another
    fixed point for every learning-rate rule. B_simple * T/T_ref is what the reference run would measure. The
    controller acts on an identified estimate only, where target and interval both leave the current batch, by at most
    `growth` (or one grain where that is more), at most once in `settle` samples. It waits as long after the
    reference's temperature has moved. Every process must be given the same numbers.

    Args:
        batch: first batch, allowed by limits.
        exchange_rate: r in samples: how many more samples a saved step is worth; r = B**2/B_simple where a batch B
            is right. E_min/S_min, the critical batch size, spends equally on both.
        reference: temperature of the reference run at the start, positive.
        limits: allowed batches.
        settle: samples between two changes; at least the half-life of the estimate.
        hysteresis: relative change of the batch below which nothing is done.
        growth: largest factor of one change, up or down.
        drift: relative move of the reference's temperature that voids the estimate.

    Raises:
        InputError: a value outside its range, or a batch that the limits forbid.

    Example:
        >>> from isobatch.control import Evidence, Limits, temperature
        >>> control = AdaptiveBatch(64, 100.0, temperature(0.1, 64), Limits(grain=8), settle=10_000)
        >>> decision = control.decide(5000, Evidence(400.0, 350.0, 450.0, "identified", temperature(0.1, 64)))
        >>> decision.batch, decision.target
        (128, 200.0)

    References:
        arXiv 1812.06162 (B = sqrt(r * B_simple): appendix D; temperature: appendix C).
    """

    def __init__(
        self,
        batch: int,
        exchange_rate: float,
        reference: float,
        limits: Limits,
        *,
        settle: int,
        hysteresis: float = 0.2,
        growth: float = 2.0,
        drift: float = 0.1,
    ):
        self.exchange_rate = finite("exchange_rate", exchange_rate, 0, open_low=True)
        self.settle = whole("settle", settle, 0)
        self.hysteresis = finite("hysteresis", hysteresis, 0)
        self.growth = finite("growth", growth, 1, open_low=True)
        self.drift = finite("drift", drift, 0, open_low=True)
        self.limits, self._reference = limits, finite("reference temperature", reference, 0, open_low=True)
        self._batch, self._since = _allowed(batch, limits), None

    @property
    def batch(self) -> int:
        """The batch of the next step."""
        return self._batch

    def decide(self, seen: int, evidence: Evidence, reference: float | None = None) -> Decision:
        """Choose the batch from the next step on.

        Args:
            seen: samples of applied updates.
            evidence: the measurement.
            reference: temperature that the reference run has now, by its schedule; unchanged unless given.

        Returns:
            The decision; the controller already counts it as done, so restore its state if it cannot be honoured.

        Raises:
            InputError: a value of the wrong kind, an interval upside down, or samples before the last change.
        """
        position = whole("seen", seen, 0)
        if self._since is not None and position < self._since:
            raise InputError(f"seen={position} must be at least {self._since}, the last change; load an older state")
        unusable = evidence.obstacle()
        obstacle = self._move(position, reference) or unusable or self._settling(position)
        if obstacle is not None:
            return self._hold(obstacle)
        ratio = evidence.temperature / (self._reference if reference is None else reference)
        low, value, high = (math.sqrt(self.exchange_rate * scale * ratio) for scale in evidence.scales())
        return self._act(position, low, value, high)

    def apply_limits(self, seen: int, limits: Limits) -> Decision:
        """Change the limits: less memory, other devices, a bound of one's own.

        Args:
            seen: samples of applied updates.
            limits: from now on.

        Returns:
            The nearest allowed batch, at once and whatever the noise scale.
        """
        position = whole("seen", seen, 0)
        self.limits = limits
        if limits.allows(self._batch):
            return self._hold("the new limits allow it")
        batch = limits.nearest(self._batch)
        allowed = f"multiples of {limits.grain} from {limits.low}, {limits.binding}"
        because = f"the new limits forbid {self._batch}: {allowed}"
        return self._change(position, batch, because, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values for JSON.

        Returns:
            Batch, reference temperature, samples of the last change, limits, and the settings it was made with.
        """
        state = {"batch": self._batch, "reference": self._reference, "since": self._since}
        return state | {"limits": asdict(self.limits), "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any], *, new_settings: bool = False) -> None:
        """Restore a state, its limits included; either all of it or, with an error, none.

        Args:
            state: from `state_dict`. Its limits win over those given at the start; `apply_limits` changes them.
            new_settings: keep the settings given at the start where they differ from the state's.

        Raises:
            InputError: a missing or unknown key, a bad value, or other settings than the state's.
        """
        _same_keys("state of the adaptive batch", state, self.state_dict())
        _same_keys("limits in the state", state["limits"], asdict(self.limits))
        _same_keys("settings in the state", state["settings"], self._settings())
        for name, value in self._settings().items():
            if value != state["settings"][name] and not new_settings:
                raise InputError(
                    f"{name}={value} differs from {state['settings'][name]} in the state; make the controller with "
                    "the state's value, or load with new_settings=True"
                )
        limits = Limits(**state["limits"])
        batch = _allowed(state["batch"], limits)
        reference = finite("reference", state["reference"], 0, open_low=True)
        since = None if state["since"] is None else whole("since", state["since"], 0)
        self.limits, self._batch, self._reference, self._since = limits, batch, reference, since

    def _settings(self) -> dict[str, float]:
        names = ("exchange_rate", "settle", "hysteresis", "growth", "drift")
        return {name: getattr(self, name) for name in names}

    def _move(self, position: int, reference: float | None) -> str | None:
        if reference is None:
            return None
        new, old = finite("reference temperature", reference, 0), self._reference
        if new == 0:
            return "the reference's learning rate is 0"
        if abs(math.log(new / old)) <= math.log1p(self.drift):
            return None
        self._reference, self._since = new, position
        return f"the reference's temperature moved by x{new / old:.3g}; estimates from before do not count"

    def _settling(self, position: int) -> str | None:
        if self._since is None or position >= self._since + self.settle:
            return None
        return f"{self._since + self.settle - position} samples until the last change has settled"

    def _act(self, position: int, low: float, target: float, high: float) -> Decision:
        old, grain = self._batch, self.limits.grain
        asks = f"the noise scale asks for {target:.4g} ({low:.4g} to {high:.4g})"
        if 1 / (1 + self.hysteresis) <= target / old <= 1 + self.hysteresis:
            return self._hold(f"{asks}, within {self.hysteresis:.0%}", target)
        if (target > old and low <= old) or (target < old and high >= old):
            return self._hold(f"{asks}, an interval that holds it", target)
        up = max(math.floor(old * self.growth / grain) * grain, old + grain)
        down = min(math.ceil(old / self.growth / grain) * grain, old - grain)
        batch = self.limits.nearest(min(max(target, down), up))
        if batch == old:
            edge, limit = self.limits.high, self.limits.binding
            if target < old:
                edge, limit = self.limits.low, f"the least batch {self.limits.low}"
            return self._hold(f"{asks}; {limit if old == edge else f'no multiple of {grain} is nearer'}", target)
        return self._change(position, batch, asks, target)

    def _change(self, position: int, batch: int, because: str, target: float | None) -> Decision:
        action = Action.GROW if batch > self._batch else Action.SHRINK
        reason = f"{self._batch} to {batch}: {because}"
        self._batch, self._since = batch, position
        return Decision(batch, reason, action, target)

    def _hold(self, because: str, target: float | None = None) -> Decision:
        return Decision(self._batch, f"held at {self._batch}: {because}", Action.HOLD, target)


def _allowed(batch: object, limits: Limits) -> int:
    size = whole("batch", batch)
    if not limits.allows(size):
        raise InputError(
            f"batch={size} must be a multiple of {limits.grain} from {limits.low} with {limits.binding}; "
            f"near it: {multiples_near(size, limits.grain)}; start inside the limits, then use apply_limits"
        )
    return size


def _same_keys(name: str, given: object, expected: Mapping[str, Any]) -> None:
    keys = sorted(given) if isinstance(given, dict) else given
    if keys != sorted(expected):
        raise InputError(f"{name} has the keys {keys!r}, expected {sorted(expected)}; load a state of this version")
