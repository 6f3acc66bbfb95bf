"""A model's tensors by name: each once, under a name that no wrapper changes, and re-read only when something moved."""

import math
from collections.abc import Callable, Iterator
from itertools import chain
from operator import getitem, is_
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.gradients import canonical, unwrap

Select = Callable[[str, Tensor], bool]

FULL = 64
PLACES = 64


class Slot(NamedTuple):
    """Where a tensor lives in its module; the tensor itself may be replaced there."""

    table: dict[str, Tensor | None]
    key: str


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


class Part(NamedTuple):
    """A share of the bound places, laid out for a check without interpreted loops."""

    tables: list[dict[str, Any]]
    keys: list[str]
    pointers: list[int]
    parents: list[dict[str, nn.Module | None]]
    names: list[str]
    children: list[nn.Module | None]
    count: int


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
        self._calls = 0
        self.slots: dict[str, Slot] = {}
        self.bind()

    def bind(self) -> None:
        """Walk the tree and bind every tensor anew."""
        self._verdicts = [(name, slot, self._chosen(name, slot)) for name, slot in self._candidates()]
        self.slots = {name: slot for name, slot, chosen in self._verdicts if chosen}
        if len(self.slots) < sum(chosen for _, _, chosen in self._verdicts):
            names = [name for name, _, chosen in self._verdicts if chosen]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"two tensors share the names {twice[:5]} once wrapper prefixes are removed; rename one")
        modules = list(self.root.modules())
        self._tables = [t for m in modules for t in (m._modules, m._parameters, m._buffers if self._buffers else {})]
        self._bound = list(chain.from_iterable(map(dict.values, self._tables)))
        self._children = [(m._modules, name, child) for m in modules for name, child in m._modules.items()]
        self.pin()

    def pin(self) -> None:
        """Remember the storages that the tensors have now."""
        tensors = self.tensors()
        # Aliases keep the bound storages alive, so an equal address means the same storage.
        self._aliases = [t.detach() for t in tensors.values()]
        self._turns = max(1, math.ceil(len(tensors) / PLACES))
        self._parts = [self._part(turn) for turn in range(self._turns)]

    def forget(self) -> None:
        """Make the next check fail, so that the model is bound again."""
        self._bound, self._parts = [], [part._replace(count=-1) for part in self._parts]

    def unmoved(self) -> bool:
        """Whether the bound tensors and modules are in their places with their storages: the check of every update.

        A model of more than 64 tensors is looked through in turn, so that the check never outweighs the update: a
        single replaced tensor of 161 is noticed 2 updates late at most, a model cast or moved as a whole at once.
        What is added to a module that had no child or tensor before is noticed by current(), which this calls every
        64th time.
        """
        self._calls += 1
        if self._calls % FULL == 0 or self._select is not None:
            return self.current()
        return self._holds(self._parts[self._calls % self._turns])

    def current(self) -> bool:
        """Whether the whole tree is as it was bound, and selected as it was."""
        if sum(map(len, self._tables)) != len(self._bound):
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, self._tables)), self._bound)):
            return False
        if not all(map(self._holds, self._parts)):
            return False
        return self._select is None or all(self._chosen(n, slot) == was for n, slot, was in self._verdicts)

    def _part(self, turn: int) -> Part:
        slots = list(self.slots.values())[turn :: self._turns]
        pointers = [alias.data_ptr() for alias in self._aliases[turn :: self._turns]]
        tables: list[dict[str, Any]] = [slot.table for slot in slots]
        keys = [slot.key for slot in slots]
        children = self._children[turn :: self._turns]
        parents, names = [c[0] for c in children], [c[1] for c in children]
        count = sum(map(len, tables)) + sum(map(len, parents))
        return Part(tables, keys, pointers, parents, names, [c[2] for c in children], count)

    @staticmethod
    def _holds(part: Part) -> bool:
        try:
            return (
                list(map(Tensor.data_ptr, map(getitem, part.tables, part.keys))) == part.pointers
                and all(map(is_, map(getitem, part.parents, part.names), part.children))
                and sum(map(len, part.tables)) + sum(map(len, part.parents)) == part.count
            )
        except (KeyError, TypeError):
            return False

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
