"""Views: functions from a batch of inputs and its random numbers to inputs of the same shape."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from isobatch.augment.draws import Draws
from isobatch.errors import InputError
from isobatch.gradients import mapped, rebuilt

View = Callable[[Tensor, Draws], Tensor]
"""A view: inputs of any shape, and the draws of their rows; returns inputs of the same shape."""


def identity(inputs: Tensor, draws: Draws) -> Tensor:
    """Return the inputs as they are; copies then differ by the model's own randomness, such as dropout.

    Args:
        inputs: any shape.
        draws: not used.

    Returns:
        The inputs.
    """
    return inputs


def shift(inputs: Tensor, draws: Draws, most: int = 1) -> Tensor:
    """Move each image by up to `most` pixels in both directions; zeros come in from outside.

    Args:
        inputs: images (rows, ..., height, width), or (rows, side * side).
        draws: two numbers a row.
        most: pixels.

    Returns:
        Images of the same shape.

    Example:
        >>> shift(torch.ones(2, 4, 4), Draws(0, torch.arange(2)), most=0).sum().item()
        32.0
    """
    images = _images(inputs)
    height, width = images.shape[-2:]
    moved = functional.pad(images, (most, most, most, most))
    begin = draws.integers(0, 2 * most, 2).to(images.device)
    y = begin[:, :1] + torch.arange(height, device=images.device)
    x = begin[:, 1:] + torch.arange(width, device=images.device)
    row = torch.arange(len(images), device=images.device)[:, None, None]
    found = moved.movedim((-2, -1), (1, 2))[row, y[:, :, None], x[:, None, :]]
    return found.movedim((1, 2), (-2, -1)).reshape(inputs.shape)


def cutout(inputs: Tensor, draws: Draws, size: int = 3) -> Tensor:
    """Set a square of each image to zero; its centre may be any pixel, so that it may reach over the border.

    Args:
        inputs: images (rows, ..., height, width), or (rows, side * side).
        draws: two numbers a row.
        size: side of the square in pixels.

    Returns:
        Images of the same shape.

    References:
        arXiv 1708.04552 (Cutout).
    """
    images = _images(inputs)
    inside = []
    for dim in (-2, -1):
        begin = draws.integers(0, images.shape[dim] - 1).to(images.device) - size // 2
        place = torch.arange(images.shape[dim], device=images.device)
        inside.append((place >= begin) & (place < begin + size))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    hole = hole.view(len(images), *(1,) * (images.dim() - 3), *hole.shape[1:])
    return images.masked_fill(hole, 0).reshape(inputs.shape)


def shift_cutout(inputs: Tensor, draws: Draws) -> Tensor:
    """Shift by up to one pixel, then cut a square of three out: what the study of digits uses.

    Args:
        inputs: images (rows, ..., height, width), or (rows, side * side).
        draws: four numbers a row.

    Returns:
        Images of the same shape.
    """
    return cutout(shift(inputs, draws), draws)


VIEWS: dict[str, View] = {"identity": identity, "shift": shift, "cutout": cutout, "shift-cutout": shift_cutout}
"""Shipped views by the name that a recipe gives."""


def find_view(name: str) -> View:
    """Return a view by name.

    Args:
        name: a shipped view, or "my_pkg.mod:function".

    Returns:
        The function.

    Raises:
        InputError: no such view, or one that cannot be imported.

    Example:
        >>> find_view("shift-cutout") is shift_cutout
        True
    """
    if name in VIEWS:
        return VIEWS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(
            f'augment.view={name!r} is not shipped ({", ".join(VIEWS)}); your own is "my_pkg.mod:function"'
        )
    try:
        view = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the user's module does on import
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"augment.view={name!r} cannot be imported: {why}; is its folder on PYTHONPATH?") from error
    if not callable(view):
        raise InputError(f"augment.view={name!r}: {module} has no function {function!r}; name one that is there")
    return view


def viewed(batch: Any, view: View, draws: Draws) -> Any:
    """Return a batch whose first tensor is replaced by a view of it.

    Args:
        batch: a tensor, or a tuple or list of tensors whose first one is the input.
        view: the function.
        draws: a row of random numbers for each row.

    Returns:
        The batch, in the form it had.

    Raises:
        InputError: a batch of another form, or a view that changes shape or type.
    """
    inputs = inputs_of(batch)
    made = view(inputs, draws)
    if not isinstance(made, Tensor) or made.shape != inputs.shape or made.dtype != inputs.dtype:
        got = f"{tuple(made.shape)} of {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
        raise InputError(
            f"the view made {got} of inputs {tuple(inputs.shape)} of {inputs.dtype}; it must keep shape and type"
        )
    return with_inputs(batch, made)


def inputs_of(batch: Any) -> Tensor:
    """Return the inputs of a batch: the batch itself, or the first of its tensors.

    Args:
        batch: a tensor, or a tuple or list of tensors.

    Returns:
        The inputs.

    Raises:
        InputError: a batch of another form.
    """
    if isinstance(batch, Tensor):
        return batch
    listed = isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence)
    if listed and batch and isinstance(batch[0], Tensor):
        return batch[0]
    raise InputError(
        f"a batch of type {type(batch).__name__} has no inputs to change; give a tensor, or a tuple of tensors whose "
        "first one is the input"
    )


def with_inputs(batch: Any, inputs: Tensor) -> Any:
    """Return a batch with other inputs.

    Args:
        batch: a tensor, or a tuple or list of tensors.
        inputs: the new ones.

    Returns:
        The batch, in the form it had.
    """
    if isinstance(batch, Tensor):
        return inputs
    return rebuilt(batch, [inputs, *batch[1:]])


def repeated(batch: Any, copies: int) -> Any:
    """Return a batch copy-major: all rows, then all rows again, `copies` times.

    Args:
        batch: a tensor, or a tuple or list of tensors with a common first dimension.
        copies: how many times.

    Returns:
        The batch, in the form it had.

    Example:
        >>> repeated(torch.tensor([1, 2]), 2).tolist()
        [1, 2, 1, 2]
    """
    if copies == 1:
        return batch
    if isinstance(batch, Tensor):
        return torch.cat([batch] * copies)
    inputs_of(batch)
    if not all(isinstance(item, Tensor) for item in batch):
        raise InputError("a batch with parts that are no tensors cannot be repeated; give tensors of one length")
    return mapped(batch, lambda item: torch.cat([item] * copies))


def _images(inputs: Tensor) -> Tensor:
    if inputs.dim() >= 3:
        return inputs
    side = math.isqrt(inputs.shape[-1])
    if inputs.dim() != 2 or side * side != inputs.shape[-1]:
        raise InputError(
            f"inputs {tuple(inputs.shape)} are no images; give (rows, ..., height, width), or (rows, side * side)"
        )
    return inputs.view(len(inputs), side, side)
