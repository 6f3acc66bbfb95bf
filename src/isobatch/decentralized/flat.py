"""Parameters as one long vector, and what must still know the layers in it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isobatch.decentralized.updates import lars_ratio


class Layout:
    """Where each tensor of a list lies in a flat vector; a leading node axis is left as it is.

    Args:
        tensors: whose shapes are laid out in order.

    Example:
        >>> layout = Layout([torch.zeros(2, 3), torch.zeros(3)])
        >>> [part.shape for part in layout.split(torch.zeros(5, 9))]
        [torch.Size([5, 2, 3]), torch.Size([5, 3])]
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.shapes = [tensor.shape for tensor in tensors]
        self.sizes = [tensor.numel() for tensor in tensors]

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of the tensors in a flat vector [..., size].

        Args:
            flat: the vector, or one a node.

        Returns:
            Tensors [..., *shape].
        """
        lead = flat.shape[:-1]
        parts = flat.split(self.sizes, dim=-1)
        return [part.unflatten(-1, shape) if len(shape) else part.reshape(lead) for part, shape in self._pairs(parts)]

    def lars(self, trust: float, weight_decay: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return LARS's scale: ratio (g + wd x) on tensors of two and more dimensions, plain g on biases and norms.

        Args:
            trust: eta.
            weight_decay: wd.

        Returns:
            (x, g) -> scaled g, all flat.
        """

        def scale(x: Tensor, g: Tensor) -> Tensor:
            scaled = []
            pieces = zip(self.shapes, x.split(self.sizes, dim=-1), g.split(self.sizes, dim=-1), strict=True)
            for shape, mine, gradient in pieces:
                if len(shape) > 1:
                    norms = (part.norm(dim=-1, keepdim=True) for part in (mine, gradient))
                    gradient = lars_ratio(*norms, trust, weight_decay) * (gradient + weight_decay * mine)
                scaled.append(gradient)
            return torch.cat(scaled, dim=-1)

        return scale

    def _pairs(self, parts: Sequence[Tensor]) -> zip:
        return zip(parts, self.shapes, strict=True)


def consensus_distance(x: Tensor) -> float:
    """Return how far nodes disagree: mean_i |x_i - xbar|**2 / |xbar|**2.

    Args:
        x: weights [nodes, size].

    Returns:
        A number of at least 0.

    Example:
        >>> consensus_distance(torch.tensor([[1.0], [3.0]]))
        0.25
    """
    return relative_error(x, x.mean(0))


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Return the nodes' relative squared distance to a point: mean_i |x_i - x*|**2 / |x*|**2, the bias for a known x*.

    Args:
        x: weights [nodes, size].
        reference: x* [size].

    Returns:
        A number of at least 0.
    """
    return float((x - reference).square().sum(-1).mean() / reference.square().sum())
