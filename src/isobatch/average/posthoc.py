"""Post-hoc synthesis: an average of any width from snapshots of power-function averages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.units import finite


@final
@dataclass(frozen=True)
class Snapshot:
    """Power-function averages at one moment.

    Args:
        seen: samples at which the averages hold.
        exponents: of the profiles.
        averages: tensors by name, one mapping per exponent.
    """

    seen: float
    exponents: tuple[float, ...]
    averages: tuple[Mapping[str, Tensor], ...]

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": ..., "values": ...}; the values are JSON-able."""
        tensors = {f"average.{k}/{name}": t for k, average in enumerate(self.averages) for name, t in average.items()}
        return {"tensors": tensors, "values": {"seen": self.seen, "exponents": list(self.exponents)}}

    @staticmethod
    def load(state: Mapping[str, Any]) -> "Snapshot":
        """Return the snapshot that state_dict() described.

        Args:
            state: what state_dict() returned.

        Returns:
            The snapshot.

        Example:
            >>> one = Snapshot(8, (2.0,), ({"w": torch.zeros(1)},))
            >>> Snapshot.load(one.state_dict()) == one
            True
        """
        exponents = tuple(state["values"]["exponents"])
        averages = []
        for k in range(len(exponents)):
            role = f"average.{k}/"
            averages.append({n.removeprefix(role): t for n, t in state["tensors"].items() if n.startswith(role)})
        return Snapshot(state["values"]["seen"], exponents, tuple(averages))


def overlap(time_a: np.ndarray, exponent_a: np.ndarray, time_b: np.ndarray, exponent_b: np.ndarray) -> np.ndarray:
    r"""Return the inner product of power profiles p(t) = (g + 1) t**g / T**(g + 1) on [0, T].

    With m = min(Ta, Tb): (ga + 1)(gb + 1) / (ga + gb + 1) * (m / Ta)**(ga + 1) (m / Tb)**(gb + 1) / m.

    Args:
        time_a: Ta in samples.
        exponent_a: ga.
        time_b: Tb in samples.
        exponent_b: gb.

    Returns:
        The inner products, in 1 / samples.

    Example:
        >>> overlap(np.array(2.0), np.array(0.0), np.array(4.0), np.array(0.0)).item()
        0.25
    """
    low = np.minimum(time_a, time_b)
    front = (exponent_a + 1) * (exponent_b + 1) / (exponent_a + exponent_b + 1)
    return front * (low / time_a) ** (exponent_a + 1) * (low / time_b) ** (exponent_b + 1) / low


def coefficients(
    times: Sequence[float], exponents: Sequence[float], at: float, exponent: float
) -> tuple[np.ndarray, float]:
    """Return the weights of snapshots whose sum comes nearest to a power profile, and how near.

    Least squares between the profiles with the weights summing to 1.

    Args:
        times: samples of each snapshot.
        exponents: of each snapshot's profile.
        at: samples T of the wanted profile.
        exponent: of the wanted profile.

    Returns:
        Weights, and the distance of the profiles relative to the wanted one's norm.

    Example:
        >>> weights, error = coefficients([8.0, 8.0], [2.0, 5.0], 8.0, 5.0)
        >>> abs(weights).round(6).tolist(), round(error, 6)
        ([0.0, 1.0], 0.0)

    References:
        arXiv 2312.02696, algorithm 3 (there the weights are normalised afterwards).
    """
    time, power = np.asarray(times, float) / at, np.asarray(exponents, float)
    one, wanted = np.ones(()), np.asarray(exponent, float)
    gram = overlap(time[:, None], power[:, None], time[None], power[None])
    right = overlap(time, power, one, wanted)
    norm = float(overlap(one, wanted, one, wanted))
    count = len(time)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram
    system[:count, count] = system[count, :count] = 1
    solution = np.linalg.lstsq(system, np.append(right, 1.0), rcond=1e-15)[0][:count]
    rest = solution @ gram @ solution - 2 * solution @ right + norm
    return solution, float(np.sqrt(max(rest, 0.0) / norm))


def synthesize(
    snapshots: Sequence[Snapshot], exponent: float, *, at: float | None = None, tolerance: float = 0.5
) -> dict[str, Tensor]:
    """Return the average that a power profile of another exponent would have given.

    Args:
        snapshots: of one run.
        exponent: of the wanted profile, power.exponent(sigma_rel).
        at: samples at which the wanted average holds; None for the latest snapshot.
        tolerance: largest relative distance between the wanted profile and the one that the snapshots can give.

    Returns:
        Tensors by name, float32 or wider.

    Raises:
        InputError: no snapshots, snapshots of different models, or a profile out of their reach.

    Example:
        >>> one = Snapshot(8, (2.0, 5.0), ({"w": torch.zeros(1)}, {"w": torch.ones(1)}))
        >>> synthesize([one], 5.0)["w"].item()
        1.0

    References:
        arXiv 2312.02696, algorithm 3.
    """
    if not snapshots:
        raise InputError("no snapshots; take some with PowerEMA.snapshot() as the run goes")
    parts = [(s.seen, g, a) for s in snapshots for g, a in zip(s.exponents, s.averages, strict=True)]
    moment = max(s.seen for s in snapshots) if at is None else finite("at", at, 0, open_low=True)
    weights, error = coefficients([p[0] for p in parts], [p[1] for p in parts], moment, exponent)
    if error > tolerance:
        raise InputError(
            f"the snapshots come only within {error:.0%} of the profile with exponent {exponent:g} at {moment:g} "
            f"samples (tolerance {tolerance:.0%}); take snapshots more often, or ask for a width between those tracked"
        )
    names = parts[0][2].keys()
    if any(part[2].keys() != names for part in parts):
        raise InputError("the snapshots hold different tensors; use snapshots of one run")
    return {name: _mixed([part[2][name] for part in parts], weights) for name in names}


def _mixed(tensors: Sequence[Tensor], weights: np.ndarray) -> Tensor:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total = torch.zeros_like(tensors[0], dtype=torch.promote_types(wide, torch.float64))
    for tensor, weight in zip(tensors, weights.tolist(), strict=True):
        total.add_(tensor.to(total.dtype), alpha=weight)
    return total.to(wide)
