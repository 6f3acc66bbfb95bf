"""A model's tensors by name: each once, under a name that no wrapper changes, and re-read only when something moved.

Which tensors belong is decided when they are first seen, and stays so: a parameter that is frozen for a while, by an
adapter that is switched off or by the other player's turn, keeps its average.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain
from operator import getitem, is_
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm

from isobatch.errors import InputError, warn
from isobatch.gradients import address, canonical, local, refuse_unspreadable, settle, sharded, unwrap

Select = Callable[[str, Tensor], bool]
Weights = nn.Module | Iterable[nn.Parameter]
FULL = 64
PLACES = 64
AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class Slot(NamedTuple):
    """Where a tensor lives in its module; the tensor itself may be replaced there."""

    table: dict[str, Tensor | None]
    key: str
    module: nn.Module


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
    the first of their names. Everything else stays the model's own: also buffers that are derived from the weights by
    a unit vector, as in spectral norm, whose mean is no unit vector.

    Args:
        model: the model, wrapped or bare.
        buffers: whether floating buffers are averaged too.
        select: which parameters to average, by name and tensor; None for all. What it once chose stays chosen; what it
            chooses later joins.

    Raises:
        InputError: no module, nothing to average, or a tensor that cannot be averaged, by name.
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False, select: Select | None = None):
        self.root = bare(model)
        self._buffers = buffers
        self._select = select
        self._calls = 0
        self.slots: dict[str, Slot] = {}
        self.aliases: dict[str, str] = {}
        self.known: dict[str, bool] = {}
        self.still: set[str] = set()
        self._derived: dict[str, bool] = {}
        self.bind()

    def bind(self, *, anew: bool = False) -> None:
        """Walk the tree and bind every tensor again.

        Args:
            anew: whether the selection is made afresh too.

        Raises:
            InputError: nothing to average, two tensors of one name, or a tensor that cannot be averaged.
        """
        if anew:
            self.known, self._derived = {}, {}
        settle(self.root)
        found, self.aliases = candidates(self.root, buffers=self._buffers)
        self._verdicts = [(name, slot, self._chosen(name, slot)) for name, slot in found]
        chosen = [(name, slot) for name, slot, belongs in self._verdicts if belongs]
        slots = dict(chosen)
        if len(slots) < len(chosen):
            names = [name for name, _ in chosen]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"two tensors share the names {twice[:5]} once wrapper prefixes are removed; rename one")
        if not found and not candidates(self.root, buffers=True)[0]:
            raise InputError(
                f"{type(self.root).__name__} has no weights of floating type, so there is nothing to average (those of "
                "quantised layers are packed and do not train); give the model that is trained"
            )
        if not slots and self._select is not None and found:
            raise InputError(
                f"select chooses none of the {len(found)} tensors; unfreeze what is to be averaged first, or choose by "
                "name"
            )
        for name, slot in chosen:
            refuse_odd(name, _tensor(name, slot))
        before, self.still = self.still, set()
        for name, slot in chosen:
            if (name in before or name not in self.known) and _constant(_tensor(name, slot)):
                self.still.add(name)
        self.slots = slots
        self.known |= {name: belongs for name, _, belongs in self._verdicts}
        modules = list(self.root.modules())
        self._tables = [t for m in modules for t in (m._modules, m._parameters, m._buffers if self._buffers else {})]
        self._bound = list(chain.from_iterable(map(dict.values, self._tables)))
        self._children = [(m._modules, name, child) for m in modules for name, child in m._modules.items()]
        self.pin()

    def reconsider(self) -> bool:
        """Look once more for unit vectors, after the first forward passes may have made them; bind again if so.

        Returns:
            Whether something left the average.
        """
        late = [n for n, slot in self.slots.items() if not self._derived.get(n, True) and _unit(_tensor(n, slot))]
        self._derived |= dict.fromkeys(late, True)
        if late:
            self.bind()
        return bool(late)

    def pin(self) -> None:
        """Remember the storages that the tensors have now."""
        tensors = self.tensors()
        # Aliases keep the bound storages alive, so an equal address means the same storage.
        self._aliases = [local(t).detach() for t in tensors.values()]
        self._address = address if any(map(sharded, tensors.values())) else Tensor.data_ptr
        self._shares = max(1, math.ceil(len(tensors) / PLACES))
        self._parts = [self._part(index) for index in range(self._shares)]

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
        return self._holds(self._parts[self._calls % self._shares])

    def current(self) -> bool:
        """Whether the whole tree is as it was bound, and nothing more is selected."""
        if sum(map(len, self._tables)) != len(self._bound):
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, self._tables)), self._bound)):
            return False
        if not all(map(self._holds, self._parts)):
            return False
        if not all(_constant(_tensor(name, self.slots[name])) for name in self.still):
            return False
        return not any(self._joins(name, slot) for name, slot, belongs in self._verdicts if not belongs)

    def _part(self, index: int) -> Part:
        slots = list(self.slots.values())[index :: self._shares]
        pointers = [alias.data_ptr() for alias in self._aliases[index :: self._shares]]
        tables: list[dict[str, Any]] = [slot.table for slot in slots]
        keys = [slot.key for slot in slots]
        children = self._children[index :: self._shares]
        parents, names = [c[0] for c in children], [c[1] for c in children]
        count = sum(map(len, tables)) + sum(map(len, parents))
        return Part(tables, keys, pointers, parents, names, [c[2] for c in children], count)

    def _holds(self, part: Part) -> bool:
        try:
            return (
                list(map(self._address, map(getitem, part.tables, part.keys))) == part.pointers
                and all(map(is_, map(getitem, part.parents, part.names), part.children))
                and sum(map(len, part.tables)) + sum(map(len, part.parents)) == part.count
            )
        except (KeyError, TypeError, RuntimeError):
            return False

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors by canonical name."""
        return {name: _tensor(name, slot) for name, slot in self.slots.items()}

    def others(self) -> list[tuple[str, Tensor]]:
        """Return the parameters that are not averaged, by canonical name; tied ones under every name."""
        mine = {id(tensor) for tensor in self.tensors().values()}
        held = self.root.named_parameters(remove_duplicate=False)
        return [(canonical(name), p) for name, p in held if id(p) not in mine]

    def in_other(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the tensors of another model that answer to the names here, under any name of tied ones.

        Args:
            model: with the same names, wrapped or bare.

        Returns:
            The tensors to write for each name; several where they are tied here and not there.

        Raises:
            InputError: names or shapes differ.
        """
        root = bare(model)
        settle(root)
        slots, aliases = candidates(root, buffers=True)
        there = {name: _tensor(name, slot) for name, slot in slots}
        reach = there | {alias: there[first] for alias, first in aliases.items()}
        mine, found = self.tensors(), {}
        for first in mine:
            words = [first, *(alias for alias, name in self.aliases.items() if name == first)]
            found[first] = list({id(reach[word]): reach[word] for word in words if word in reach}.values())
        taken = {id(tensor) for tensors in found.values() for tensor in tensors}
        strange = {n for n, t in there.items() if isinstance(t, nn.Parameter) and id(t) not in taken}
        extra = set() if self._select is not None else strange - self.known.keys()
        absent = [first for first, tensors in found.items() if not tensors]
        if absent or extra:
            raise InputError(
                f"the model does not match the average: missing {sorted(absent)[:5]}, unexpected {sorted(extra)[:5]}"
            )
        for first, tensor in ((first, tensor) for first, tensors in found.items() for tensor in tensors):
            if tensor.shape != mine[first].shape:
                raise InputError(
                    f"{first!r} has shape {tuple(tensor.shape)} in the model, {tuple(mine[first].shape)} here"
                )
        return found

    def _chosen(self, name: str, slot: Slot) -> bool:
        """Whether a tensor is averaged: what was decided stays, but for what begins to train."""
        if self.known.get(name, False) and not self._derived.get(name, False):
            return True
        if name in self.known:
            return self._joins(name, slot)
        tensor = _tensor(name, slot)
        if not self._selected(name, tensor):
            return False
        if not tensor.requires_grad and not isinstance(slot.module, _NormBase):
            self._derived[name] = _power_iteration(slot.module, slot.key) or _unit(tensor)
        return not self._derived.get(name, False)

    def _joins(self, name: str, slot: Slot) -> bool:
        """Whether a tensor that was left out is to be averaged from now on."""
        tensor = _tensor(name, slot)
        if self._derived.get(name, False) and not tensor.requires_grad:
            return False
        return self._selected(name, tensor)

    def _selected(self, name: str, tensor: Tensor) -> bool:
        return self._select is None or not isinstance(tensor, nn.Parameter) or bool(self._select(name, tensor))


def bare(model: object) -> nn.Module:
    """Return the module to be averaged inside wrappers; parameters become a list of them.

    Args:
        model: wrapped or bare, or parameters.

    Returns:
        The user's own module.

    Raises:
        InputError: neither a module nor parameters, or one that torch.jit has compiled.

    Example:
        >>> inner = nn.Linear(1, 1)
        >>> bare(inner) is inner
        True
    """
    if not isinstance(model, nn.Module):
        given = list(model) if isinstance(model, Iterable) and not isinstance(model, Tensor) else []
        if not given or not all(isinstance(one, nn.Parameter) for one in given):
            raise InputError(f"model={type(model).__name__} must be a torch.nn.Module, or its parameters()")
        model = nn.ParameterList(given)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a model compiled by torch.jit cannot be averaged; give the module it was scripted from")
    return unwrap(model)


def reusable(model: Weights) -> Weights:
    """Return a model as it is, and parameters as a list: they are read twice, and may be a generator.

    Args:
        model: a module, or parameters; what is neither is refused by who reads it.

    Returns:
        The same.

    Example:
        >>> len(reusable(nn.Linear(1, 1).parameters()))
        2
    """
    return model if isinstance(model, nn.Module) or not isinstance(model, Iterable) else list(model)


def candidates(root: nn.Module, *, buffers: bool) -> tuple[list[tuple[str, Slot]], dict[str, str]]:
    """Return the tensors of a model that may be averaged, each once, and the further names of tied ones.

    Args:
        root: a bare module.
        buffers: whether floating persistent buffers count.

    Returns:
        (canonical name, place) of each tensor; first name by further name.

    Example:
        >>> [name for name, _ in candidates(nn.Linear(1, 1), buffers=False)[0]]
        ['weight', 'bias']
    """
    found: list[tuple[str, Slot]] = []
    seen: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for prefix, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{prefix!r} is compiled by torch.jit and cannot be averaged; leave it a plain module")
        passing = module._non_persistent_buffers_set
        kept = {k: t for k, t in module._buffers.items() if k not in passing} if buffers else {}
        for table, entries in ((module._parameters, module._parameters), (module._buffers, kept)):
            for key, tensor in entries.items():
                name = canonical(f"{prefix}.{key}" if prefix else key)
                if tensor is None or not (is_lazy(tensor) or tensor.is_floating_point() or tensor.is_complex()):
                    continue
                if id(tensor) in seen:
                    aliases[name] = seen[id(tensor)]
                else:
                    seen[id(tensor)] = name
                    found.append((name, Slot(table, key, module)))
    return found, aliases


def tell_changes(before: set[str], after: set[str]) -> None:
    """Warn when tensors joined or left the model, because their averages start or end with them.

    Args:
        before: names that were averaged.
        after: names that are.

    Example:
        >>> tell_changes({"weight"}, {"weight"})
    """
    added, removed = sorted(after - before), sorted(before - after)
    if added or removed:
        fates = ((added, "start at their present values"), (removed, "were dropped"))
        said = ", ".join(f"averages of {names[:5]} {fate}" for names, fate in fates if names)
        warn(f"the model's tensors changed: {said}")


def _constant(tensor: Tensor) -> bool:
    """Whether a tensor does not train and holds infinities, as a mask does: such a one stays itself."""
    return not tensor.requires_grad and bool(torch.isinf(local(tensor).detach()).any())


def _power_iteration(module: nn.Module, key: str) -> bool:
    hooks = vars(module).get("_forward_pre_hooks", {}).values()
    return any(isinstance(h, SpectralNorm) and key in (f"{h.name}_u", f"{h.name}_v") for h in hooks)


def _unit(tensor: Tensor) -> bool:
    """Whether a tensor is made of unit vectors, which a mean would shorten."""
    plain = not (is_lazy(tensor) or tensor.is_meta) and tensor.layout == torch.strided and tensor.dtype in AVERAGED
    if not plain or type(tensor.data) is not Tensor or tensor.numel() < 2:
        return False
    wide = torch.promote_types(tensor.dtype, torch.float32)
    slack = 1e-2 if tensor.dtype in (torch.float16, torch.bfloat16) else 1e-4
    axes = {axis for axis in (0, tensor.dim() - 1) if tensor.shape[axis] > 1}
    norms = [torch.linalg.vector_norm(tensor.detach(), dim=axis, dtype=wide) for axis in axes]
    return any(bool(((norm - 1).abs() < slack).all()) for norm in norms)


def refuse_odd(name: str, tensor: Tensor) -> None:
    """Refuse, in words, a tensor that an average cannot follow.

    Args:
        name: of it.
        tensor: the model's.

    Raises:
        InputError: no values, FSDP1, another layout, another dtype, or made in inference mode.

    Example:
        >>> refuse_odd("weight", torch.zeros(1))
    """
    way = f"leave it out with Storage(select=lambda name, tensor: name != {name!r})"
    if not isinstance(tensor, nn.Parameter):
        way = 'leave it out with buffers="copy"'
    if is_lazy(tensor):
        raise InputError(f"{name!r} has no shape yet; run one batch through the model before the average is made")
    if tensor.is_meta:
        raise InputError(f"{name!r} is on the meta device and has no values; materialise the model first")
    refuse_unspreadable(repr(name), tensor)
    inner = local(tensor.data)
    if type(inner) is not Tensor or inner.layout != torch.strided or inner.is_nested:
        kind = type(inner).__name__ if type(inner) is not Tensor else str(inner.layout)
        raise InputError(f"{name!r} is a {kind}, which cannot be averaged here; average plain tensors, or {way}")
    if tensor.dtype not in AVERAGED:
        raise InputError(f"{name!r} is {tensor.dtype}, too narrow to be averaged; {way}")
    if _without_version(tensor):
        raise InputError(
            f"{name!r} was made in torch.inference_mode(), so nothing can train it; make the model outside of it"
        )


def _without_version(tensor: Tensor) -> bool:
    """Whether a tensor was made in inference mode; a cast outside of it does not mend that."""
    try:
        return tensor._version < 0
    except RuntimeError:
        return True


def _tensor(name: str, slot: Slot) -> Tensor:
    tensor = slot.table[slot.key]
    if tensor is None:
        raise InputError(f"{name!r} was removed from the model; call reset() to start the average again")
    return tensor
