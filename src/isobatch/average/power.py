"""Power-function averages: the profile over the run keeps its shape as the run grows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.clock import Cadence
from isobatch.average.engine import Engine
from isobatch.average.options import chosen, no_half_life, storage_settings
from isobatch.average.posthoc import Snapshot
from isobatch.average.storage import Buffers, Storage
from isobatch.average.tracks import Tracks
from isobatch.errors import InputError
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
    ):
        self.sigma_rels = tuple(float(s) for s in sigma_rels)
        self.exponents = tuple(exponent(s) for s in self.sigma_rels)
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise InputError(f"sigma_rels={list(self.sigma_rels)} must be at least one, all different")
        count = len(self.sigma_rels)
        tracks = Tracks(model, count, dtype=dtype, buffers=buffers, storage=storage)
        self._engine = Engine(tracks, count, Cadence.parse(cadence))

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
        size, seen = finite("samples", samples, 0, open_low=True), self.seen
        doublings = math.log2((seen + size) / seen) if seen else math.inf
        self._engine.advance(samples, [(g + 1) * doublings for g in self.exponents])

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: a relative width, one of `sigma_rels`.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.tracks.values(self._tracks(which)[0])

    def snapshot(self, dtype: torch.dtype | None = None) -> Snapshot:
        """Return a copy of all averages with the clock at which they hold, for post-hoc synthesis.

        Args:
            dtype: of the copy; None keeps the dtype of the averages.

        Returns:
            The snapshot, on the CPU.

        Raises:
            InputError: before the first application, or inside an applied() block.
        """
        self._engine.tracks.refresh()
        clock = self._engine.clock
        if not clock.applied:
            raise InputError("no update was applied yet; take a snapshot after the first")
        averages = []
        for k in range(len(self.sigma_rels)):
            values = self._engine.tracks.values(k)
            averages.append({n: t.to(device="cpu", dtype=dtype or t.dtype, copy=True) for n, t in values.items()})
        return Snapshot(clock.seen - clock.pending, self.exponents, tuple(averages))

    def _tracks(self, which: Which) -> tuple[int, ...]:
        return (chosen("relative width", self.sigma_rels, which),)

    def _settings(self) -> dict[str, Any]:
        return {
            "sigma_rels": list(self.sigma_rels),
            "cadence": self._engine.cadence.word(),
            **storage_settings(self._engine.tracks),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self._engine.cadence = Cadence.parse(settings["cadence"])
