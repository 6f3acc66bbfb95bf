"""Batches in any form: tensors in tuples, lists, named tuples, mappings and dataclasses, given back in that form."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from isobatch.errors import InputError


def mapped(batch: Any, function: Callable[[Tensor], Any], packed: Callable[[PackedSequence], Any] | None = None) -> Any:
    """Return a batch with a function applied to each of its tensors, in the form it had.

    Args:
        batch: a tensor, or tuples, lists, named tuples, mappings or dataclasses that hold some, nested as they like;
            what is no tensor stays as it is.
        function: of a tensor.
        packed: of a packed sequence, whose tensors belong together; None refuses one.

    Returns:
        The same structure, types included.

    Raises:
        InputError: a packed sequence where it has no meaning.

    Example:
        >>> import torch
        >>> mapped({"x": torch.ones(1), "name": "a"}, lambda t: t + 1)
        {'x': tensor([2.]), 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, PackedSequence):
        if packed is None:
            raise InputError(
                "a packed sequence has no rows to take or repeat; give padded tensors and their lengths, and pack in "
                "the model"
            )
        return packed(batch)
    if isinstance(batch, tuple | list):
        return rebuilt(batch, [mapped(item, function, packed) for item in batch])
    if isinstance(batch, Mapping):
        found = {key: mapped(item, function, packed) for key, item in batch.items()}
        if type(batch) is dict:
            return found
        made: Any = copy.copy(batch)
        made.update(found)
        return made
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: mapped(getattr(batch, name), function, packed) for name in fields})
    return batch


def rebuilt(like: Any, parts: Iterable[Any]) -> Any:
    """Return a tuple or list of the type of another one.

    Args:
        like: a tuple, named tuple or list.
        parts: what it shall hold.

    Returns:
        The parts in that type.

    Example:
        >>> from collections import namedtuple
        >>> rebuilt(namedtuple("Pair", "x y")(1, 2), [3, 4]).y
        4
    """
    make = getattr(type(like), "_make", None)  # of a named tuple, whose class takes the parts one by one
    return type(like)(parts) if make is None else make(parts)
