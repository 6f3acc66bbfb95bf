"""The manifest: what a checkpoint folder must hold, to the byte, and the check that it does.

A folder of format 1, written by w ranks, holds manifest.json and for each rank rank-NNNNN.json (the state as a tree)
and rank-NNNNN.safetensors (its tensors), and nothing else. The manifest's last entry is the SHA-256 of the rest of it.
"""

import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from isobatch import installed
from isobatch.checkpoint.files import hash_file, parse, reading
from isobatch.checkpoint.shards import Piece, Sharded, nodes
from isobatch.checkpoint.tensors import DTYPES, read
from isobatch.checkpoint.tree import join
from isobatch.errors import InputError
from isobatch.units import whole

FORMAT = "isobatch-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_FIELDS: dict[str, type] = {"format": str, "version": int, "versions": dict, "seen": int, "world_size": int,
                            "meta": dict, "files": dict, "tensors": dict, "sha256": str}  # fmt: skip
_RANK_FIELDS: dict[str, type] = {"format": str, "version": int, "rank": int, "seen": int, "state": object,
                                 "tensors": dict, "file": dict}  # fmt: skip


def names(rank: int) -> tuple[str, str]:
    """Return the names of a rank's two files.

    Args:
        rank: 0 or more.

    Returns:
        The JSON file and the safetensors file.

    Example:
        >>> names(3)
        ('rank-00003.json', 'rank-00003.safetensors')
    """
    return f"rank-{rank:05d}.json", f"rank-{rank:05d}.safetensors"


