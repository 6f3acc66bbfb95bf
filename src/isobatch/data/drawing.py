"""Drawing: which samples a step takes, and how much each of them counts on the clock: one, or its tokens."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from isobatch.data.order import SampleOrder
from isobatch.data.tokens import TokenBatches


class Drawn(NamedTuple):
    """The samples of one step.

    Args:
        indices: of the samples.
        size: what they count on the clock.
        batch: the batch whose settings the step takes: the one that was asked for, or less at the end of a run.
    """

    indices: torch.Tensor
    size: int
    batch: int


class Drawing:
    """The stream of samples on a clock of samples, or of tokens.

    On a clock of samples a step draws a batch of them. On one of tokens it draws as many samples of the order as fit
    into the batch; none is split or left out, and the clock moves by the tokens that were drawn.

    Args:
        order: of the samples.
        tokens: int64 tensor, what each sample counts; None where every one counts one.

    Example:
        >>> drawing = Drawing(SampleOrder(3, seed=0, shuffle=False), torch.tensor([5, 2, 3]))
        >>> drawn = drawing.take(0, 8)
        >>> drawn.indices.tolist(), drawn.size, drawing.epoch
        ([0, 1], 7, 10)
    """

    def __init__(self, order: SampleOrder, tokens: torch.Tensor | None = None):
        self.order, self.tokens = order, tokens
        self._packs = None if tokens is None else TokenBatches(order, tokens)

    @property
    def epoch(self) -> int:
        """What one epoch counts on the clock."""
        return self.order.size if self._packs is None else self._packs.epoch_tokens

    def take(self, drawn: int, batch: int, left: int | None = None) -> Drawn:
        """Return the samples of the step that begins at a position.

        Args:
            drawn: position in the stream, on the clock.
            batch: of the step.
            left: of the run or of the span to a stop, None for no end; the last step takes no more than it needs. Where
                tokens are counted it may pass the end by part of one sample.

        Returns:
            The samples.
        """
        if self._packs is None:
            size = batch if left is None else min(batch, left)
            return Drawn(self.order.indices(drawn, size), size, size)
        indices, size = self._packs.take(drawn, max(batch, self.longest))
        if left is None or size < left:
            return Drawn(indices, size, batch)
        ends = self._packs.lengths(indices).cumsum(0)
        count = int(torch.searchsorted(ends, left)) + 1
        size = int(ends[count - 1])
        return Drawn(indices[:count], size, min(batch, size))

    @property
    def longest(self) -> int:
        """What the longest sample counts."""
        return 1 if self.tokens is None else int(self.tokens.max())

    def sizes(self, indices: torch.Tensor) -> list[int]:
        """Return what samples count on the clock.

        Args:
            indices: of the samples.

        Returns:
            One number a sample.
        """
        return [1] * len(indices) if self.tokens is None else self.tokens[indices].tolist()

    def passes(self, indices: torch.Tensor, most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Cut samples into passes that count at most `most`; a sample that counts more is a pass of its own.

        Args:
            indices: of the samples.
            most: of one pass, on the clock.

        Yields:
            Place of the first sample, and the samples.
        """
        if self.tokens is None:
            yield from ((place * most, part) for place, part in enumerate(indices.split(most)) if len(part))
            return
        start, held = 0, 0
        for place, size in enumerate(self.sizes(indices)):
            if held and held + size > most:
                yield start, indices[start:place]
                start, held = place, 0
            held += size
        if held:
            yield start, indices[start:]
