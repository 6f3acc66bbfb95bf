r"""Gradients of single rows of a batch, from one forward and one backward pass, for layers that treat rows apart.

A layer's gradient is a sum over rows of what its input x_i and the gradient delta_i of its output make together. A few
rows a step are enough: they give tr(Sigma), and |G|^2 follows from the whole batch's own gradient.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from isobatch.noise.record import Entry, Record

Pieces = Iterator[dict[str, Tensor]]
Rule = Callable[[nn.Module, Tensor, Tensor], Pieces]
# Above this many numbers, rows are taken one at a time: the buffer stays as large as the layer.
_TOGETHER = 2**22


@dataclass(frozen=True)
class Owner:
    """A layer whose rows can be told apart, and its own parameters by their local names.

    Args:
        name: of the layer.
        module: the layer.
        rule: yields the gradients of rows, in parts.
        parameters: by local name.
    """

    name: str
    module: nn.Module
    rule: Rule
    parameters: dict[str, nn.Parameter]


def owners(model: nn.Module, *, norms_only: bool = False) -> list[Owner]:
    """Return the layers whose rows can be told apart; parameters shared by layers, and compiled blocks, are left out.

    Known: Linear, Embedding, Conv1d to 3d, LayerNorm, RMSNorm, GroupNorm.

    Args:
        model: bare.
        norms_only: whether to look at norm layers alone.

    Returns:
        One for each layer.

    Example:
        >>> [owner.name for owner in owners(nn.Sequential(nn.Linear(1, 1), nn.PReLU()))]
        ['0']
    """
    holders: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[parameter] = holders.get(parameter, 0) + 1
    found = []
    # torch.compile passes the hooks of layers by, and would trace a block anew for them
    blocks = [module for module in model.modules() if module._compiled_call_impl is not None]
    traced = {id(module) for block in blocks for module in block.modules()}
    for name, module in model.named_modules():
        if id(module) in traced:
            continue
        rule = _NORMS.get(type(module)) or (None if norms_only else _OTHERS.get(type(module)))
        mine = {k: p for k, p in module.named_parameters(recurse=False) if holders[p] == 1}
        if rule is None or not mine or _counts_tokens(module):
            continue
        if "weight" in module._parameters and set(module._parameters) <= {"weight", "bias"}:  # not pruned, say
            found.append(Owner(name, module, rule, mine))
    return found


def trainable_part(owner: Owner) -> Owner | None:
    """Return a layer with those of its parameters that need gradients now.

    Args:
        owner: the layer.

    Returns:
        The layer, None where it is frozen.
    """
    mine = {key: p for key, p in owner.parameters.items() if p.requires_grad}
    return replace(owner, parameters=mine) if mine else None


def _counts_tokens(module: nn.Module) -> bool:
    """Return whether an embedding's gradient is sparse, or scaled by how often the whole batch holds a token."""
    return isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq)


def linear_norms(x: Tensor, delta: Tensor) -> Tensor | None:
    r"""Return the norms of the rows' weight gradients of a linear layer without making them, where that is cheaper.

    |delta_i^T x_i|^2 = sum_tt' (x_t . x_t')(delta_t . delta_t'); for one position |x_i|^2 |delta_i|^2.

    Args:
        x: inputs, shape (rows, positions, in).
        delta: gradients of outputs, shape (rows, positions, out).

    Returns:
        Shape (rows,), or None where making the gradients costs less.

    Example:
        >>> linear_norms(torch.ones(1, 1, 4), torch.full((1, 1, 1), 3.0)).item()
        6.0
    """
    positions = x.shape[1]
    if positions == 1:
        return torch.linalg.vector_norm(x, dim=(1, 2)) * torch.linalg.vector_norm(delta, dim=(1, 2))
    if positions * (x.shape[2] + delta.shape[2]) >= x.shape[2] * delta.shape[2]:
        return None
    products = (x @ x.mT).mul_(delta @ delta.mT)
    return products.sum((1, 2)).clamp_min_(0).sqrt_()


def positions_apart(x: Tensor) -> Tensor:
    """Return a linear layer's input or output gradient with its positions on one axis: (rows, positions, features)."""
    return x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)


