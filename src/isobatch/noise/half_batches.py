"""Parts of a batch: its rows, its halves, and whether the loss is a mean over them.

Sums are named, and what couples rows is said beside every estimate.
"""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isobatch.errors import InputError, warn
from isobatch.gradients import mapped
from isobatch.student import student_t

_NEAR = 16
"""Measurements on each side of a change of batch that are compared."""
_LIKE_A_SUM, _UNLIKE_A_MEAN = 1.5, 0.5


class CoupledSamplesWarning(UserWarning):
    """The loss of a batch is not a mean over independent samples, so a noise scale of single samples has no meaning."""


def mixes_rows(model: nn.Module) -> tuple[str, ...]:
    """Warn of layers whose output for one row depends on the other rows: batch norm in training mode.

    Args:
        model: any module.

    Returns:
        Caveats to print beside the estimate; empty when there are none.

    Example:
        >>> mixes_rows(nn.Linear(1, 1))
        ()
    """
    kinds = nn.modules.batchnorm._BatchNorm
    names = [name or "model" for name, m in model.named_modules() if isinstance(m, kinds) and m.training]
    if not names:
        return ()
    told = (
        f"batch norm ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}) couples the samples of a "
        "batch: the noise scale depends on the size of the chunks; measure with the chunk size you train with"
    )
    warn(told, CoupledSamplesWarning)
    return (told,)


