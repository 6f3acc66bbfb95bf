"""Statistics beside the weights: batch norm measured again, and running means of what a loss observes."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from isobatch.average.binding import bare
from isobatch.average.clock import counted, plain
from isobatch.errors import InputError, NonFiniteError
from isobatch.units import finite


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
        if not values.numel():
            return
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

    Each batch must give a layer more than one value per channel. Layers that the forward never reaches, such as those
    of heads behind the features, keep the statistics that they have. A rank without batches takes part with none.

    Args:
        model: the model; its mode, its momenta and everything but the statistics are left as they were.
        batches: inputs, or tuples and lists whose first element is the input; a packed sequence is one input.
        forward: how to run the model on a batch, instead of model(input).
        group: process group; None takes the default one where there is one.

    Returns:
        How many batches this rank read; 0 when the model has no batch-norm statistics.

    Raises:
        InputError: no batches, too few values for a variance, or a rank that failed; the statistics are as they were.
        NonFiniteError: inputs of a layer that are not finite, by its name; the statistics are as they were.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> recalibrate(model, [torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[4.0], [7.0]])])
        2
        >>> model[0].running_mean.item(), model[0].running_var.item()
        (4.0, 6.5)
    """
    root = bare(model)
    named = {m: name for name, m in root.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    layers = {layer: Moments() for layer in named}
    if not layers:
        return 0
    count, failure = 0, None
    try:
        with _measuring(root, layers, named), torch.inference_mode(False), torch.no_grad():
            for batch in _iterated(batches):
                (forward or _forward)(model, batch)
                count += 1
    except Exception as error:  # the other ranks wait for this one, so it tells them before it raises
        failure = error
    everyone = _agreed(count, failure is not None, next(iter(layers)), group)
    if failure is not None:
        raise failure
    if any(failed for _, failed in everyone):
        ranks = [rank for rank, (_, failed) in enumerate(everyone) if failed]
        raise InputError(f"measuring failed on rank {ranks[0]}, so the statistics were left as they were on all ranks")
    if not sum(read for read, _ in everyone):
        raise InputError("no batches were given; the statistics were left as they were")
    if len(everyone) > 1:
        for layer, moments in layers.items():
            _pool(moments, layer, group)
    _write({layer: moments for layer, moments in layers.items() if moments.count}, named, count)
    return count


def _iterated(batches: Any) -> Iterable[Any]:
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        raise InputError(f"batches={type(batches).__name__} must be an iterable of batches, such as a DataLoader")
    return batches


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        if not batch:
            raise InputError("a batch is an empty tuple or list; its first element is the input, or give forward=")
        batch = batch[0]
    return model(batch)


def _write(layers: dict[_BatchNorm, Moments], named: Mapping[_BatchNorm, str], count: int) -> None:
    found = {layer: (moments.mean, moments.variance()) for layer, moments in layers.items()}
    for layer, (mean, variance) in found.items():
        if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            raise NonFiniteError(
                f"inputs of batch norm {named[layer]!r} are not finite; the statistics were left as they were. Check "
                "the batches, or the weights before that layer",
                parameter=named[layer],
            )
    with torch.inference_mode(False), torch.no_grad():
        for layer, (mean, variance) in found.items():
            for key, value in (("running_mean", mean), ("running_var", variance)):
                _set(layer, key, value)
            if layer.num_batches_tracked is not None:
                _set(layer, "num_batches_tracked", torch.full_like(layer.num_batches_tracked, count))


def _set(layer: _BatchNorm, key: str, value: Tensor) -> None:
    buffer = layer.get_buffer(key)
    if buffer.is_inference():
        layer._buffers[key] = value.to(device=buffer.device, dtype=buffer.dtype)
    else:
        buffer.copy_(value)


@contextmanager
def _measuring(model: nn.Module, layers: dict[_BatchNorm, Moments], named: Mapping[_BatchNorm, str]) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    kept = {
        layer: (layer.momentum, {k: b.clone() for k, b in layer._buffers.items() if b is not None}) for layer in layers
    }
    hooks = []
    try:
        model.eval()
        for layer, moments in layers.items():
            if type(layer) is nn.SyncBatchNorm:  # in training mode it would wait for ranks that have no batch
                hooks.append(layer.register_forward_hook(_normalised, with_kwargs=True))
            else:
                layer.train()
            layer.momentum = 0.0
            hooks.append(layer.register_forward_pre_hook(_observing(moments, named[layer]), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, (momentum, before) in kept.items():
            layer.momentum = momentum
            for key, buffer in before.items():  # 0 times a NaN is one too
                _set(layer, key, buffer)
        for module, mode in modes.items():
            module.training = mode


def _observing(moments: Moments, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def observe(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = _input(args, named)
        if x.numel() == x.shape[min(1, x.dim() - 1)]:
            raise InputError(f"a batch gives batch norm {name!r} one value per channel; make the batches larger")
        moments.add(x)

    return observe


def _input(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    return args[0] if args else named["input"]


def _normalised(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
    x, weight, bias = _input(args, named), layer.weight, layer.bias
    return functional.batch_norm(x, None, None, weight, bias, training=True, eps=layer.eps)  # ty: ignore


def _agreed(count: int, failed: bool, layer: _BatchNorm, group: dist.ProcessGroup | None) -> list[tuple[int, bool]]:
    """Return the batches of every rank and whether it failed, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [(count, failed)]
    own = torch.tensor([count, failed], dtype=torch.int64, device=layer.get_buffer("running_mean").device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return [(int(read), bool(bad)) for read, bad in (one.tolist() for one in everyone)]


def _pool(moments: Moments, layer: _BatchNorm, group: dist.ProcessGroup | None) -> None:
    """Merge the moments of every rank, in rank order, so that all ranks end with the same bits."""
    blank = torch.zeros(layer.num_features, dtype=torch.float64, device=layer.get_buffer("running_mean").device)
    mean, squares = (moments.mean, moments.squares) if moments.count else (blank, blank)
    own = torch.stack([torch.full_like(blank, moments.count), mean.to(blank), squares.to(blank)])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    moments.count, moments.mean, moments.squares = 0.0, torch.zeros_like(blank), torch.zeros_like(blank)
    for count, mean, squares in everyone:
        moments.merge(float(count[0]), mean, squares)


@final
class ObservedMean:
    r"""Exponential moving average of what a loss observes, with its half-life in samples.

    c <- 2**(-B/H) c + (1 - 2**(-B/H)) mean over the B samples of the step. add() collects during the step, commit()
    moves c after it, discard() forgets a step that the guard refused; so c obeys the EMA rule, and accumulation over
    micro-batches is one batch.

    Args:
        start: c before the first step; its shape is kept, and its dtype where it is at least float32: a narrower mean
            would soon stand still.
        half_life: H in samples, from 0 (the last batch alone) to infinity (frozen).

    Raises:
        InputError: a half-life outside its range, or a start that is no floating tensor.
        NonFiniteError: a start that is not finite.

    Example:
        >>> centre = ObservedMean(torch.zeros(1), half_life=4)
        >>> centre.add(torch.tensor([[1.0], [3.0]]))
        >>> centre.add(torch.tensor([[2.0], [2.0]]))
        >>> centre.commit(samples=4)
        >>> centre.value.item()
        1.0

    References:
        arXiv 2104.14294 (DINO's centre), arXiv 2307.13813 (the rule).
    """

    def __init__(self, start: Tensor, half_life: float):
        if not isinstance(start, Tensor) or not (start.is_floating_point() or start.is_complex()):
            raise InputError(f"start={start!r} must be a tensor of floating type, such as torch.zeros(3)")
        with torch.inference_mode(False):
            wide = torch.promote_types(start.dtype, torch.float32)
            self.value = start.detach().to(wide, copy=True).clone()
        if not bool(torch.isfinite(self.value).all()):
            raise NonFiniteError("the running mean cannot start at values that are not finite; start it at zeros")
        infinite = isinstance(half_life, float) and half_life == math.inf
        self.half_life = math.inf if infinite else finite("half_life", half_life, 0)
        self.discard()

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Collect what one pass observed; every row counts the same.

        Args:
            values: of shape [n, *value.shape].

        Raises:
            InputError: no tensor, or another shape.
        """
        if not isinstance(values, Tensor):
            raise InputError(f"observed a {type(values).__name__}; the mean takes a tensor")
        if values.dim() < 1 or values.shape[1:] != self.value.shape:
            raise InputError(f"observed {list(values.shape)}; the mean takes [n, *{list(self.value.shape)}]")
        if values.is_complex() and not self.value.is_complex():
            raise InputError(f"observed {values.dtype}; the mean is {self.value.dtype}, start it with a complex tensor")
        part = values.detach().to(torch.promote_types(values.dtype, torch.float64)).sum(0)
        self.total = part if self.total is None else self.total + part
        self.count += len(values)

    def discard(self) -> None:
        """Forget what was collected since the last commit."""
        self.total: Tensor | None = None
        self.count = 0.0

    @torch.no_grad()
    def commit(self, *, samples: float) -> None:
        """Move the mean by what was collected; nothing collected moves nothing.

        Args:
            samples: global samples of the step.

        Raises:
            InputError: samples that are not positive.
            NonFiniteError: what was collected is not finite; the mean was left as it was.
        """
        size, total, count = counted(samples), self.total, self.count
        self.discard()
        if total is None or not count:
            return
        mean = (total / count).to(self.value)
        if not bool(torch.isfinite(mean).all()):
            raise NonFiniteError("what the loss observed is not finite; the running mean was left as it was")
        span = math.inf if self.half_life == 0 else size / self.half_life
        self.value.lerp_(mean, plain(span))

    def to(self, device: torch.device) -> None:
        """Move the mean to a device.

        Args:
            device: where the loss runs.
        """
        self.value = self.value.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean by name; the half-life is the recipe's."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a mean.

        Args:
            state: what state_dict() returned.

        Raises:
            InputError: something else, another shape, or a complex mean for a real one.
            NonFiniteError: a mean that is not finite; nothing was changed.
        """
        value = state.get("value") if isinstance(state, Mapping) else None
        if not isinstance(value, Tensor):
            raise InputError('no state of a running mean: {"value": tensor} is needed')
        if value.is_meta or (value.is_complex() and not self.value.is_complex()):
            raise InputError(
                f"mean of {value.dtype} on {value.device} stored, {self.value.dtype} here; convert it first"
            )
        if value.shape != self.value.shape:
            raise InputError(f"mean of shape {list(value.shape)} stored, {list(self.value.shape)} here")
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError("the stored running mean is not finite; nothing was changed")
        self.value.copy_(value)
        self.discard()