def _linear(module: nn.Module, x: Tensor, delta: Tensor) -> Pieces:
    inner, outer = positions_apart(x), positions_apart(delta)
    size = max(1, _TOGETHER // max(inner.shape[2] * outer.shape[2], 1))
    for a, b in zip(inner.split(size), outer.split(size), strict=True):
        yield {"weight": b.mT @ a, "bias": b.sum(1)}


def _again(module: nn.Module, x: Tensor, delta: Tensor) -> Pieces:
    """Yield gradients by running the layer again, row by row."""
    for inner, outer in zip(x.split(1), delta.split(1), strict=True):
        yield {name: gradient[None] for name, gradient in run_again(module, inner, outer).items()}


def run_again(module: nn.Module, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a layer's own parameters from its input and the gradient of its output.

    Args:
        module: the layer.
        x: its input.
        delta: gradient of its output.

    Returns:
        Gradients by local name.
    """
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        bare = _Unhooked(module)
        leaves = {name: p.detach().to(delta.dtype).requires_grad_() for name, p in bare.named_parameters()}
        # contiguous: torch 2.13's group norm in channels-last crashes where its input takes no gradient
        out = functional_call(bare, leaves, (x.contiguous(),))
        found = torch.autograd.grad(out, list(leaves.values()), delta, materialize_grads=True)
    return {name.removeprefix("layer."): gradient for name, gradient in zip(leaves, found, strict=True)}


class _Unhooked(nn.Module):
    """Calls a layer's forward without the hooks that anybody has put on it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.forward(x)


def _layer_norm(module: nn.Module, x: Tensor, delta: Tensor) -> Pieces:
    assert isinstance(module, nn.LayerNorm)
    normed = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    yield _scale_and_shift(normed, delta, len(module.normalized_shape))


def _rms_norm(module: nn.Module, x: Tensor, delta: Tensor) -> Pieces:
    assert isinstance(module, nn.RMSNorm)
    normed = F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    yield _scale_and_shift(normed, delta, len(module.normalized_shape))


def _group_norm(module: nn.Module, x: Tensor, delta: Tensor) -> Pieces:
    assert isinstance(module, nn.GroupNorm)
    normed = F.group_norm(x, module.num_groups, eps=module.eps)
    yield (
        _scale_and_shift(normed.flatten(2).mT, delta.flatten(2).mT, 1)
        if x.ndim > 2
        else {
            "weight": normed * delta,
            "bias": delta,
        }
    )


def _scale_and_shift(normed: Tensor, delta: Tensor, dims: int) -> dict[str, Tensor]:
    over = tuple(range(1, normed.ndim - dims))
    product = normed * delta
    return {"weight": product.sum(over) if over else product, "bias": delta.sum(over) if over else delta}


_NORMS: dict[type[nn.Module], Rule] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}
_OTHERS: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _again,
    nn.Conv1d: _again,
    nn.Conv2d: _again,
    nn.Conv3d: _again,
}


def embedding_norms(module: nn.Embedding, tokens: Tensor, delta: Tensor) -> Tensor:
    r"""Return the norms of the rows' gradients of an embedding: equal tokens of a row add up, others do not.

    |g_i|^2 = sum_tt' [token_t = token_t'] delta_t . delta_t', by sorting each row; no table-sized buffer.

    Args:
        module: the layer; its padding_idx gets no gradient.
        tokens: indices, shape (rows, ...).
        delta: gradients of outputs, shape (rows, ..., width).

    Returns:
        Shape (rows,).

    Example:
        >>> embedding_norms(nn.Embedding(3, 1), torch.tensor([[1, 1, 2]]), torch.ones(1, 3, 1)).square().item()
        5.0
    """
    rows = len(tokens)
    flat = tokens.reshape(rows, -1)
    values = delta.reshape(rows, flat.shape[1], -1)
    if module.padding_idx is not None:
        values = values * (flat != module.padding_idx).unsqueeze(2)
    order = flat.argsort(1)
    ranked = flat.gather(1, order)
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    segment = fresh.flatten().cumsum(0) - 1
    sums = torch.zeros(rows * flat.shape[1], values.shape[2], dtype=values.dtype, device=values.device)
    sums.index_add_(0, segment, values.gather(1, order.unsqueeze(2).expand_as(values)).flatten(0, 1))
    square = torch.zeros(rows, dtype=values.dtype, device=values.device)
    owner = torch.arange(rows, device=values.device).repeat_interleave(flat.shape[1])
    first = torch.zeros(rows * flat.shape[1], dtype=torch.long, device=values.device)
    first.index_copy_(0, segment, owner)
    return square.index_add_(0, first, sums.square().sum(1)).sqrt_()


