r"""A few coordinates of the summed chunks, compared with the gradient that the optimizer will see.

Between backward and the measurement a gradient may be divided by a loss scale or clipped; then every chunk must follow.
The factor is read off these coordinates, so that the order of unscaling, clipping and measuring does not matter. What
no single factor explains (element-wise clipping, gradients left over from another step) is found out.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from isobatch.gradients.shards import Shards, local, own_gradient

SMALLEST, LONGEST = 2, 1024
_TOLERANCE, _COARSE = {torch.float64: 1e-8, torch.float32: 1e-3}, 0.05
_WHOLE = Shards(())


@final
class RescaleCheck:
    """Sums of what the chunks added, for the few smallest parameters and some spread over the others.

    Args:
        parameters: those that are looked at.
        spread: how many beside the two smallest, evenly spaced.
    """

    def __init__(self, parameters: Sequence[Tensor], spread: int = 0):
        order = sorted(range(len(parameters)), key=lambda i: parameters[i].numel())
        rest = order[SMALLEST:]
        step = max(1, len(rest) // spread) if spread else 1
        places = order[:SMALLEST] + (sorted(rest)[::step][:spread] if spread else [])
        self.chosen = [parameters[i] for i in places]
        self._inside = {id(p) for p in self.chosen}
        self._added: dict[int, Tensor] = {}
        self._coarsest = 0.0

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._inside

    def __len__(self) -> int:
        return sum(map(_length, self.chosen))

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take what one pass adds to a chosen parameter's gradient.

        Args:
            parameter: one of the chosen.
            gradient: of its shape. Sums are taken as autograd takes them, so that untouched gradients are equal.
        """
        self._coarsest = max(self._coarsest, _TOLERANCE.get(gradient.dtype, _COARSE))
        known = self._added.get(id(parameter))
        if known is None:
            self._added[id(parameter)] = _few(gradient).clone()
        else:
            known.add_(_few(gradient))

    def forget(self) -> None:
        """Drop what was taken."""
        self._added.clear()

    def sums(self, device: torch.device) -> Tensor:
        """Return the sums in one vector; zeros for parameters that no pass reached.

        Args:
            device: of the gradients.

        Returns:
            float64, as long on every rank.
        """
        if not self.chosen:
            return torch.zeros(0, dtype=torch.float64, device=device)
        found = [self._added.get(id(p)) for p in self.chosen]
        none = [
            torch.zeros(_length(p), device=device) for p, sums in zip(self.chosen, found, strict=True) if sums is None
        ]
        return torch.cat([none.pop(0) if sums is None else sums for sums in found]).double()

    def now(self, device: torch.device) -> Tensor:
        """Return the same coordinates of the gradients as they are; zeros where there is none.

        Args:
            device: of the gradients.

        Returns:
            float64.
        """
        if not self.chosen:
            return torch.zeros(0, dtype=torch.float64, device=device)
        found = [own_gradient(p) for p in self.chosen]
        parts = [
            torch.zeros(_length(p), device=device) if g is None else _few(g)
            for p, g in zip(self.chosen, found, strict=True)
        ]
        return torch.cat(parts).double()

    def factor(self, summed: Tensor, shards: Shards = _WHOLE) -> tuple[Tensor, Tensor]:
        """Return what the gradient was multiplied by since, and whether one factor explains it.

        Args:
            summed: the sums, averaged over ranks.
            shards: how the parameters lie over ranks, each of which looks at its own parts.

        Returns:
            The factor (1 where the sums are all 0), and a boolean scalar.
        """
        now = self.now(summed.device)
        size, both = shards.total(torch.stack([summed @ summed, summed @ now]))
        factor = torch.where(size > 0, both / size, torch.ones_like(size))
        left = torch.linalg.vector_norm(now - factor * summed)
        most = max(self._coarsest, *(_TOLERANCE.get(p.dtype, _COARSE) for p in self.chosen))
        found = torch.stack([left, torch.linalg.vector_norm(now)])
        if shards:
            found = shards.total(found.square()).sqrt()
        return factor, found[0] <= most * found[1]


def _rows(tensor: Tensor) -> int:
    """Return how many of its first rows are looked at: a whole gradient that is a transposed view would be copied."""
    return max(1, LONGEST * len(tensor) // tensor.numel())


def _length(tensor: Tensor) -> int:
    """Return how many numbers of a tensor are looked at."""
    tensor = local(tensor)
    size = tensor.numel()
    return size if size <= LONGEST else min(LONGEST, _rows(tensor) * (size // len(tensor)))


def _few(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that are looked at."""
    return tensor.flatten() if tensor.numel() <= LONGEST else tensor[: _rows(tensor)].flatten()[:LONGEST]
