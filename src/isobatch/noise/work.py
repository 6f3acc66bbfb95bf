"""Norms of the rows' gradients of many layers, like layers together: few launches, and none for layers left out."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isobatch.noise.record import Entry, Record
from isobatch.noise.rows import Owner, embedding_norms, linear_norms, positions_apart


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
