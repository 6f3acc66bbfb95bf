"""One pass over many tensors: average += w * (weights - average)."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class Pass:
    """Lists of tensors bound once, so that an update is a few multi-tensor calls and no tree walk.

    Args:
        averages: K lists of averages, one per horizon, each in the order of `weights`.
        weights: the live tensors; aliases of their storage are bound.
    """

    def __init__(self, averages: Sequence[Sequence[Tensor]], weights: Sequence[Tensor]):
        self._live = list(weights)
        self._weights = [w.detach() for w in weights]
        self._pointers = [w.data_ptr() for w in weights]
        same = [i for i, w in enumerate(weights) if all(z[i].dtype == w.dtype for z in averages)]
        other = sorted(set(range(len(weights))) - set(same))
        self._same = [([z[i] for i in same], [self._weights[i] for i in same]) for z in averages]
        self._other = [([z[i] for i in other], [self._weights[i] for i in other]) for z in averages]

    def current(self) -> bool:
        """Whether every live tensor still has the storage that was bound."""
        return [w.data_ptr() for w in self._live] == self._pointers

    @torch.no_grad()
    def lerp(self, shares: Sequence[float]) -> None:
        """Move each horizon towards the weights.

        Args:
            shares: K weights w in [0, 1].
        """
        for share, (averages, weights) in zip(shares, self._same, strict=True):
            if averages:
                torch._foreach_lerp_(averages, weights, share)
        for share, (averages, weights) in zip(shares, self._other, strict=True):
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight.to(average.dtype), share)
