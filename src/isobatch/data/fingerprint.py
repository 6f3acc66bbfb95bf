"""What a data set is, in one line: a checkpoint keeps it, and a resume on other data is refused."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from isobatch.errors import InputError
from isobatch.units import whole


def fingerprint(dataset: Any, items: int | None = 64, encode: Callable[[Any], bytes] | None = None) -> str:
    """Return the length of a data set and a hash of some of its items, evenly spread.

    A data set that grew, shrank or was shuffled gets another fingerprint. An exchange among items that are not hashed
    is not seen; items=None hashes all. Each item is read twice: one that differs (a random augmentation) is refused.

    Args:
        dataset: anything with a length and indices, of tensors, arrays, numbers, strings, bytes, and lists, tuples and
            dicts of them.
        items: how many to hash; None means all.
        encode: makes bytes of an item of another type.

    Returns:
        "length=.../items=.../sha256=...".

    Raises:
        InputError: an empty data set, an item of another type, or one that differs when read again.

    Example:
        >>> fingerprint(torch.arange(100))[:30]
        'length=100/items=64/sha256=4a0'
        >>> fingerprint(torch.arange(100)) == fingerprint(torch.arange(100).flip(0))
        False
    """
    length = whole("data set length", len(dataset), 1)
    count = length if items is None else min(whole("items", items, 1), length)
    digest = hashlib.sha256()
    for place in range(count):
        index = place * (length - 1) // max(count - 1, 1)
        first, again = (_hash_item(dataset[index], encode) for _ in range(2))
        if first != again:
            raise InputError(
                f"item {index} of {type(dataset).__name__} differs when read twice; give the data set without its "
                "random augmentation"
            )
        digest.update(first)
    return f"length={length}/items={count}/sha256={digest.hexdigest()}"


def check_fingerprint(stored: str, now: str, *, accept_data_change: bool = False) -> None:
    """Refuse to go on with other data than the checkpoint's.

    Args:
        stored: the fingerprint in the checkpoint.
        now: the fingerprint of the data at hand.
        accept_data_change: go on all the same; positions in the order then mean other samples.

    Raises:
        InputError: they differ; the message holds both and the option.

    Example:
        >>> check_fingerprint("length=1/items=1/sha256=a", "length=1/items=1/sha256=a")
    """
    if stored != now and not accept_data_change:
        raise InputError(
            f"data: {stored!r} in the checkpoint, {now!r} now; resume with the data of the checkpoint, or give "
            "accept_data_change=True to go on with samples that it has not counted"
        )


def _hash_item(item: Any, encode: Callable[[Any], bytes] | None) -> bytes:
    digest = hashlib.sha256()
    _feed(digest, item, encode)
    return digest.digest()


def _dense(item: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values in row-major order, or refuse one that has none."""
    if item.is_meta or item.is_quantized or item.is_nested:
        raise InputError(
            f"an item is a tensor ({item.dtype}, {item.device}) without plain values; give encode= and convert it there"
        )
    plain = item.detach().to_dense() if item.layout != torch.strided else item.detach()
    plain = plain.resolve_conj().resolve_neg().cpu()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()


def _feed(digest: "hashlib._Hash", item: Any, encode: Callable[[Any], bytes] | None) -> None:
    if isinstance(item, torch.Tensor):
        dense = _dense(item)
        _feed(digest, ("tensor", str(item.dtype), list(item.shape)), None)
        digest.update(memoryview(dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()))
    elif isinstance(item, np.ndarray | np.generic) and np.asarray(item).dtype != object:
        _feed(digest, ("array", np.asarray(item).dtype.str, list(np.shape(item)), np.asarray(item).tobytes()), None)
    elif isinstance(item, bytes):
        digest.update(b"b%d:" % len(item) + item)
    elif item is None or isinstance(item, bool | int | float | str):
        _feed(digest, f"{type(item).__name__} {item!r}".encode(), None)
    elif isinstance(item, list | tuple):
        digest.update(b"l%d:" % len(item))
        for part in item:
            _feed(digest, part, encode)
    elif isinstance(item, dict):
        _feed(digest, [pair for key in sorted(item, key=repr) for pair in (key, item[key])], encode)
    elif encode is not None:
        _feed(digest, encode(item), None)
    else:
        raise InputError(
            f"an item holds a {type(item).__name__}, which has no fingerprint; give encode=, a function that makes "
            "bytes of it"
        )