def few_of(rows: int, few: int, turn: int) -> slice:
    """Return which rows to look at: evenly spaced, starting elsewhere each time; a slice needs no copy of indices.

    Args:
        rows: in the batch.
        few: how many to look at.
        turn: counts measurements.

    Returns:
        A slice of min(rows, few) rows.

    Example:
        >>> list(range(9))[few_of(9, 2, 0)], list(range(9))[few_of(9, 2, 1)], list(range(3))[few_of(3, 4, 1)]
        ([0, 4], [1, 5], [0, 1, 2])
    """
    if few >= rows:
        return slice(0, rows, 1)
    step = rows // few
    start = turn % (rows - (few - 1) * step)
    return slice(start, start + (few - 1) * step + 1, step)


def wide(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, any other as it is.

    Args:
        tensor: any.

    Returns:
        The tensor, converted where needed.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Work:
    """A few rows of one layer in one backward pass.

    Args:
        owner: the layer.
        entry: the rows, as chunks.
        x: its input at these rows.
        delta: the gradient of its output there.
    """

    owner: Owner
    entry: Entry
    x: Tensor
    delta: Tensor


def take_rows(record: Record, works: list[Work]) -> None:
    """Take the norms of all rows into their entries.

    Args:
        record: whose geometry takes the norms.
        works: rows of layers.
    """
    plain = record.geometry.name == "euclidean"
    alike: dict[Hashable, list[Work]] = {}
    for i, work in enumerate(works):
        alike.setdefault(_kind(work) if plain else i, []).append(work)
    for group in alike.values():
        if plain:
            _together(group)
        else:
            _one(record, group[0])


def _kind(work: Work) -> Hashable:
    """Return what layers must have in common to be taken together."""
    module = work.owner.module
    key: Hashable = id(module)
    if isinstance(module, nn.Linear):
        key = "linear"
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        key = (type(module), module.normalized_shape, module.eps)
    elif isinstance(module, nn.GroupNorm):
        key = (type(module), module.num_groups, module.eps)
    shapes = (work.x.shape, work.delta.shape, work.x.dtype, work.delta.dtype)
    return (key, id(work.entry), tuple(work.owner.parameters), shapes)


def _together(group: list[Work]) -> None:
    """Take the Euclidean norms of like layers, joined along the rows."""
    first = group[0]
    x = torch.cat([work.x for work in group]) if len(group) > 1 else first.x
    delta = torch.cat([work.delta for work in group]) if len(group) > 1 else first.delta
    found = _without_gradients(first.owner, x, delta)
    if found is None:
        parts: dict[str, list[Tensor]] = {key: [] for key in first.owner.parameters}
        for piece in first.owner.rule(first.owner.module, x, delta):
            for key, norms in parts.items():
                norms.append(torch.linalg.vector_norm(piece[key].flatten(1), dim=1))
        found = {key: torch.cat(norms) if len(norms) > 1 else norms[0] for key, norms in parts.items()}
    for key, norms in found.items():
        parameters: list[Tensor] = [work.owner.parameters[key] for work in group]
        first.entry.blocks.append((parameters, norms.view(len(group), -1)))


def _without_gradients(owner: Owner, x: Tensor, delta: Tensor) -> dict[str, Tensor] | None:
    """Return Euclidean norms that need no gradient of the weight; None where making it is cheaper."""
    if "weight" not in owner.parameters:
        return None
    if isinstance(owner.module, nn.Embedding):
        return {"weight": embedding_norms(owner.module, x, delta)}
    if not isinstance(owner.module, nn.Linear):
        return None
    norms = linear_norms(positions_apart(x), positions_apart(delta))
    if norms is None:
        return None
    if "bias" not in owner.parameters:
        return {"weight": norms}
    return {"weight": norms, "bias": torch.linalg.vector_norm(positions_apart(delta).sum(1), dim=1)}


def _one(record: Record, work: Work) -> None:
    """Take the norms of one layer's rows in any geometry, from their gradients."""
    norms: dict[str, list[Tensor]] = {key: [] for key in work.owner.parameters}
    start = 0
    for piece in work.owner.rule(work.owner.module, work.x, work.delta):
        rows = 0
        for key, parameter in work.owner.parameters.items():
            weighted = record.weighted(parameter, piece[key])
            rows = len(weighted)
            norms[key].append(record.geometry.norm(weighted))
            if record.geometry.by_coordinate:
                for row, unit in zip(weighted, work.entry.units[start : start + rows], strict=True):
                    record.add_square(parameter, row, unit)
        start += rows
    for key, parameter in work.owner.parameters.items():
        work.entry.blocks.append(([parameter], torch.cat(norms[key]).unsqueeze(0)))
