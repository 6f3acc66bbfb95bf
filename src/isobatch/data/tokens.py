"""Batches by token budget: as many examples of the order as fit; the clock counts tokens."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from isobatch.data.order import SampleOrder, checked_rank
from isobatch.errors import InputError
from isobatch.units import whole


class TokenBatches:
    """Cut the stream of examples into runs of at most a budget of tokens.

    A batch at position d (in tokens) is the longest run of the order from d on whose token sum is at most the budget.
    Nothing is dropped or split, epochs run into one another, and the position alone decides what comes: an epoch has
    sum(lengths) tokens, so d names an epoch and a place in it.

    Args:
        order: the sample order of the examples.
        lengths: tokens of each example, by index; each at least 1.

    Raises:
        InputError: another number of lengths than the order has samples, or a length below 1.

    Example:
        >>> packs = TokenBatches(SampleOrder(4, seed=0, shuffle=False), lengths=[3, 2, 4, 1])
        >>> indices, tokens = packs.take(drawn=0, budget=6)
        >>> indices.tolist(), tokens
        ([0, 1], 5)
        >>> packs.take(drawn=5, budget=8)[0].tolist()
        [2, 3, 0]
    """

    def __init__(self, order: SampleOrder, lengths: Sequence[int] | torch.Tensor):
        self.order = order
        self._lengths = torch.as_tensor(lengths)
        if self._lengths.shape != (order.size,) or self._lengths.dtype.is_floating_point:
            raise InputError(
                f"lengths has shape {tuple(self._lengths.shape)} and dtype {self._lengths.dtype}; give {order.size} "
                "whole numbers, one for each sample of the order"
            )
        self._lengths = self._lengths.to(torch.int64)
        self._longest = int(self._lengths.argmax())
        if int(self._lengths.min()) < 1:
            raise InputError(
                f"lengths[{int(self._lengths.argmin())}]={int(self._lengths.min())} must be at least 1; leave empty "
                "examples out of the data set"
            )
        self.epoch_tokens = int(self._lengths.sum())
        self._cache: dict[int, torch.Tensor] = {}

    def take(self, drawn: int, budget: int) -> tuple[torch.Tensor, int]:
        """Return the batch that begins at a position.

        Args:
            drawn: position in tokens, where an example begins.
            budget: most tokens of the batch.

        Returns:
            int64 indices of the examples, and their tokens: the next position is drawn + tokens.

        Raises:
            InputError: a position inside an example, or a budget below the longest one.
        """
        self._check_budget(budget)
        epoch, offset = divmod(whole("drawn", drawn, 0), self.epoch_tokens)
        ends = self._ends(epoch)
        place = 0 if offset == 0 else int(torch.searchsorted(ends, offset)) + 1
        if offset and int(ends[place - 1]) != offset:
            raise InputError(
                f"drawn={drawn} tokens lies {offset - self._begin(ends, place - 1)} tokens inside an example; "
                "give a position that take() led to, with the same lengths and order"
            )
        parts, tokens = [], 0
        while True:
            last = int(torch.searchsorted(ends, self._begin(ends, place) + budget - tokens, right=True))
            parts.append(self.order.indices(epoch * self.order.size + place, last - place))
            tokens += self._begin(ends, last) - self._begin(ends, place)
            if last < self.order.size:
                return torch.cat(parts), tokens
            epoch, place = epoch + 1, 0
            ends = self._ends(epoch)

    def lengths(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the tokens of examples.

        Args:
            indices: int64 indices.

        Returns:
            int64 tensor of the same shape.
        """
        return self._lengths[indices]

    def _check_budget(self, budget: int) -> None:
        most = int(self._lengths[self._longest])
        if whole("budget", budget, 1) < most:
            raise InputError(
                f"budget={budget} tokens is below example {self._longest} with {most}; raise the budget to {most} or "
                "cut the example"
            )

    @staticmethod
    def _begin(ends: torch.Tensor, place: int) -> int:
        return int(ends[place - 1]) if place else 0

    def _ends(self, epoch: int) -> torch.Tensor:
        if epoch not in self._cache:
            indices = self.order.indices(epoch * self.order.size, self.order.size)
            self._cache = {kept: self._cache[kept] for kept in list(self._cache)[-1:]}
            self._cache[epoch] = self._lengths[indices].cumsum(0)
        return self._cache[epoch]


def _at(budget: object, position: int) -> object:
    return budget(position) if callable(budget) else budget


class TokenBatchSampler(Sampler[list[int]]):
    """This rank's part of one token batch at a time, for `DataLoader(dataset, batch_sampler=...)`.

    A batch is cut over the ranks where its tokens come nearest to equal shares, each rank at least one example. A mean
    loss must be weighted by the tokens that each rank really has.

    Args:
        batches: the packed stream.
        budget: most tokens of a global batch, or a function of the position (in tokens) that gives it.
        drawn: position of the first example, in tokens.
        stop: position in tokens that is not passed; None runs for ever.
        rank: which part, in [0, world).
        world: number of ranks.

    Raises:
        InputError: a position or rank outside its range.

    Example:
        >>> packs = TokenBatches(SampleOrder(4, seed=0, shuffle=False), lengths=[3, 2, 4, 1])
        >>> list(TokenBatchSampler(packs, budget=6, stop=packs.epoch_tokens))
        [[0, 1], [2, 3]]
    """

    def __init__(
        self,
        batches: TokenBatches,
        budget: int | Callable[[int], int],
        drawn: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.batches = batches
        self.budget = budget
        self.drawn = whole("drawn", drawn, 0)
        self.stop = None if stop is None else whole("stop", stop, self.drawn)
        self.rank, self.world = checked_rank(rank, world)

    def __iter__(self) -> Iterator[list[int]]:
        budget, position = self.budget, self.drawn
        while self.stop is None or position < self.stop:
            indices, tokens = self.batches.take(position, whole("budget", _at(budget, position)))
            if self.stop is not None and position + tokens > self.stop:
                indices, tokens = self._cut(indices, self.stop - position)
            if len(indices) == 0:
                return
            yield self._part(indices, position)
            position += tokens

    def _cut(self, indices: torch.Tensor, most: int) -> tuple[torch.Tensor, int]:
        ends = self.batches.lengths(indices).cumsum(0)
        count = int(torch.searchsorted(ends, most, right=True))
        return indices[:count], int(ends[count - 1]) if count else 0

    def _part(self, indices: torch.Tensor, position: int) -> list[int]:
        if len(indices) < self.world:
            raise InputError(
                f"batch of {len(indices)} examples at token {position} must have at least {self.world}, one for each "
                "rank; raise the budget or use fewer ranks"
            )
        ends = self.batches.lengths(indices).cumsum(0)
        cuts = [0]
        for rank in range(1, self.world):
            share = int(ends[-1]) * rank / self.world
            nearest = int((ends - share).abs().argmin()) + 1
            cuts.append(min(max(nearest, cuts[-1] + 1), len(indices) - (self.world - rank)))
        cuts.append(len(indices))
        return indices[cuts[self.rank] : cuts[self.rank + 1]].tolist()
