"""One checkpoint folder, verified and read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobatch.checkpoint.manifest import names, read_rank, verify
from isobatch.checkpoint.tensors import read
from isobatch.checkpoint.tree import join
from isobatch.errors import InputError
from isobatch.units import whole


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        state: what `save` was given, with mappings as dicts and tensors on the CPU.
        seen: samples of applied updates.
        meta: JSON values that were saved beside it.
        world_size: ranks that wrote it.
        path: its folder.
    """

    state: Any
    seen: int
    meta: dict[str, Any]
    world_size: int
    path: Path


def load(
    path: str | Path,
    *,
    rank: int = 0,
    world: int | None = None,
    expect: Mapping[str, Any] | None = None,
    accept: Sequence[str] = (),
) -> Loaded:
    """Load one checkpoint folder; its files are hashed first and nothing in them is executed.

    Args:
        path: the folder.
        rank: whose state.
        world: world size that this run needs; None takes any.
        expect: fields of meta with the values that this run needs.
        accept: fields of expect that may differ.

    Returns:
        The state and what was saved beside it.

    Raises:
        InputError: a damaged checkpoint, another world size, or a field that differs from expect.
    """
    folder = Path(path)
    manifest = verify(folder, ranks=())
    stored = manifest["world_size"]
    if world is not None and stored != world:
        raise InputError(
            f"{folder}: field world_size={stored}, this run has {world}; give rank=0 to take rank 0's state everywhere"
        )
    if whole("rank", rank, 0) >= stored:
        raise InputError(f"{folder}: rank={rank} must be in [0, {stored - 1}]; give rank=0 to take rank 0's state")
    _compare(folder, manifest["meta"], expect or {}, accept)
    verify(folder, ranks=(rank,))
    text, data = names(rank)
    try:
        content = read_rank(folder / text, rank)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error}); take another checkpoint") from error
    tensors = read(folder / data, manifest["tensors"][data])
    return Loaded(join(content["state"], tensors), manifest["seen"], manifest["meta"], stored, folder)


def _compare(folder: Path, meta: Mapping[str, Any], expect: Mapping[str, Any], accept: Sequence[str]) -> None:
    for field, value in expect.items():
        if field in accept:
            continue
        if field not in meta:
            raise InputError(
                f"{folder}: field {field!r} is missing in the checkpoint, this run needs {value!r}; give "
                f"accept=[{field!r}] to go on without it"
            )
        if meta[field] != value:
            raise InputError(
                f"{folder}: field {field!r} is {meta[field]!r} in the checkpoint and {value!r} in this run; give "
                f"accept=[{field!r}] to take this run's"
            )
