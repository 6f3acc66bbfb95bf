"""Squares of chunk gradients from one forward and one backward pass, for layers that treat rows apart."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from isobatch.errors import InputError
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.units import finite, whole

Pieces = Iterator[dict[str, Tensor]]
LayerRule = Callable[[nn.Module, Tensor, Tensor, int], Pieces]


def _linear(module: nn.Module, x: Tensor, delta: Tensor, rows: int) -> Pieces:
    """Yield delta_j^T x_j of each chunk j of rows: as many operations in all as the weight's own gradient."""
    for inner, outer in zip(x.split(rows), delta.split(rows), strict=True):
        flat = outer.flatten(0, -2)
        yield {"weight": flat.T @ inner.flatten(0, -2), "bias": flat.sum(0)}


def _norm(module: nn.Module, x: Tensor, delta: Tensor, rows: int) -> Pieces:
    """Yield sum(delta_j * x_hat_j) of each chunk j, with x_hat the normalised input, computed once for the batch."""
    if not isinstance(module, nn.LayerNorm):
        raise InputError(f"the rule of layer norm was given a {type(module).__name__}")
    normalised = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    kept = len(module.normalized_shape)
    for inner, outer in zip((delta * normalised).split(rows), delta.split(rows), strict=True):
        yield {"weight": inner.flatten(0, -kept - 1).sum(0), "bias": outer.flatten(0, -kept - 1).sum(0)}


def _again(module: nn.Module, x: Tensor, delta: Tensor, rows: int) -> Pieces:
    """Yield the gradients of each chunk by running the layer again on its rows."""
    for inner, outer in zip(x.split(rows), delta.split(rows), strict=True):
        with torch.enable_grad():
            copies = {name: p.detach().requires_grad_() for name, p in module.named_parameters(recurse=False)}
            out = functional_call(module, copies, (inner,))
            found = torch.autograd.grad(out, list(copies.values()), outer)
        yield dict(zip(copies, found, strict=True))


_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: _linear,
    nn.Embedding: _again,
    nn.Conv1d: _again,
    nn.Conv2d: _again,
    nn.Conv3d: _again,
    nn.LayerNorm: _norm,
    nn.GroupNorm: _again,
    nn.RMSNorm: _again,
}


@dataclass(frozen=True)
class _Owner:
    """A layer, its rule, and its trainable parameters by their local names."""

    name: str
    module: nn.Module
    rule: LayerRule
    parameters: dict[str, nn.Parameter]


@contextmanager
def layer_squares(
    model: nn.Module, optimizer: InvariantOptimizer, *, batch: int, rows: int | None = None, per_row: float = 1.0
) -> Generator[None]:
    r"""Collect the squares of every chunk of rows from one forward and backward pass of the whole batch.

    Each layer's inputs and output gradients are cut into chunks of rows, and the chunk gradients computed from them:
    for a linear layer sum over chunks of (delta_j^T x_j)^2 (one row without a length: (delta^2)^T x^2). The result is
    that of `split_backward`, to rounding, with one large pass instead of many small ones. Inside `with`: one forward,
    one backward of the mean loss.

    Known layers: Linear, Embedding, Conv1d to 3d, LayerNorm, GroupNorm, RMSNorm. Refused, with `split_backward` as the
    way out: other layers with parameters (batch norm mixes rows), a layer used twice, a parameter in two layers, and
    a layer whose input does not have the batch on axis 0 (a position table shared by all rows: give it positions of
    shape (batch, length)).

    Args:
        model: its trainable parameters are all watched by the optimizer.
        optimizer: an invariant optimizer, with any form of noise.
        batch: rows of the whole batch.
        rows: rows in a chunk; None takes the reference batch's worth, at least 1.
        per_row: samples (tokens) that one row holds.

    Yields:
        Nothing.

    Raises:
        InputError: a model or pass that this cannot see through, named by its layer, or a number out of range.

    Example:
        >>> from isobatch.optimizers import InvariantAdamW
        >>> model = nn.Linear(2, 1)
        >>> optimizer = InvariantAdamW(model.parameters(), reference_batch=1)
        >>> with layer_squares(model, optimizer, batch=4):
        ...     model(torch.ones(4, 2)).mean().backward()
        >>> optimizer.chunks.count
        4
    """
    held = finite("per_row", per_row, 0, open_low=True)
    size = max(1, round(optimizer.reference_batch / held)) if rows is None else rows
    size = min(whole("rows", size), whole("batch", batch))
    owners = _owners(model)
    sizes = [min(size, batch - start) * per_row for start in range(0, batch, size)]
    if not optimizer.needs_chunks:
        with optimizer.chunk(sum(sizes)):
            yield
        return
    watch = _Watch(optimizer, batch, size, sizes)
    handles = [owner.module.register_forward_hook(partial(watch.forward, owner), with_kwargs=True) for owner in owners]
    try:
        with optimizer.chunks.from_layers(sizes):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The hooks of one pass: keeps each layer's input until its output's gradient comes back."""

    def __init__(self, optimizer: InvariantOptimizer, batch: int, rows: int, sizes: list[float]):
        self.chunks = optimizer.chunks
        self.batch = batch
        self.rows = rows
        self.sizes = sizes
        self.used: set[str] = set()
        self.running_again = False

    def forward(
        self, owner: _Owner, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        if self.running_again or not torch.is_grad_enabled():
            return
        if owner.name in self.used:
            raise InputError(f"layer {owner.name!r} is used twice in a pass; use split_backward")
        self.used.add(owner.name)
        x = (inputs[0] if inputs else named["input"]).detach()
        if x.ndim < 1 or len(x) != self.batch:
            raise InputError(
                f"layer {owner.name!r} got an input of shape {tuple(x.shape)}, without the batch of {self.batch} "
                "on axis 0; use split_backward"
            )
        output.register_hook(lambda delta: self.backward(owner, x, delta))

    @torch.no_grad()
    def backward(self, owner: _Owner, x: Tensor, delta: Tensor) -> None:
        held = next(iter(owner.parameters.values())).dtype  # autocast hands over narrower ones
        delta, x = delta.to(held), x.to(held) if x.is_floating_point() else x
        with torch.autocast(x.device.type, enabled=False):
            self._add(owner, x, delta)

    def _add(self, owner: _Owner, x: Tensor, delta: Tensor) -> None:
        if self.rows == 1 and owner.rule is _linear and x.ndim == 2 and self.chunks.form == "coordinate":
            squares = {"weight": delta.square().T @ x.square(), "bias": delta.square().sum(0)}
            for key, parameter in owner.parameters.items():
                self.chunks.add_squares(parameter, squares[key], self.sizes[0])
            return
        self.running_again = True
        for samples, piece in zip(self.sizes, owner.rule(owner.module, x, delta, self.rows), strict=True):
            for key, parameter in owner.parameters.items():
                self.chunks.add(parameter, piece[key], samples)
        self.running_again = False


def _owners(model: nn.Module) -> list[_Owner]:
    """Return each layer that owns trainable parameters with its rule, or refuse the model."""
    owners = []
    seen: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not trainable:
            continue
        rule = _RULES.get(type(module))
        if rule is None:
            known = ", ".join(kind.__name__ for kind in _RULES)
            raise InputError(f"layer {name!r} is a {type(module).__name__}, not one of {known}; use split_backward")
        for parameter in trainable.values():
            if parameter in seen:
                raise InputError(f"layers {seen[parameter]!r} and {name!r} share a parameter; use split_backward")
            seen[parameter] = name
        owners.append(_Owner(name, module, rule, trainable))
    return owners
