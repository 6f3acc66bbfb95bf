"""Pieces of tensors that are moved together: average <- keep * average + before * previous + after * weights.

A piece stays in cache between the operations on it, so that memory is read once however many horizons, dtypes or
roundings are involved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobatch.average.rounding import RoundingInForce, compensated_, stochastic_, work_dtype
from isobatch.average.weights import Hold


@final
@dataclass(frozen=True)
class Item:
    """Averages [K, n] of weights [n], and the companions of the same elements."""

    average: Tensor
    weights: Tensor
    compensation: Tensor | None
    previous: Tensor | None

    def cut(self, size: int) -> Iterator["Item"]:
        """Yield pieces of at most `size` elements; a tensor without a one-dimensional alias stays whole.

        Args:
            size: elements.

        Yields:
            The pieces in order.
        """
        if self.weights.dim() != 1 or self.weights.numel() <= size:
            yield self
            return
        for start in range(0, self.weights.numel(), size):
            part = slice(start, start + size)
            yield Item(
                self.average[:, part],
                self.weights[part],
                None if self.compensation is None else self.compensation[:, part],
                None if self.previous is None else self.previous[part],
            )


def gather(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items and put the pieces into groups of about `size` elements.

    Args:
        items: whole tensors.
        size: elements that stay in cache together.

    Returns:
        Groups in order.
    """
    found: list[list[Item]] = []
    filled = size
    for item in items:
        for piece in item.cut(size):
            if filled + piece.weights.numel() > size:
                found.append([])
                filled = 0
            found[-1].append(piece)
            filled += piece.weights.numel()
    return found


@final
class Scratch:
    """Working memory that all blocks of a pass share, one after another.

    Args:
        elements: of the largest block.
    """

    def __init__(self, elements: int):
        self._elements = elements
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, role: str, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return views of the shapes of `tensors` into the buffer of one role.

        Args:
            role: what the memory holds; roles do not overlap.
            tensors: whose shapes and device to take.
            dtype: of the views.

        Returns:
            The views, in order.
        """
        key = (role, dtype, tensors[0].device)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self._elements, dtype=dtype, device=tensors[0].device)
        pieces = self._buffers[key][: sum(t.numel() for t in tensors)].split([t.numel() for t in tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]


@final
class Shares:
    """Weights of one update, as numbers and as columns [K, 1] made once per dtype and device.

    Args:
        holds: weights of the update, one per horizon.
    """

    def __init__(self, holds: Sequence[Hold]):
        self.whole = [h.before + h.after for h in holds]
        self.after = [h.after for h in holds]
        self.before = [h.before / (1 - h.after) if h.after < 1 else 0.0 for h in holds]
        self._columns: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def column(self, shares: list[float], like: Tensor) -> Tensor:
        """Return whole, after or before as a column in the dtype and on the device of a tensor.

        Args:
            shares: one of the three lists.
            like: whose dtype and device to take.

        Returns:
            Of shape [K, 1].
        """
        key = (id(shares), like.dtype, like.device)
        if key not in self._columns:
            self._columns[key] = torch.tensor(shares, dtype=like.dtype, device=like.device).view(-1, 1)
        return self._columns[key]


@final
class Block:
    """Pieces of one dtype pair on one device, moved in a few multi-tensor operations.

    Args:
        items: the pieces.
        rounding: how a result is rounded to the average's dtype.
        generator: of stochastic rounding.
        scratch: shared working memory.
    """

    def __init__(
        self,
        items: Sequence[Item],
        rounding: RoundingInForce,
        generator: torch.Generator | None,
        scratch: Scratch,
    ):
        self._rounding, self._generator = rounding, generator
        self._single = items[0].average.shape[0] == 1
        self._averages = [i.average[0] if self._single else i.average for i in items]
        self._weights = [i.weights for i in items]
        rests = [i.compensation for i in items if i.compensation is not None]
        self._rests = [r[0] for r in rests] if self._single else rests
        self._previous = [i.previous for i in items if i.previous is not None]
        kept, given = self._averages[0].dtype, self._weights[0].dtype
        work = work_dtype(kept, given, rounding)
        self._wide = scratch.like("average", self._averages, work) if work != kept else []
        self._staged = scratch.like("weights", self._weights, work) if work != given else []
        differs = self._previous and self._previous[0].dtype != work
        self._before = scratch.like("previous", self._previous, work) if differs else []

    def move(self, shares: Shares) -> None:
        """Move the averages of this block.

        Args:
            shares: weights of the update.
        """
        sources = _cast(self._weights, self._staged)
        targets = _cast(self._averages, self._wide)
        if self._rests:
            torch._foreach_add_(targets, self._rests)
        if not self._previous:
            self._lerp(targets, sources, shares, shares.whole)
        else:
            previous = _cast(self._previous, self._before)
            self._lerp(targets, previous, shares, shares.before)
            self._lerp(targets, sources, shares, shares.after)
            torch._foreach_copy_(self._previous, self._weights)
        if self._wide:
            self._round()

    def _lerp(self, targets: list[Tensor], sources: list[Tensor], shares: Shares, chosen: list[float]) -> None:
        if not any(chosen):
            return
        if self._single:
            torch._foreach_lerp_(targets, sources, chosen[0])
            return
        column = shares.column(chosen, targets[0])
        torch._foreach_lerp_(
            targets, sources, [column if s.dim() == 1 else column.view(-1, *[1] * s.dim()) for s in sources]
        )

    def _round(self) -> None:
        if self._rounding == "nearest":
            torch._foreach_copy_(self._averages, self._wide)
        elif self._rounding == "stochastic":
            for target, value in zip(self._averages, self._wide, strict=True):
                stochastic_(target, value, self._generator)
        else:
            for target, rest, value in zip(self._averages, self._rests, self._wide, strict=True):
                compensated_(target, rest, value)


def _cast(tensors: list[Tensor], scratch: list[Tensor]) -> list[Tensor]:
    if not scratch:
        return tensors
    torch._foreach_copy_(scratch, tensors)
    return scratch
