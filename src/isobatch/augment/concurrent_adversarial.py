"""Adversarial directions made ahead: one step along the input gradient, by weights that are tau steps old.

    xhat = clip(x + eps * d),   d = sign(grad_x L(w[t - tau]; x, y))

What is kept for the batches ahead is d, one byte a number, never weights; eps belongs to the moment of use.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from isobatch.augment.draws import Draws
from isobatch.augment.norms import adversarial_rows
from isobatch.augment.views import inputs_of, with_inputs
from isobatch.errors import InputError
from isobatch.units import finite

Form = Literal["sign", "l2", "random-sign"]
Loss = Callable[[nn.Module, Any], Tensor]


class Frozen(nn.Module):
    """A model whose buffers a forward pass does not move: batch norm's running statistics above all.

    Args:
        model: its weights are used as they are, its buffers through a copy.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        """Return the model's outputs.

        Args:
            *inputs: handed over.

        Returns:
            Its outputs.
        """
        return functional_call(self.model, {name: b.clone() for name, b in self.model.named_buffers()}, inputs)


def directions(loss: Loss, model: nn.Module, batch: Any, form: Form = "sign", draws: Draws | None = None) -> Tensor:
    """Return the direction in which each input is to be moved, at the model's present weights.

    The pass is made through the adversarial batch norms where there are two; it leaves `.grad` and buffers alone.
    A direction that is not finite is 0.

    Args:
        loss: (model, batch) -> mean loss.
        model: in training mode, as in the update.
        batch: a tensor of inputs, or a tuple whose first one it is.
        form: "sign"; "l2", the gradient over its norm, row by row; "random-sign", a control that asks no model.
        draws: random numbers of the rows, for "random-sign".

    Returns:
        int8 of the inputs' shape for signs, the inputs' own type for "l2".

    Raises:
        InputError: inputs that are no floating point numbers, or "random-sign" without draws.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, -1.0)
        >>> directions(lambda net, x: net(x).sum(), model, torch.ones(1, 2)).tolist()
        [[-1, -1]]

    References:
        arXiv 2106.00221, Algorithm 1 (the form and size of its step are not stated there: both are options here).
    """
    inputs = inputs_of(batch)
    if not inputs.is_floating_point():
        raise InputError(f"inputs of {inputs.dtype} cannot be moved by a small step; adversaries need floating point")
    if form == "random-sign":
        if draws is None:
            raise InputError('form="random-sign" needs draws; give augment.Draws(seed, positions)')
        heads = draws.uniform(inputs[0].numel()).view(inputs.shape) < 0.5
        return (2 * heads.to(torch.int8) - 1).to(inputs.device)
    with torch.enable_grad(), adversarial_rows(model):
        leaf = inputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(Frozen(model), with_inputs(batch, leaf)), leaf)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    if form == "sign":
        return gradient.sign().to(torch.int8)
    norms = gradient.flatten(1).norm(dim=1).view(-1, *(1,) * (gradient.dim() - 1))
    return gradient / norms.clamp_min(torch.finfo(gradient.dtype).tiny)


def perturbed(batch: Any, moves: Tensor, eps: float, bounds: tuple[float, float] | None = None) -> Any:
    """Return a batch whose inputs are moved by eps along their directions.

    Args:
        batch: a tensor of inputs, or a tuple whose first one it is.
        moves: from `directions`.
        eps: the largest change of a number for signs, the length of a row's change for "l2"; at least 0.
        bounds: smallest and largest input, None for no bounds.

    Returns:
        The batch, in the form it had.

    Raises:
        InputError: a negative eps, or directions of another shape.

    Example:
        >>> perturbed(torch.tensor([[0.5, 0.95]]), torch.tensor([[-1, 1]], dtype=torch.int8), 0.25, (0, 1)).tolist()
        [[0.25, 1.0]]
    """
    inputs = inputs_of(batch)
    if moves.shape != inputs.shape:
        raise InputError(f"directions {tuple(moves.shape)} do not belong to inputs {tuple(inputs.shape)}")
    moved = inputs + finite("eps", eps, 0) * moves.to(inputs.dtype)
    return with_inputs(batch, moved if bounds is None else moved.clamp(*bounds))
