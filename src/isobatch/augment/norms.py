"""Two batch norms a layer: one for clean rows and for evaluation, one for adversarial rows."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isobatch.errors import InputError
from isobatch.modules import with_weights


class TwoNorms(nn.Module):
    """A batch norm with a twin for adversarial rows; outside `adversarial_rows` and in evaluation the main one acts.

    Args:
        norm: the main one; its twin starts as a copy.

    References:
        arXiv 2106.00221 (main and adversarial batch norm), 1911.09665 (AdvProp).
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__()
        self.main, self.adversarial = norm, with_weights(norm)
        self.twin = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs.

        Args:
            inputs: as the batch norm takes them.

        Returns:
            Outputs of the same shape.
        """
        use, idle = (self.adversarial, self.main) if self.twin and self.training else (self.main, self.adversarial)
        made = use(inputs)
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            # data-parallel training waits for the gradient of every parameter in every pass
            made = made + 0 * sum(p.sum() for p in idle.parameters())
        return made


def two_norms(model: nn.Module) -> int:
    """Give every batch norm inside a model its twin, in place; do it before the optimizer is built.

    Args:
        model: changed in place; names gain ".main" and ".adversarial".

    Returns:
        Layers that were doubled.

    Raises:
        InputError: a model without batch norm.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> two_norms(model), type(model[1]).__name__
        (1, 'TwoNorms')
    """
    places = [
        (parent, name, child)
        for parent in list(model.modules())
        if not isinstance(parent, TwoNorms)
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    if not places:
        raise InputError('norms="two" needs a model with batch norm, and this one has none; use norms="shared"')
    for parent, name, child in places:
        setattr(parent, name, TwoNorms(child))
    return len(places)


@contextmanager
def adversarial_rows(model: nn.Module) -> Generator[None]:
    """Send the rows of the block through the adversarial twins; models without twins are left alone.

    Args:
        model: with or without `TwoNorms`.

    Yields:
        None.
    """
    twins = [layer for layer in model.modules() if isinstance(layer, TwoNorms)]
    for layer in twins:
        layer.twin = True
    try:
        yield
    finally:
        for layer in twins:
            layer.twin = False
