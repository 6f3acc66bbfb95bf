r"""Past measurements on the sample clock: sums over cells, kept on the device until somebody reads them.

|G|^2 and tr(Sigma) are averaged apart, each measurement weighted by the samples it stands for and by its age:
2^(-age/H) for a half-life of H samples, or (s/now)^2 without one, which gives half of the weight to the last 21%.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.noise.record import Found
from isobatch.noise.statistic import Array, Spread, blocked_spread

MOST_CELLS = 128
POWER = 2
# Weights below this share of a fresh measurement's are dropped.
_FORGOTTEN = 2.0**-20
# Numbers of a cell beside its sums: weight, kept, lost, changed.
_PLAIN = 4


@dataclass
class Cell:
    """Consecutive measurements, summed.

    Args:
        sums: span-weighted trace and |G|^2 by column, shape (columns, 2).
        weight: sum of the spans that count, a scalar.
        kept: how many measurements count, a scalar.
        lost: how many do not because something was not finite, a scalar.
        changed: how many do not because the gradient was no multiple of the chunks' sum, a scalar.
        position: samples on the clock, mean over its measurements.
        span: samples that it stands for.
        batch: samples of a step, mean over its measurements.
    """

    sums: Tensor
    weight: Tensor
    kept: Tensor
    lost: Tensor
    changed: Tensor
    position: float
    span: float
    batch: float

    def with_(self, other: "Cell") -> "Cell":
        """Return both in one."""
        span = self.span + other.span
        return Cell(
            self.sums + other.sums,
            self.weight + other.weight,
            self.kept + other.kept,
            self.lost + other.lost,
            self.changed + other.changed,
            (self.position * self.span + other.position * other.span) / span,
            span,
            (self.batch * self.span + other.batch * other.span) / span,
        )


class Read(NamedTuple):
    """The history, read.

    Args:
        means: averaged (trace, |G|^2) by column, shape (columns, 2).
        spreads: how well each is known.
        measurements: how many count.
        excluded: how many do not.
        changed: how many of these for a gradient that was no multiple of the chunks' sum.
        span: samples on the clock behind the average.
        traces: tr(Sigma) of the whole model by cell, in order of time.
        batches: samples of a step by cell.
    """

    means: Array
    spreads: list[Spread]
    measurements: int
    excluded: int
    changed: int
    span: float
    traces: Array
    batches: Array


@final
class History:
    """Measurements in cells, the oldest ones merged.

    Args:
        half_life: H in samples, None for a window that grows with the run, infinite for everything alike.
    """

    def __init__(self, half_life: float | None):
        self.half_life = half_life
        self.start = 0.0
        self.cells: list[Cell] = []

    def add(self, found: Found, *, seen: float, span: float, batch: float) -> None:
        """Add one measurement; nothing is read.

        Args:
            found: its moments.
            seen: samples on the clock after the step.
            span: samples since the measurement before.
            batch: samples of the step.
        """
        kept = found.counts
        lost = 1 - kept - found.changed
        cell = Cell(found.values * span, kept * span, kept, lost, found.changed, seen - span / 2, span, batch)
        self.cells.append(cell)
        if self.half_life is not None:
            self.cells = [c for c in self.cells if self.weight(c.position, cell.position) > _FORGOTTEN]
        if len(self.cells) > MOST_CELLS:
            pairs = zip(self.cells[::2], self.cells[1::2], strict=False)
            self.cells = [a.with_(b) for a, b in pairs] + self.cells[len(self.cells) // 2 * 2 :]

    def clear(self, seen: float) -> None:
        """Forget everything; the window starts again here.

        Args:
            seen: samples on the clock.
        """
        self.cells, self.start = [], seen

    def weight(self, position: float, seen: float) -> float:
        """Return the weight of a measurement by its age, 1 for a fresh one.

        Args:
            position: samples on the clock when it was made.
            seen: samples on the clock now.

        Returns:
            A number in [0, 1].
        """
        if self.half_life is None:
            passed = seen - self.start
            return ((position - self.start) / passed) ** POWER if passed > 0 else 1.0
        return 2.0 ** ((position - seen) / self.half_life)

    @property
    def longest(self) -> float:
        """Samples that the window holds in the long run, as many as weigh 1 each with the same spread."""
        return math.inf if self.half_life is None else 2 * self.half_life / math.log(2)

    def read(self, seen: float, columns: int, data_size: float | None = None) -> Read:
        """Return averages and their spreads; the host waits for the device here.

        Args:
            seen: samples on the clock now.
            columns: how many.
            data_size: D, where |G|^2 is that of a finite data set.

        Returns:
            The averages; zeros without measurements.
        """
        if not self.cells:
            return _empty(columns, 0, 0)
        table = self._table().cpu().numpy()
        kept, lost, changed = (round(float(n)) for n in table[:, -3:].sum(0))
        live = table[:, -_PLAIN] > 0
        if not live.any():
            return _empty(columns, lost + changed, changed)
        weight = table[live, -_PLAIN]
        each = table[live, :-_PLAIN].reshape(-1, columns, 2) / weight[:, None, None]
        if data_size is not None:
            each[:, :, 1] += each[:, :, 0] / data_size
        newest = self.cells[-1].position if self.half_life is not None else seen
        age = np.array([self.weight(cell.position, newest) for cell in self.cells])[live]
        shares = age * weight
        means = np.tensordot(shares / shares.sum(), each, 1)
        spreads = [blocked_spread(each[:, i], shares) for i in range(columns)]
        window = float(shares.sum() ** 2 / (shares**2 / weight).sum())
        batches = np.array([cell.batch for cell in self.cells])[live]
        return Read(means, spreads, kept, lost + changed, changed, window, each[:, 0, 0], batches)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values."""
        tensors = {"history": self._table()} if self.cells else {}
        values = {
            "half_life": self.half_life,
            "start": self.start,
            "positions": [cell.position for cell in self.cells],
            "spans": [cell.span for cell in self.cells],
            "batches": [cell.batch for cell in self.cells],
        }
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any], columns: int, device: torch.device) -> None:
        """Take over a state.

        Args:
            tensors: from `state`.
            values: from `state`.
            columns: how many there are here.
            device: where measurements are made.

        Raises:
            InputError: tensors that do not fit the values.
        """
        positions, spans, batches = values["positions"], values["spans"], values["batches"]
        shape = (len(positions), 2 * columns + _PLAIN)
        table = tensors["history"].detach() if positions else torch.zeros(shape)
        if table.shape[-1] == shape[1] - 1:  # written when one count held all that was excluded
            table = torch.cat([table, torch.zeros_like(table[:, :1])], dim=1)
        if tuple(table.shape) != shape or not len(spans) == len(batches) == len(positions):
            raise InputError(
                f"the noise history has shape {tuple(table.shape)}, expected {shape}; the state is damaged"
            )
        table = table.to(device, torch.float64, copy=True)
        self.cells = [
            Cell(row[:-_PLAIN].view(columns, 2), *row[-_PLAIN:].unbind(), float(position), float(span), float(batch))
            for row, position, span, batch in zip(table, positions, spans, batches, strict=True)
        ]
        self.start = float(values["start"])

    def _table(self) -> Tensor:
        return torch.stack(
            [torch.cat([c.sums.flatten(), torch.stack([c.weight, c.kept, c.lost, c.changed])]) for c in self.cells]
        )


def _empty(columns: int, lost: int, changed: int) -> Read:
    nothing = np.zeros(0)
    return Read(
        np.zeros((columns, 2)), [Spread(np.zeros((2, 2)), 0.0)] * columns, 0, lost, changed, 0.0, nothing, nothing
    )
