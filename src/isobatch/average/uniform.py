"""Uniform averages: of the tail of a run (SWA), and of the last few snapshots (LAWA)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.buffers import AverageBuffers
from isobatch.average.clock import Cadence, counted, doublings, refuse_replaced
from isobatch.average.engine import Engine
from isobatch.average.layout import Buffers, Storage, placed
from isobatch.average.state import no_half_life, only_average, storage_settings
from isobatch.units import finite, whole


@final
class SWA(ModelAverage):
    """Uniform average of the weights from `start` on: stochastic weight averaging (SWA).

    Weights count by the samples they stand for: those of a step of B samples weigh B, so the average does not depend on
    the sequence of batches. Before `start` the average is a copy of the weights.

    Args:
        model: the model, wrapped or bare.
        start: samples seen at which the tail begins; the run's length minus the tail.
        every: take the weights only where a multiple of so many samples is passed; None takes every step.
        dtype: in which the average is held; float32 holds float64 weights in float64.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        storage: rounding, layout and selection of tensors.
        device: where the average lies, such as "cpu" for a model on a GPU; short for Storage(device=...).

    Raises:
        InputError: a setting outside its range.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> tail = SWA(layer, start=10)
        >>> for value, batch in ((5.0, 10), (1.0, 10), (4.0, 20)):
        ...     _ = nn.init.constant_(layer.weight, value)  # stands for optimizer.step()
        ...     tail.update(samples=batch)
        >>> tail.average()["weight"].item()
        3.0

    References:
        arXiv 1803.05407 (SWA).
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"dtype", "buffers", "rounding"})

    def __init__(
        self,
        model: nn.Module,
        *,
        start: float = 0,
        every: float | None = None,
        dtype: torch.dtype = torch.float32,
        buffers: Buffers = "copy",
        storage: Storage | None = None,
        device: torch.device | str | int | None = None,
    ):
        self.start = finite("start", start, 0)
        cadence = Cadence(calls=1) if every is None else Cadence(samples=finite("every", every, 0, open_low=True))
        averages = AverageBuffers(model, 1, dtype=dtype, buffers=buffers, storage=placed(storage, device))
        self._engine = Engine(averages, 1, cadence)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: must be None.

        Raises:
            InputError: samples not positive, a half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; average and clock are left as they were.
        """
        no_half_life(half_life, "SWA")
        size = counted(samples)
        self._engine.advance(size, (doublings(self.seen - self.start, size),))

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: None; there is one average.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.buffers.values(self._indices(which)[0])

    def _indices(self, which: Which) -> tuple[int, ...]:
        only_average(which)
        return (0,)

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        if seen <= self.start:
            refuse_replaced(
                seen, f"the tail begins at start={self.start:g}, and the average weighs what of the run lies after it"
            )
        return self._indices(which)

    def _settings(self) -> dict[str, Any]:
        word = self._engine.cadence.word()
        return {"start": self.start, "cadence": word, **storage_settings(self._engine.buffers)}

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self.start = finite("start", settings["start"], 0)
        self._engine.cadence = Cadence.parse(settings["cadence"])


@final
class LAWA(ModelAverage):
    """Mean of the last few snapshots of the weights: latest weight averaging (LAWA).

    Snapshots are taken where a multiple of `every` samples is passed, so they do not move with the batch size. Until
    the first the average is the weights at the start. It keeps `last` copies of the weights.

    Args:
        model: the model, wrapped or bare.
        last: how many snapshots are averaged.
        every: samples between them.
        dtype: in which the snapshots are held; float32 holds float64 weights in float64.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        storage: layout and selection of tensors.
        device: where the snapshots lie, such as "cpu" for a model on a GPU; short for Storage(device=...).

    Raises:
        InputError: a setting outside its range.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> recent = LAWA(layer, last=2, every=10)
        >>> for value in (1.0, 2.0, 4.0):
        ...     _ = nn.init.constant_(layer.weight, value)  # stands for optimizer.step()
        ...     recent.update(samples=10)
        >>> recent.average()["weight"].item()
        3.0

    References:
        arXiv 2209.14981 (LAWA).
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"last", "dtype", "buffers", "rounding"})

    def __init__(
        self,
        model: nn.Module,
        *,
        last: int,
        every: float,
        dtype: torch.dtype = torch.float32,
        buffers: Buffers = "copy",
        storage: Storage | None = None,
        device: torch.device | str | int | None = None,
    ):
        self.last = whole("last", last)
        cadence = Cadence(samples=finite("every", every, 0, open_low=True))
        averages = AverageBuffers(model, self.last, dtype=dtype, buffers=buffers, storage=placed(storage, device))
        self._engine = Engine(averages, self.last, cadence)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: must be None.

        Raises:
            InputError: samples not positive, a half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; snapshots and clock are left as they were.
        """
        no_half_life(half_life, "LAWA")
        size = counted(samples)
        spans = [0.0] * self.last
        spans[self._engine.clock.applied % self.last] = math.inf
        self._engine.advance(size, spans)

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the mean of the snapshots by name, in new tensors.

        Args:
            which: None; there is one average.

        Returns:
            Tensors by canonical name.
        """
        slots = self._indices(which)
        self._engine.buffers.verify()
        stacks = self._engine.buffers.roles["average"].tensors
        means = {name: stack[: len(slots)].mean(dim=0) for name, stack in stacks.items()}
        return self._engine.buffers.dressed(means)

    def _indices(self, which: Which) -> tuple[int, ...]:
        only_average(which)
        return tuple(range(max(1, min(self.last, self._engine.clock.applied))))

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        only_average(which)
        return tuple(range(self.last))

    def _settings(self) -> dict[str, Any]:
        word = self._engine.cadence.word()
        return {"last": self.last, "cadence": word, **storage_settings(self._engine.buffers)}

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self._engine.cadence = Cadence.parse(settings["cadence"])
