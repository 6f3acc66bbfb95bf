"""A nested state as one JSON tree and a flat table of tensors, and back."""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from isobatch.checkpoint.shards import Sharded, place_of
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import local, sharded

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def split(state: Mapping[str, Any], allow_nonfinite: Sequence[str] = ()) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a nested state into a JSON tree and its tensors by path.

    A tensor becomes {"$tensor": path}, a complex one {"$complex": path} with real and imaginary parts on a last axis, a
    tuple {"$tuple": [...]}, a dict with keys that JSON has not (ints, or strings with a leading "$")
    {"$dict": [[key, value], ...]}, a tensor over ranks {"$shard": {...}}, of which this rank keeps its part; numpy's
    numbers become Python's. Tensors that are the same memory are kept once and both places name it.

    Args:
        state: nested dicts, lists and tuples of tensors, None, bools, ints, floats and strings.
        allow_nonfinite: patterns of paths ("model/*.mask") that may hold inf or NaN.

    Returns:
        The tree and {path: tensor}; the tensors are not copied.

    Raises:
        InputError: a value or key of another type; the message names its path.

    Example:
        >>> split({"model": {"w": torch.ones(2)}, "betas": (0.9, 0.99)})[0]
        {'model': {'w': {'$tensor': 'model/w'}}, 'betas': {'$tuple': [0.9, 0.99]}}
    """
    splitter = _Splitter(allow_nonfinite)
    try:
        return splitter.encode(state, ()), splitter.tensors
    except RecursionError:
        raise InputError("state is nested too deeply, or contains itself; flatten it") from None


def join(tree: Any, tensors: Mapping[str, torch.Tensor], shards: Mapping[str, Sharded] = MappingProxyType({})) -> Any:
    """Rebuild the state that `split` took apart; paths that shared a tensor share it again.

    Args:
        tree: the JSON tree.
        tensors: {path: tensor}.
        shards: {path: what ranks have written in parts}.

    Returns:
        The nested state; any mapping comes back as a dict, any parameter as a tensor.

    Raises:
        InputError: a tag of a newer format, a tensor that is missing, or one that nothing names.

    Example:
        >>> join({"a": {"$tuple": [1, {"$tensor": "t"}]}}, {"t": torch.zeros(1)})
        {'a': (1, tensor([0.]))}
    """
    used: set[str] = set()
    complex_views: dict[str, torch.Tensor] = {}

    def decode(node: Any) -> Any:
        if isinstance(node, list):
            return [decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = next((key for key in node if key.startswith("$")), None)
        if tag is None:
            return {key: decode(value) for key, value in node.items()}
        if len(node) != 1 or tag not in decoders:
            raise InputError(f"state holds {sorted(node)}, which this format does not have; upgrade isobatch")
        return decoders[tag](node[tag])

    def tensor(name: str) -> torch.Tensor:
        if name not in tensors:
            raise InputError(f"state names the tensor {name!r}, which is not in the file; take another checkpoint")
        used.add(name)
        return tensors[name]

    def complex_tensor(name: str) -> torch.Tensor:
        return complex_views.setdefault(name, torch.view_as_complex(tensor(name)))

    decoders: dict[str, Callable[[Any], Any]] = {
        "$tensor": tensor,
        "$complex": complex_tensor,
        "$tuple": lambda items: tuple(decode(item) for item in items),
        "$dict": lambda pairs: {key: decode(value) for key, value in pairs},
        "$float": float,
        "$shard": lambda node: shards[node["path"]],
    }
    state = decode(tree)
    if unused := sorted(set(tensors) - used):
        raise InputError(f"the file holds tensors that the state does not name: {unused}; take another checkpoint")
    return state


def check_finite(tensors: Mapping[str, torch.Tensor], allow_nonfinite: Sequence[str], seen: int = 0) -> None:
    """Refuse tensors with inf or NaN.

    Args:
        tensors: {path: tensor}.
        allow_nonfinite: patterns of paths that may hold them.
        seen: samples of applied updates, for the error.

    Raises:
        NonFiniteError: the first such path, and the option that would accept it.

    Example:
        >>> check_finite({"mask": torch.tensor([-torch.inf])}, ["mask"])
    """
    for path, tensor in tensors.items():
        if tensor.numel() == 0 or not tensor.is_floating_point() or _matches(path, allow_nonfinite):
            continue
        wide = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()  # no aminmax in 8 bits
        if not all(math.isfinite(float(end)) for end in torch.aminmax(wide)):
            raise NonFiniteError(_refusal(path, "a tensor with inf or NaN"), seen=seen, parameter=path)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(path == pattern or fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _refusal(path: str, what: str) -> str:
    return (
        f"state {path!r} is {what} and is not saved; resume from the last good checkpoint, or accept it with "
        f"allow_nonfinite=[{path!r}] if it belongs there (a mask, a best value of inf)"
    )


class _Splitter:
    """Walks one state; keeps the tensors found so far and which memory they are."""

    def __init__(self, allow_nonfinite: Sequence[str]):
        self.tensors: dict[str, torch.Tensor] = {}
        self._allow = allow_nonfinite
        self._names: dict[tuple, str] = {}
        self._spread: set[str] = set()

    def encode(self, value: Any, keys: tuple) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | str | int):
            return value
        if isinstance(value, float):
            return self._float(float(value), keys)
        if isinstance(value, torch.Tensor):
            if sharded(value):
                return {"$shard": self._shard(value, keys)}
            self._check(value, keys)
            if value.is_complex():
                return {"$complex": self._tensor(torch.view_as_real(value.detach().resolve_conj()), keys)}
            return {"$tensor": self._tensor(value, keys)}
        if isinstance(value, dict):
            return self._dict(value, keys)
        if type(value) in (list, tuple):
            items = [self.encode(item, (*keys, place)) for place, item in enumerate(value)]
            return items if type(value) is list else {"$tuple": items}
        raise InputError(
            f"state {_path(keys)!r} is a {type(value).__name__}; a checkpoint holds dicts, lists, tuples, tensors, "
            "None, bools, ints, floats and strings: convert it, or keep it out of the state"
        )

    def _shard(self, value: torch.Tensor, keys: tuple) -> dict[str, Any]:
        """Say where this rank's part lies, and keep it where no other rank writes the same."""
        part, path = local(value), _path(keys)
        self._check(part, keys)
        if value.is_complex():
            raise InputError(f"state {path!r} is complex and sharded; give torch.view_as_real of it")
        if path in self._spread:  # ranks find each other's parts by it
            raise InputError(f"state {path!r} is the path of two sharded tensors; give one of them another key")
        self._spread.add(path)
        place = place_of(value, f"state {path!r}")
        return {
            "path": path,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "offset": list(place.offset),
            "part": list(place.shape),
            "tensor": self._tensor(part, keys) if place.owner and part.numel() else None,
        }

    def _float(self, value: float, keys: tuple) -> Any:
        if math.isfinite(value):
            return value
        if not _matches(_path(keys), self._allow):
            raise NonFiniteError(_refusal(_path(keys), str(value)), parameter=_path(keys))
        return {"$float": str(value)}

    def _dict(self, value: dict, keys: tuple) -> Any:
        value = {key.item() if isinstance(key, np.generic) else key: item for key, item in value.items()}
        for key in value:
            if type(key) not in (str, int):
                raise InputError(f"state {_path(keys)!r} has the key {key!r}; keys must be strings or ints")
        items = [(key, self.encode(item, (*keys, key))) for key, item in value.items()]
        if any(type(key) is int or key.startswith("$") for key in value):
            return {"$dict": [list(item) for item in items]}
        return dict(items)

    @staticmethod
    def _check(tensor: torch.Tensor, keys: tuple) -> None:
        dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
        if type(tensor) not in _PLAIN or not dense or tensor.device.type == "meta":
            raise InputError(
                f"state {_path(keys)!r} is a {type(tensor).__name__} ({tensor.layout}, {tensor.dtype}, "
                f"{tensor.device}); give a dense tensor with values: .to_local() or .full_tensor() of a DTensor, "
                ".to_dense() of a sparse one, .dequantize() of a quantized one, .to_empty() and loaded weights for meta"
            )

    def _tensor(self, tensor: torch.Tensor, keys: tuple) -> str:
        name = _path(keys)
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        memory = (*place, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg())
        if tensor.numel() and memory in self._names:
            return self._names[memory]
        while name in self.tensors or name == "__metadata__":  # {0: a, "0": b}; the second is the format's own
            name += "'"
        self.tensors[name] = tensor
        self._names[memory] = name
        return name


def _path(keys: tuple) -> str:
    return "/".join(str(key) for key in keys)
