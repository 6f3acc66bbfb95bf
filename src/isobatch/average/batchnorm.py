"""Batch-norm statistics for averaged weights: measured again, pooled over all samples."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isobatch.errors import InputError


@final
class Moments:
    """Count, mean and sum of squared deviations per channel in float64, merged without cancellation.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments.add(torch.tensor([[5.0]]))
        >>> moments.mean.item(), moments.variance().item()
        (3.0, 4.0)

    References:
        Chan, Golub and LeVeque (1979), the pairwise update.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add a batch.

        Args:
            values: [N, C, ...]; everything but C is pooled.
        """
        flat = values.detach().to(torch.float64).transpose(0, 1).flatten(1)
        count, mean = float(flat.shape[1]), flat.mean(1)
        self.merge(count, mean, (flat - mean[:, None]).square().sum(1))

    def merge(self, count: float, mean: Tensor, squares: Tensor) -> None:
        """Add the moments of other values.

        Args:
            count: of values per channel.
            mean: per channel.
            squares: sum of squared deviations per channel.
        """
        total = self.count + count
        if not total:
            return
        gap = mean - self.mean.to(mean.device)
        self.squares = self.squares.to(mean.device) + squares + gap.square() * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + gap * (count / total)
        self.count = total

    def variance(self) -> Tensor:
        """Return the unbiased variance per channel.

        Returns:
            Of shape [C].

        Raises:
            InputError: fewer than two values per channel.
        """
        if self.count < 2:
            raise InputError(f"{self.count:g} values per channel give no variance; give more batches")
        return self.squares / (self.count - 1)


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    group: dist.ProcessGroup | None = None,
) -> int:
    """Measure the batch-norm statistics of a model again, such as of ema.average_model().

    Each layer's running mean and variance become those of its inputs pooled over all samples, so a short last batch
    counts for what it holds; only batch-norm layers run in training mode, so dropout stays off. In a process group the
    samples of all ranks are pooled.

    Each batch must give a layer more than one value per channel.

    Args:
        model: the model; its mode, its momenta and everything but the statistics are left as they were.
        batches: inputs, or tuples and lists whose first element is the input.
        forward: how to run the model on a batch, instead of model(input).
        group: process group; None takes the default one where there is one.

    Returns:
        How many batches were read; 0 when the model has no batch-norm statistics.

    Raises:
        InputError: no batches, or too few values for a variance; the statistics are left as they were.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> recalibrate(model, [torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[4.0], [7.0]])])
        2
        >>> model[0].running_mean.item(), model[0].running_var.item()
        (4.0, 6.5)
    """
    layers = {m: Moments() for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not layers:
        return 0
    run = forward or _forward
    count = 0
    with _measuring(model, layers), torch.no_grad():
        for batch in batches:
            run(model, batch)
            count += 1
    if dist.is_available() and dist.is_initialized():
        for moments in layers.values():
            _pool(moments, group)
    if not any(moments.count for moments in layers.values()):
        raise InputError("no batches were given; the statistics were left as they were")
    _write(layers, count)
    return count


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def _write(layers: dict[_BatchNorm, Moments], count: int) -> None:
    found = {layer: (moments.mean, moments.variance()) for layer, moments in layers.items() if moments.count}
    for layer, (mean, variance) in found.items():
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)
        layer.get_buffer("num_batches_tracked").fill_(count)


@contextmanager
def _measuring(model: nn.Module, layers: dict[_BatchNorm, Moments]) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    kept = {layer: (layer.momentum, _tracked(layer)) for layer in layers}
    hooks = []
    try:
        model.eval()
        for layer, moments in layers.items():
            layer.train()
            layer.momentum = 0.0
            hooks.append(layer.register_forward_pre_hook(lambda _, args, moments=moments: moments.add(args[0])))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, (momentum, tracked) in kept.items():
            layer.momentum = momentum
            if tracked is not None and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(tracked)
        for module, mode in modes.items():
            module.training = mode


def _tracked(layer: _BatchNorm) -> Tensor | None:
    return None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()


def _pool(moments: Moments, group: dist.ProcessGroup | None) -> None:
    """Merge the moments of every rank, in rank order, so that all ranks end with the same bits."""
    own = torch.stack([torch.full_like(moments.mean, moments.count), moments.mean, moments.squares])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    moments.count, moments.mean, moments.squares = 0.0, torch.zeros_like(own[1]), torch.zeros_like(own[2])
    for count, mean, squares in everyone:
        moments.merge(float(count.flatten()[0]), mean, squares)
