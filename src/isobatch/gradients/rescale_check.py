r"""A few coordinates of the summed chunks, compared with the gradient that the optimizer will see.

Between backward and the measurement a gradient may be divided by a loss scale or clipped; then every chunk must follow.
The factor is read off these coordinates, so that the order of unscaling, clipping and measuring does not matter. What
no single factor explains (element-wise clipping, gradients left over from another step) is found out.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

SMALLEST, LONGEST = 2, 1024
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


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
        self._added: dict[Tensor, list[Tensor]] = {p: [] for p in self.chosen}

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._added

    def __len__(self) -> int:
        return sum(min(p.numel(), LONGEST) for p in self.chosen)

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take what one pass adds to a chosen parameter's gradient.

        Args:
            parameter: one of the chosen.
            gradient: of its shape; kept as it is until the step is measured.
        """
        self._added[parameter].append(gradient.flatten()[:LONGEST].clone() if gradient.numel() > LONGEST else gradient)

    def forget(self) -> None:
        """Drop what was taken."""
        for added in self._added.values():
            added.clear()

    def sums(self, device: torch.device) -> Tensor:
        """Return the sums in one vector; zeros for parameters that no pass reached.

        Args:
            device: of the gradients.

        Returns:
            float64, as long on every rank.
        """
        return torch.cat([self._sum(p, device) for p in self.chosen]) if self.chosen else torch.zeros(0).double()

    def _sum(self, parameter: Tensor, device: torch.device) -> Tensor:
        added = self._added[parameter]
        if not added:
            return torch.zeros(min(parameter.numel(), LONGEST), dtype=torch.float64, device=device)
        if len(added) == 1:
            return added[0].flatten().double()
        return torch.stack(added).flatten(1).double().sum(0)

    def factor(self, summed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the gradient was multiplied by since, and whether one factor explains it.

        Args:
            summed: the sums, averaged over ranks.

        Returns:
            The factor (1 where the sums are all 0), and a boolean scalar.
        """
        nothing = [torch.zeros(min(p.numel(), LONGEST), device=summed.device) for p in self.chosen if p.grad is None]
        parts = [p.grad.flatten()[:LONGEST] if p.grad is not None else nothing.pop(0) for p in self.chosen]
        now = torch.cat(parts).double()
        size = summed @ summed
        factor = torch.where(size > 0, (summed @ now) / size, torch.ones_like(size))
        left = torch.linalg.vector_norm(now - factor * summed)
        tolerance = max(_TOLERANCE.get(p.dtype, 0.05) for p in self.chosen)
        return factor, left <= tolerance * torch.linalg.vector_norm(now)
