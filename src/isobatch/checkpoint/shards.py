"""Tensors over ranks, in checkpoints: each rank writes its part, and any number of ranks read what they need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from isobatch.checkpoint.files import reading
from isobatch.errors import InputError
from isobatch.gradients import dressed, local, sharded


class Place(NamedTuple):
    """Where this rank's part of a tensor begins, its shape, and whether this rank is the one of its copies to write."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    owner: bool


def place_of(tensor: Tensor, what: str) -> Place:
    """Return where this rank's part of a tensor lies in the whole.

    Args:
        tensor: any.
        what: it in words.

    Returns:
        The place.

    Raises:
        InputError: parts that are no block of the whole.

    Example:
        >>> place_of(torch.zeros(2, 3), "a tensor")
        Place(offset=(0, 0), shape=(2, 3), owner=True)
    """
    if not isinstance(tensor, DTensor):
        return Place((0,) * tensor.ndim, tuple(tensor.shape), True)
    mesh, offset, shape, owner = tensor.device_mesh, [0] * tensor.ndim, list(tensor.shape), True
    for axis, (rank, place) in enumerate(zip(mesh.get_coordinate() or (), tensor.placements, strict=True)):
        if place.is_replicate():
            owner = owner and rank == 0
            continue
        if type(place).__name__ != "Shard":
            raise InputError(
                f"{what} is spread as {tensor.placements}, so that parts are no blocks; save it through "
                "torch.distributed.checkpoint, or its .full_tensor()"
            )
        dim = place.dim  # ty: ignore[missing-attribute]
        most = -(-shape[dim] // mesh.size(axis))
        start = min(rank * most, shape[dim])
        offset[dim], shape[dim] = offset[dim] + start, min(most, shape[dim] - start)
    if tuple(local(tensor).shape) != tuple(shape) and local(tensor).numel():
        raise InputError(f"{what}: this rank holds {tuple(local(tensor).shape)}, not {tuple(shape)}; shard it anew")
    return Place(tuple(offset), tuple(shape), owner)


@dataclass(frozen=True)
class Piece:
    """A block of a tensor in a file.

    Args:
        file: which holds it.
        name: its name there.
        offset: where the block begins in the whole.
        shape: of the block.
    """

    file: Path
    name: str
    offset: Sequence[int]
    shape: Sequence[int]


@final
class Sharded:
    """A stored tensor of which ranks have written parts; it is read by blocks, never as a whole unless asked for.

    Args:
        path: its name in the state.
        shape: of the whole.
        dtype: of it.
        pieces: all there are.
        check: called with a file before it is first read; refuses a damaged one.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        pieces: Sequence[Piece],
        check: Callable[[Path], None],
    ):
        self.path, self.shape, self.dtype = path, torch.Size(shape), dtype
        self._pieces, self._check = pieces, check

    def part(self, like: Tensor) -> Tensor:
        """Return what this rank holds of a tensor that lies as another one.

        Args:
            like: of the whole shape, sharded or not.

        Returns:
            Spread as `like`; plain and whole where that is plain.

        Raises:
            InputError: another shape, or parts that are missing or damaged.
        """
        if self.shape != like.shape:
            raise InputError(
                f"{self.path!r} has shape {tuple(self.shape)} in the checkpoint, {tuple(like.shape)} here; "
                "build the same shapes"
            )
        place = place_of(like, repr(self.path))
        return dressed(self.block(place.offset, place.shape).to(local(like).device), like)

    def same(self, other: "Sharded") -> bool:
        """Return whether two names stand for the same numbers in the files, as those of tied weights do.

        Args:
            other: of the same checkpoint.

        Returns:
            Whether all pieces are the same.
        """
        return self.shape == other.shape and list(self._pieces) == list(other._pieces)

    def whole(self) -> Tensor:
        """Return the whole tensor, put together on this rank."""
        return self.block((0,) * len(self.shape), self.shape)

    def block(self, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return a block of the tensor, from the pieces that overlap it.

        Args:
            offset: where it begins.
            shape: of it.

        Returns:
            A plain tensor on the CPU.

        Raises:
            InputError: a part that no rank wrote, or a damaged file.
        """
        made, filled = torch.empty(tuple(shape), dtype=self.dtype), 0
        for piece in self._pieces:
            with reading(piece.file):
                filled += self._lay(made, offset, piece)
        if filled != made.numel():
            raise InputError(
                f"{self.path!r}: the files hold {filled} of {made.numel()} numbers; take another checkpoint"
            )
        return made

    def _lay(self, made: Tensor, offset: Sequence[int], piece: Piece) -> int:
        """Write what a piece has of a block into it; how many numbers."""
        low = [max(a, b) for a, b in zip(offset, piece.offset, strict=True)]
        ends = zip(offset, made.shape, piece.offset, piece.shape, strict=True)
        high = [min(a + n, b + m) for a, n, b, m in ends]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return 0
        self._check(piece.file)
        there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, piece.offset, strict=True))
        here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
        with safe_open(piece.file, framework="pt") as file:
            found = file.get_slice(piece.name)[there] if there else file.get_tensor(piece.name)
        made[here] = found
        return found.numel()


def placed(stored: Any, like: Any) -> Any:
    """Return a stored state in which what ranks have written in parts lies as it does in this run.

    Args:
        stored: nested dicts, lists and tuples.
        like: a tensor, or the state of this run in the same form; parts without a counterpart are put together whole.

    Returns:
        The same with tensors in place of `Sharded`.

    Example:
        >>> placed({"a": 1}, {})
        {'a': 1}
    """
    if isinstance(stored, Sharded):
        return stored.part(like) if isinstance(like, Tensor) and like.shape == stored.shape else stored.whole()
    if isinstance(stored, Mapping):
        found = like if isinstance(like, Mapping) else {}
        return {key: placed(value, found.get(key)) for key, value in stored.items()}
    if type(stored) in (list, tuple):
        beside = like if type(like) in (list, tuple) and len(like) == len(stored) else [None] * len(stored)
        return type(stored)(placed(value, other) for value, other in zip(stored, beside, strict=True))
    return stored


def nodes(tree: Any) -> dict[str, dict[str, Any]]:
    """Return what a tree of JSON says of the parts that its rank wrote, or knows of.

    Args:
        tree: of one rank.

    Returns:
        By path of the tensor.

    Example:
        >>> nodes({"a": {"$shard": {"path": "a"}}, "b": [1]})
        {'a': {'path': 'a'}}
    """
    if isinstance(tree, list):
        return {path: node for item in tree for path, node in nodes(item).items()}
    if not isinstance(tree, dict):
        return {}
    if set(tree) == {"$shard"}:
        return {tree["$shard"]["path"]: tree["$shard"]}
    return nodes(list(tree.values()))


def is_spread(value: Any) -> bool:
    """Whether a value is a tensor over ranks, in memory or in a checkpoint.

    Args:
        value: any.

    Returns:
        Whether it is.

    Example:
        >>> is_spread(torch.zeros(1))
        False
    """
    return isinstance(value, Sharded) or (isinstance(value, Tensor) and sharded(value))