def check_mean(loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> tuple[str, ...]:
    """Compare the loss of two rows with the losses of each: a mean gives the mean, a sum the sum.

    Runs in evaluation mode, so dropout does not blur the comparison; every module's mode is given back.

    Args:
        loss: loss(model, batch).
        model: the model.
        batch: a tensor, or a tuple, list or mapping of tensors, rows on axis 0; anything else is not checked.

    Returns:
        Caveats; empty when the loss is a mean, or cannot be checked.

    Raises:
        InputError: the loss is a sum over rows.

    Example:
        >>> check_mean(lambda model, x: model(x).square().mean(), nn.Linear(1, 1), torch.ones(2, 1))
        ()
    """
    if (length(batch) or 0) < 2:
        return ()
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), untouched(model):
            first, second, both = (float(loss(model, rows_of(batch, a, b))) for a, b in ((0, 1), (1, 2), (0, 2)))
    finally:
        for module, mode in modes:
            module.training = mode
    scale = max(abs(first), abs(second), abs(both))
    near = 0.02 * scale
    if not scale > 0 or abs((first + second) / 2 - both) <= near:
        return ()
    if abs(first + second - both) <= near:
        raise InputError(
            f"the loss is a sum over samples: {first:.4g} and {second:.4g} alone, {both:.4g} together; "
            'return the mean (reduction="mean", or divide by the samples)'
        )
    if min(first, second) <= both <= max(first, second):
        return ()
    told = (
        f"the loss of two rows together ({both:.4g}) is no mean of their losses alone ({first:.4g}, {second:.4g}): "
        "samples are coupled, as in a contrastive loss, and the noise scale of single samples has no meaning"
    )
    warn(told, CoupledSamplesWarning)
    return (told,)


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Give back buffers and random numbers as they were, whatever forward passes inside do to them.

    Args:
        model: whose buffers are kept.

    Yields:
        Nothing.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with untouched(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> int(norm.num_batches_tracked)
        0
    """
    before = [
        (module, key, buffer, buffer.detach().clone())
        for module in model.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, key, buffer, value in before:
                    # a forward pass may have put another tensor in its place
                    module._buffers[key] = buffer
                    buffer.copy_(value)


def sum_in_disguise(traces: NDArray[np.float64], batches: NDArray[np.float64]) -> str:
    r"""Return why a loss looks like a sum: tr(Sigma) of one sample follows the square of the batch.

    Of a mean loss it does not depend on the batch, of a sum it goes as B^2. The power p of B is that of a line through
    (log B, log tr(Sigma)) of the measurements around the last change of batch by a factor of 2 or more, of near ones
    alone, since tr(Sigma) drifts in a run. A sum is said where p is at least 1.5 and its 99% interval lies above 0.5.

    Args:
        traces: tr(Sigma) of measurements, in order of time.
        batches: samples of their steps.

    Returns:
        The reason; empty where nothing points to a sum.

    Example:
        >>> sum_in_disguise(np.array([1.0, 1.1, 16.0, 17.0]), np.array([8.0, 8.0, 32.0, 32.0]))[:27]
        'the loss is a sum over samp'
        >>> sum_in_disguise(np.array([1.0, 1.1, 2.0, 2.1]), np.array([8.0, 8.0, 32.0, 32.0]))
        ''
    """
    changes = np.flatnonzero(np.abs(np.diff(np.log(batches))) >= math.log(2)) if len(batches) > 1 else np.zeros(0, int)
    if not len(changes):
        return ""
    near = slice(max(int(changes[-1]) + 1 - _NEAR, 0), int(changes[-1]) + 1 + _NEAR)
    y, b = traces[near], np.log(batches[near])
    if (y <= 0).any():  # so poorly known that its size says nothing
        return ""
    y = np.log(y)
    small = b < (b.min() + b.max()) / 2
    if min(small.sum(), (~small).sum()) < 2:  # one step tells nothing of how much they scatter
        return ""
    spread = float(np.square(b - b.mean()).sum())
    power = float((b - b.mean()) @ y) / spread
    rest = y - y.mean() - power * (b - b.mean())
    error = math.sqrt(float(rest @ rest) / (len(y) - 2) / spread)
    if power < _LIKE_A_SUM or power - student_t(len(y) - 2, 0.995) * error <= _UNLIKE_A_MEAN:
        return ""
    return (
        f"the loss is a sum over samples: tr(Sigma) goes as the batch to the power {power:.2g}, of a mean it does not "
        "depend on it; divide the loss by the samples"
    )


def backward_in_halves(
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    rows: int,
    declare: Callable[[float], AbstractContextManager[None]],
) -> Tensor:
    """Run forward and backward on each half of a batch; `.grad` ends as that of the whole batch's mean loss.

    Args:
        loss_fn: the mean loss over the rows it is given.
        x: inputs.
        y: targets.
        rows: in the batch, at least 2.
        declare: told how many rows each half holds.

    Returns:
        The batch's mean loss, detached.
    """
    parts = []
    for start, stop in ((0, rows // 2), (rows // 2, rows)):
        with declare(stop - start):
            part = loss_fn(rows_of(x, start, stop), rows_of(y, start, stop)) * ((stop - start) / rows)
            part.backward()
        parts.append(part.detach())
    return parts[0] + parts[1]


def rows_of(batch: Any, start: int, stop: int) -> Any:
    """Return rows start to stop of every tensor in a batch.

    Args:
        batch: a tensor, or a tuple, list or mapping of tensors.
        start: first row.
        stop: row after the last.

    Returns:
        The same structure.

    Example:
        >>> rows_of((torch.arange(4), torch.arange(4)), 1, 3)
        (tensor([1, 2]), tensor([1, 2]))
    """
    return mapped(batch, lambda tensor: tensor[start:stop])


def first_tensor(batch: Any) -> Tensor:
    """Return the first tensor of a batch.

    Args:
        batch: a tensor, or a tuple, list or mapping of tensors.

    Returns:
        The tensor whose length is the batch's.

    Raises:
        InputError: nothing that has rows.
    """
    if isinstance(batch, Tensor) and batch.ndim > 0:
        return batch
    inside = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(inside, tuple | list) and inside:
        return first_tensor(inside[0])
    raise InputError(f"a chunk of type {type(batch).__name__} has no rows to count; give counts=")


def length(batch: Any) -> int | None:
    """Return the length of the first tensor in a batch that has one.

    Args:
        batch: anything.

    Returns:
        Its rows, None without such a tensor.

    Example:
        >>> length({"tokens": torch.zeros(3, 2), "scale": 1.0})
        3
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim > 0 else None
    inside = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(inside, tuple | list):
        return None
    return next((n for n in map(length, inside) if n is not None), None)
