"""A model's tensors by name: each once, under a name that no wrapper changes, and re-read only when something moved."""

from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isobatch.errors import InputError

Select = Callable[[str, Tensor], bool]

# Segments that wrappers put into names: torch.compile, activation checkpointing, FSDP1.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


class Slot(NamedTuple):
    """Where a tensor lives in its module; the tensor itself may be replaced there."""

    name: str
    table: dict[str, Tensor | None]
    key: str


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DDP and DataParallel wrappers.

    Args:
        model: any module.

    Returns:
        The user's own module.

    Example:
        >>> inner = nn.Linear(2, 1)
        >>> unwrap(DataParallel(inner)) is inner
        True
    """
    while True:
        inner = model._modules.get("_orig_mod")
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def canonical(name: str) -> str:
    """Return a tensor's name without the segments that wrappers add.

    Args:
        name: dotted name, as in named_parameters().

    Returns:
        The name in the bare model.

    Example:
        >>> canonical("layer1._orig_mod.weight")
        'layer1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def trainable(name: str, tensor: Tensor) -> bool:
    """Select the parameters that train, such as LoRA adapters over a frozen base.

    Args:
        name: canonical name, not used.
        tensor: the parameter.

    Returns:
        Whether it requires a gradient.

    Example:
        >>> trainable("weight", nn.Linear(2, 1).weight)
        True
    """
    return tensor.requires_grad


@final
class Binding:
    """The averaged tensors of one model, bound once.

    Parameters of floating type, and floating persistent buffers when `buffers` asks for them; tied tensors once, under
    the first of their names. Everything else stays the model's own.

    Args:
        model: the model, wrapped or bare.
        buffers: whether floating buffers are averaged too.
        select: which parameters to average, by name and tensor; None for all.
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False, select: Select | None = None):
        self.root = unwrap(model)
        self._buffers = buffers
        self._select = select
        self.slots: dict[str, Slot] = {}
        self.bind()

    def bind(self) -> None:
        """Walk the tree and bind every tensor anew."""
        self.slots = {slot.name: slot for slot in self._walk()}
        tables = [
            t for m in self.root.modules() for t in (m._modules, m._parameters, m._buffers if self._buffers else {})
        ]
        self._tables = [t for t in tables if t]
        self._bound = list(chain.from_iterable(map(dict.values, self._tables)))

    def current(self) -> bool:
        """Whether every module and tensor is still the one that was bound."""
        if sum(map(len, self._tables)) != len(self._bound):
            return False
        return all(map(is_, chain.from_iterable(map(dict.values, self._tables)), self._bound))

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors by canonical name."""
        return {name: _filled(slot) for name, slot in self.slots.items()}

    def _walk(self) -> Iterator[Slot]:
        seen: set[int] = set()
        names: set[str] = set()
        for prefix, module in self.root.named_modules():
            skip = module._non_persistent_buffers_set
            tables = [(module._parameters, True), (module._buffers if self._buffers else {}, False)]
            for table, learned in tables:
                for key, tensor in table.items():
                    if tensor is None or id(tensor) in seen or not (tensor.is_floating_point() or tensor.is_complex()):
                        continue
                    name = canonical(f"{prefix}.{key}" if prefix else key)
                    if learned and self._select is not None and not self._select(name, tensor):
                        continue
                    if not learned and key in skip:
                        continue
                    if name in names:
                        raise InputError(
                            f"two tensors are called {name!r} once wrapper prefixes are removed; rename one"
                        )
                    seen.add(id(tensor))
                    names.add(name)
                    yield Slot(name, table, key)


def _filled(slot: Slot) -> Tensor:
    tensor = slot.table[slot.key]
    if tensor is None:
        raise InputError(f"{slot.name!r} was removed from the model")
    return tensor


def kept_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a tensor's average is held.

    Args:
        tensor: the model's tensor.
        dtype: what the user asked for.

    Returns:
        dtype, except that float32 holds float64 weights in float64, and complex weights stay complex.

    Example:
        >>> kept_dtype(torch.zeros(1, dtype=torch.bfloat16), torch.float32)
        torch.float32
    """
    if tensor.is_complex() or (dtype == torch.float32 and tensor.dtype == torch.float64):
        return tensor.dtype
    return dtype