def rank_file(rank: int, seen: int, tree: Any, entries: dict[str, dict], digest: str, size: int) -> bytes:
    """Return the JSON file of one rank.

    Args:
        rank: whose.
        seen: samples of applied updates.
        tree: the state without its tensors.
        entries: {name: {"dtype", "shape"}} of the tensors.
        digest: SHA-256 of the safetensors file.
        size: bytes of it.

    Returns:
        The content of the file.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "rank": rank,
        "seen": seen,
        "file": {"sha256": digest, "bytes": size},
        "tensors": entries,
        "state": tree,
    }
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def read_rank(path: Path, rank: int) -> dict[str, Any]:
    """Read the JSON file of one rank.

    Args:
        path: the file.
        rank: whose it must be.

    Returns:
        Its content.

    Raises:
        InputError: unreadable, of another format or rank, or with other fields.
    """
    content = parse(path, path.read_bytes())
    _check_fields(path, content, _RANK_FIELDS)
    if content["rank"] != rank:
        raise InputError(f"{path}: field rank={content['rank']!r}, the name says {rank}; take another checkpoint")
    return content


def seal(folder: Path, seen: int, world: int, meta: dict) -> bytes:
    """Return the manifest of a folder whose ranks have all written their files.

    Args:
        folder: where the files are.
        seen: samples of applied updates.
        world: number of ranks.
        meta: JSON values of the run: batch plan, data fingerprint, drawn.

    Returns:
        The content of manifest.json.

    Raises:
        InputError: a rank's file is not of this save.
    """
    files, tensors = {}, {}
    for rank in range(world):
        text, data = names(rank)
        content = read_rank(folder / text, rank)
        if content["seen"] != seen:
            raise InputError(f"{folder / text}: rank {rank} saves seen={content['seen']}, rank 0 seen={seen}")
        files[text] = {"sha256": hash_file(folder / text), "bytes": (folder / text).stat().st_size}
        files[data] = content["file"]
        tensors[data] = content["tensors"]
    body = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {
            "isobatch": installed.VERSION,
            "torch": str(torch.__version__),
            "safetensors": safetensors.__version__,
        },
        "seen": seen,
        "world_size": world,
        "meta": meta,
        "files": files,
        "tensors": tensors,
    }
    return _canonical({**body, "sha256": _digest(body)})


def verify(folder: Path, ranks: Sequence[int] | None = None) -> dict[str, Any]:
    """Check a checkpoint folder: the manifest, the set of files, their sizes and hashes.

    Args:
        folder: the checkpoint.
        ranks: whose files to hash; None means all, () checks the manifest and the sizes only.

    Returns:
        The manifest.

    Raises:
        InputError: the first thing that differs, with the expected and the actual value.
    """
    with reading(folder):
        manifest = _read_manifest(folder)
        for rank in range(manifest["world_size"]) if ranks is None else ranks:
            for name in names(rank):
                _check_hash(folder / name, manifest)
    return manifest


def _check_hash(path: Path, manifest: Mapping[str, Any]) -> None:
    expected, actual = manifest["files"][path.name]["sha256"], hash_file(path)
    if actual != expected:
        raise InputError(
            f"{path}: SHA-256 is {actual}, the manifest says {expected}; the file was changed or damaged: take another "
            "checkpoint"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    _check_listing(folder, {MANIFEST}, exact=False)
    data = path.read_bytes()
    manifest = parse(path, data)
    _check_fields(path, manifest, _FIELDS)
    digest = _digest({key: value for key, value in manifest.items() if key != "sha256"})
    if manifest["sha256"] != digest or data != _canonical(manifest):
        raise InputError(
            f"{path}: SHA-256 of its content is {digest}, it says {manifest['sha256']}; the file was changed or "
            "damaged: take another checkpoint"
        )
    world = manifest["world_size"]
    if world < 1:
        raise InputError(f"{path}: field world_size={world!r} must be at least 1; take another checkpoint")
    allowed = {name for rank in range(world) for name in names(rank)}
    if set(manifest["files"]) != allowed:
        listed = sorted(manifest["files"])
        raise InputError(
            f"{path}: lists the files {listed}, {world} ranks write {sorted(allowed)}; take another checkpoint"
        )
    _check_listing(folder, allowed | {MANIFEST}, exact=True)
    for name in sorted(allowed):
        entry = manifest["files"][name]
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise InputError(f"{path}: files[{name!r}]={entry!r} must hold bytes and sha256; take another checkpoint")
        expected, actual = entry["bytes"], (folder / name).stat().st_size
        if actual != expected:
            raise InputError(
                f"{folder / name}: has {actual} bytes, the manifest says {expected}; take another checkpoint"
            )
    return manifest


def _check_listing(folder: Path, expected: set[str], *, exact: bool) -> None:
    found = {path.name: path.lstat().st_mode for path in folder.iterdir()}
    if folder.is_symlink() or any(not stat.S_ISREG(mode) for name, mode in found.items() if name in expected):
        raise InputError(f"{folder}: a link or folder stands where a file belongs; take another checkpoint")
    if missing := sorted(expected - set(found)):
        raise InputError(f"{folder}: misses {missing}; take another checkpoint")
    if exact and (extra := sorted(set(found) - expected)):
        raise InputError(f"{folder}: holds {extra}, which the manifest does not list; remove them if they are yours")


def _check_fields(path: Path, content: dict[str, Any], fields: Mapping[str, type]) -> None:
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format is {content.get('format')!r}, not {FORMAT!r}; give a checkpoint of isobatch")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: format version {content.get('version')!r}, isobatch {installed.VERSION} reads {VERSION}; "
            "upgrade isobatch, or take a checkpoint of this version"
        )
    for word, names_ in (("unknown", content.keys() - fields), ("missing", fields.keys() - content)):
        if names_:
            raise InputError(
                f"{path}: {word} field {sorted(names_)[0]!r} in format version {VERSION}; it was written by another "
                "program, take another checkpoint"
            )
    for name, kind in fields.items():
        if not isinstance(content[name], kind) or (kind is int and isinstance(content[name], bool)):
            raise InputError(
                f"{path}: field {name}={str(content[name])[:80]} must be a {kind.__name__}; take another checkpoint"
            )


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


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
    with reading(folder / text):
        content = read_rank(folder / text, rank)
        own = nodes(content["state"])
        tensors = read(folder / data, manifest["tensors"][data], besides={node["tensor"] for node in own.values()})
        shards = _shards(folder, manifest, own, rank) if own else {}
        state = join(content["state"], tensors, shards)
    return Loaded(state, manifest["seen"], manifest["meta"], stored, folder)


def _shards(
    folder: Path, manifest: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], rank: int
) -> dict[str, Sharded]:
    """Return what ranks have written in parts; their files are hashed when a part of theirs is first read."""
    checked = {folder / names(rank)[1]}

    def check(path: Path) -> None:
        if path not in checked:
            _check_hash(path, manifest)
            checked.add(path)

    pieces: dict[str, list[Piece]] = {path: [] for path in own}
    for other in range(manifest["world_size"]):
        text, data = names(other)
        _check_hash(folder / text, manifest)
        for path, node in nodes(read_rank(folder / text, other)["state"]).items():
            if node["tensor"] is not None and path in pieces:
                pieces[path].append(Piece(folder / data, node["tensor"], node["offset"], node["part"]))
    kinds = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    return {path: Sharded(path, node["shape"], kinds[node["dtype"]], pieces[path], check) for path, node in own.items()}


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
