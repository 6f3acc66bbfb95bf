"""Power-function averages, whose profile keeps its shape as the run grows, and averages of any width made from them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.buffers import AverageBuffers
from isobatch.average.clock import Cadence, counted, doublings, refuse_replaced
from isobatch.average.engine import Engine
from isobatch.average.layout import Buffers, Storage, placed
from isobatch.average.state import chosen, no_half_life, several, storage_settings
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import first_not_finite
from isobatch.units import finite

# The width of a uniform average, exponent 0; wider profiles would favour the oldest weights.
WIDEST = 1 / math.sqrt(12)


def exponent(sigma_rel: float) -> float:
    r"""Return the exponent of the power profile whose relative width is sigma_rel.

    The profile p(t) = (g + 1) t**g / T**(g + 1) on [0, T] has the standard deviation sigma_rel * T with
    sigma_rel**2 = (g + 1) / ((g + 2)**2 (g + 3)); g is the largest real root of that cubic.

    Args:
        sigma_rel: in (0, 1/sqrt(12)]; 1/sqrt(12) is the uniform average.

    Returns:
        g, not negative.

    Raises:
        InputError: outside the range.

    Example:
        >>> round(exponent(0.05), 4), round(exponent(0.10), 4)
        (16.9722, 6.9372)

    References:
        arXiv 2312.02696, section 3.
    """
    width = finite("sigma_rel", sigma_rel, 0, WIDEST, open_low=True)
    # not curves.exponent: saved states go on to the bit
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return max(0.0, float(max(root.real for root in roots if abs(root.imag) < 1e-6)))


@final
class PowerEMA(ModelAverage):
    r"""Averages whose profile is a power of the samples seen, with a fixed width relative to the run.

    An update of B samples ending at n keeps the share ((n - B) / n)**(g + 1), which is exactly the profile's integral
    over those samples: the width is right for any stride, batch schedule or resume. snapshot() and posthoc.synthesize()
    make averages of other widths afterwards.

    Args:
        model: the model, wrapped or bare.
        sigma_rels: relative widths, each in (0, 1/sqrt(12)]; `which` is one of them.
        dtype: in which the averages are held; float32 holds float64 weights in float64.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        cadence: as in ModelEMA; "auto" follows the narrowest width.
        storage: rounding, layout and selection of tensors.
        device: where the averages lie, such as "cpu" for a model on a GPU; short for Storage(device=...).

    Raises:
        InputError: a setting outside its range.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> averages = PowerEMA(layer, sigma_rels=[0.05, 0.10])
        >>> averages.update(samples=100)
        >>> averages.average(0.10).keys()
        dict_keys(['weight'])

    References:
        arXiv 2312.02696, section 3 and algorithm 3.
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"sigma_rels", "dtype", "buffers", "rounding"})

    def __init__(
        self,
        model: nn.Module,
        *,
        sigma_rels: Sequence[float] = (0.05, 0.10),
        dtype: torch.dtype = torch.float32,
        buffers: Buffers = "copy",
        cadence: int | Literal["auto"] = 1,
        storage: Storage | None = None,
        device: torch.device | str | int | None = None,
    ):
        self.sigma_rels = tuple(finite("sigma_rel", s) for s in several("sigma_rels", sigma_rels))
        self.exponents = tuple(exponent(s) for s in self.sigma_rels)
        if len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise InputError(f"sigma_rels={list(self.sigma_rels)} must be all different")
        count = len(self.sigma_rels)
        averages = AverageBuffers(model, count, dtype=dtype, buffers=buffers, storage=placed(storage, device))
        self._engine = Engine(averages, count, Cadence.parse(cadence))

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: must be None.

        Raises:
            InputError: samples not positive, a half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; averages and clock are left as they were.
        """
        no_half_life(half_life, "PowerEMA")
        size, seen = counted(samples), self.seen
        times = doublings(seen, size)
        self._engine.advance(size, [(g + 1) * times for g in self.exponents])

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: a relative width, one of `sigma_rels`.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.buffers.values(self._indices(which)[0])

    def snapshot(self, dtype: torch.dtype | None = None) -> "Snapshot":
        """Return a copy of all averages with the clock at which they hold, for post-hoc synthesis.

        Args:
            dtype: of the copy; None keeps the dtype of the averages.

        Returns:
            The snapshot, on the CPU.

        Raises:
            InputError: before the first application, or inside an applied() block.
        """
        self._engine.buffers.refresh()
        clock = self._engine.clock
        if not clock.applied:
            raise InputError("no update was applied yet; take a snapshot after the first")
        averages = []
        for k in range(len(self.sigma_rels)):
            values = self._engine.buffers.values(k)
            averages.append({n: t.to(device="cpu", dtype=dtype or t.dtype, copy=True) for n, t in values.items()})
        return Snapshot(clock.seen - clock.pending, self.exponents, tuple(averages))

    def _indices(self, which: Which) -> tuple[int, ...]:
        return (chosen("relative width", self.sigma_rels, which),)

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        if seen == 0:
            refuse_replaced(seen, "the profile has no weight at its begin")
        return self._indices(which)

    def _settings(self) -> dict[str, Any]:
        return {
            "sigma_rels": list(self.sigma_rels),
            "cadence": self._engine.cadence.word(),
            **storage_settings(self._engine.buffers),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self._engine.cadence = Cadence.parse(settings["cadence"])


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

        Raises:
            InputError: something else, or a state that was damaged.

        Example:
            >>> one = Snapshot(8, (2.0,), ({"w": torch.zeros(1)},))
            >>> Snapshot.load(one.state_dict()) == one
            True
        """
        values, tensors = (state.get(k) if isinstance(state, Mapping) else None for k in ("values", "tensors"))
        if not isinstance(values, Mapping) or not isinstance(tensors, Mapping):
            raise InputError('no state of a snapshot: {"values": ..., "tensors": ...} is needed, as state_dict() gives')
        exponents = tuple(finite("exponent", g, 0) for g in several("exponents", values.get("exponents")))
        averages = []
        for k in range(len(exponents)):
            role = f"average.{k}/"
            averages.append({n.removeprefix(role): t for n, t in tensors.items() if str(n).startswith(role)})
        if not averages[0] or any(average.keys() != averages[0].keys() for average in averages):
            raise InputError(f"the tensors in the state are not those of {len(exponents)} averages; it was damaged")
        finite("seen", values.get("seen"), 0, open_low=True)
        return Snapshot(values["seen"], exponents, tuple(averages))


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
        exponent: of the wanted profile, not negative; power.exponent(sigma_rel) gives it.
        at: samples at which the wanted average holds; None for the latest snapshot.
        tolerance: largest relative distance between the wanted profile and the one that the snapshots can give.

    Returns:
        Tensors by name, float32 or wider.

    Raises:
        InputError: no snapshots, snapshots of different models, a number out of range, or a profile out of their reach.
        NonFiniteError: a snapshot that is not finite, by name.

    Example:
        >>> one = Snapshot(8, (2.0, 5.0), ({"w": torch.zeros(1)}, {"w": torch.ones(1)}))
        >>> synthesize([one], 5.0)["w"].item()
        1.0

    References:
        arXiv 2312.02696, algorithm 3.
    """
    given = [] if isinstance(snapshots, Snapshot) or not isinstance(snapshots, Iterable) else list(snapshots)
    if not given or not all(isinstance(one, Snapshot) for one in given):
        raise InputError("no snapshots (a list of them is needed); take some with PowerEMA.snapshot() as the run goes")
    snapshots, exponent = given, finite("exponent", exponent, 0)
    for one in snapshots:
        finite("seen of a snapshot", one.seen, 0, open_low=True)
    parts = [(s.seen, g, a) for s in snapshots for g, a in zip(s.exponents, s.averages, strict=True)]
    moment = max(s.seen for s in snapshots) if at is None else finite("at", at, 0, open_low=True)
    weights, error = coefficients([p[0] for p in parts], [p[1] for p in parts], moment, exponent)
    if error > finite("tolerance", tolerance, 0):
        raise InputError(
            f"the snapshots come only within {error:.0%} of the profile with exponent {exponent:g} at {moment:g} "
            f"samples (tolerance {tolerance:.0%}); take snapshots more often, or ask for a width between those tracked"
        )
    names = parts[0][2].keys()
    shapes = [{name: tensor.shape for name, tensor in part[2].items()} for part in parts]
    if any(found != shapes[0] for found in shapes):
        raise InputError("the snapshots hold different tensors; use snapshots of one run")
    bad = next(filter(None, (first_not_finite(part[2]) for part in parts)), None)
    if bad is not None:
        raise NonFiniteError(f"{bad!r} is not finite in a snapshot; leave that snapshot out", parameter=bad)
    return {name: _mixed([part[2][name] for part in parts], weights) for name in names}


def _mixed(tensors: Sequence[Tensor], weights: np.ndarray) -> Tensor:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total = torch.zeros_like(tensors[0], dtype=torch.promote_types(wide, torch.float64))
    for tensor, weight in zip(tensors, weights.tolist(), strict=True):
        total.add_(tensor.to(total.dtype), alpha=weight)
    return total.to(wide)
