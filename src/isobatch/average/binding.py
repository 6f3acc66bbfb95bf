"""A model's tensors by name: each once, under a name that no wrapper changes, and re-read only when something moved."""

from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import NamedTuple, final

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isobatch.errors import InputError

Select = Callable[[str, Tensor], bool]

# Segments that wrappers put into names: torch.compile, activation checkpointing, FSDP1.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


class Slot(NamedTuple):
    """Where a tensor lives in its module; the tensor itself may be replaced there."""

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
        candidates = list(self._candidates())
        self._verdicts = [(name, slot, self._chosen(name, slot)) for name, slot in candidates]
        self.slots = {name: slot for name, slot, chosen in self._verdicts if chosen}
        if len(self.slots) < sum(chosen for _, _, chosen in self._verdicts):
            names = [name for name, _, chosen in self._verdicts if chosen]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"two tensors share the names {twice[:5]} once wrapper prefixes are removed; rename one")
        self._tables = [
            t for m in self.root.modules() for t in (m._modules, m._parameters, m._buffers if self._buffers else {})
        ]
        self._filled = [t for t in self._tables if t]
        self._bound = list(chain.from_iterable(map(dict.values, self._filled)))

    def forget(self) -> None:
        """Make the next current() answer no, so that the model is bound again."""
        self._bound = []

    def current(self) -> bool:
        """Whether every module and tensor is still the one that was bound, and still selected as it was."""
        if sum(map(len, self._tables)) != len(self._bound):
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, self._filled)), self._bound)):
            return False
        return self._select is None or all(self._chosen(n, slot) == was for n, slot, was in self._verdicts)

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors by canonical name."""
        return {name: _tensor(name, slot) for name, slot in self.slots.items()}

    def _candidates(self) -> Iterator[tuple[str, Slot]]:
        seen: set[int] = set()
        for prefix, module in self.root.named_modules():
            passing = module._non_persistent_buffers_set
            buffers = {k: t for k, t in module._buffers.items() if k not in passing} if self._buffers else {}
            for table, entries in ((module._parameters, module._parameters), (module._buffers, buffers)):
                for key, tensor in entries.items():
                    if tensor is None or id(tensor) in seen or not (tensor.is_floating_point() or tensor.is_complex()):
                        continue
                    seen.add(id(tensor))
                    yield canonical(f"{prefix}.{key}" if prefix else key), Slot(table, key)

    def _chosen(self, name: str, slot: Slot) -> bool:
        tensor = slot.table[slot.key]
        if self._select is None or not isinstance(tensor, nn.Parameter):
            return True
        return self._select(name, tensor)


def _tensor(name: str, slot: Slot) -> Tensor:
    tensor = slot.table[slot.key]
    if tensor is None:
        raise InputError(f"{name!r} was removed from the model; call reset() to start the average again")
    return tensor
