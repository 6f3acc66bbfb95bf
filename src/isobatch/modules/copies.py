"""This module with other weights: a copy that computes what the original does and holds nothing of it."""

import collections
import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping
from copy import deepcopy
from enum import Enum
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from isobatch.errors import InputError
from isobatch.gradients import canonical, settle, sharded, unwrap
from isobatch.modules.hooks import BACKWARD, FORWARD, belonging
from isobatch.modules.reach import LEAVES, referent, walk
from isobatch.modules.sharded import bare_class, is_mark, shard_alike, wholes

_HEAP = 1 << 9  # of type.__flags__: a class written in Python
_CACHED = type(functools.lru_cache(abs))


class Copy(NamedTuple):
    """A copied module, and each original module beside its copy."""

    module: nn.Module
    pairs: list[tuple[nn.Module, nn.Module]]


def with_weights(module: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the same module with other tensors: a copy that holds nothing of the original.

    Methods and closures that stand in the place of a forward, weight norm, spectral norm, pruning and parametrizations
    work on the copy's own tensors. Hooks of somebody who only looks on (measurements, logging) stay behind, and so do
    the wrappers of torch.compile and data parallelism.

    Args:
        module: wrapped or bare; it is not changed.
        tensors: parameters and buffers by canonical name, used as they are; tied ones under any of their names. Those
            that are not named are copied.

    Returns:
        A module in the original's mode, whose parameters need gradients where the original's do.

    Raises:
        InputError: something of the original that cannot be copied truly, by name; a name or shape that is not there.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> other = with_weights(layer, {"weight": torch.full((1, 1), 2.0)})
        >>> other(torch.ones(1, 1)).item()
        2.0
    """
    return copied(module, tensors).module


def copied(module: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> Copy:
    """Return with_weights() together with the original of each copied module.

    Args:
        module: as in with_weights().
        tensors: as in with_weights().

    Returns:
        The copy and the pairs.

    Raises:
        InputError: as with_weights().

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> copied(layer).pairs[0][0] is layer
        True
    """
    root = unwrap(module)
    settle(root)
    with torch.inference_mode(False), torch.no_grad():
        copier = _Copier(root, tensors or {})
        try:
            made = copier.copy(root)
        except InputError:
            raise
        except Exception as error:  # a module's own way of copying itself, or of giving its state
            raise InputError(f"the model cannot be copied ({type(error).__name__}: {error})") from error
        _refuse_leftovers(root, made)
        if copier.shards:
            shard_alike(root, copier.pairs, copier.shards)
    return Copy(made, copier.pairs)


@final
class _Copier:
    """Copies objects, each once; modules and tensors of the tree first, so that whatever holds them finds the copies.

    Args:
        root: the bare module.
        tensors: by canonical name, to be used as they are.
    """

    def __init__(self, root: nn.Module, tensors: Mapping[str, Tensor]):
        self.memo: dict[int, Any] = {}
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        self._kept: list[Any] = []  # an id means an object only as long as the object lives
        self._names = {id(module): name for name, module in root.named_modules(remove_duplicate=False)}
        self._tree = set(self._names)
        self._views: dict[int, list[Tensor]] = {}
        self.shards: dict[int, Tensor] = {}
        self._place(root, dict(tensors))
        for name, module in root.named_modules():
            inner = _wrapped(module)
            if inner is None and not _copies_itself(module, name):
                self.memo[id(module)] = object.__new__(bare_class(module))

    def _place(self, root: nn.Module, given: dict[str, Tensor]) -> None:
        """Decide for every parameter and buffer of the tree which tensor stands for it."""
        chosen: dict[int, Tensor] = {}
        held = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
        unknown = sorted(given.keys() - {canonical(name) for name, _ in held})
        if unknown:
            raise InputError(f"the model has no tensors {unknown[:5]}; it holds {sorted(n for n, _ in held)[:5]}")
        for name, tensor in held:
            other = given.get(canonical(name))
            if other is not None and other.shape != tensor.shape:
                raise InputError(f"{name!r} has shape {tuple(tensor.shape)}, not {tuple(other.shape)}")
            if other is not None:
                chosen[id(tensor)] = other.detach()
        before = wholes(root)
        for name, tensor in held:
            self._tree.add(id(tensor))
            if id(tensor) in before:
                if id(tensor) not in self.memo:
                    self._remember(tensor, nn.Parameter(before[id(tensor)], tensor.requires_grad))
                    self.shards[id(tensor)] = chosen[id(tensor)] if id(tensor) in chosen else _clone(tensor, name)
            elif id(tensor) not in self.memo:
                data = chosen[id(tensor)] if id(tensor) in chosen else _clone(tensor, name)
                self._remember(tensor, _as(tensor, data))
                if tensor.layout == torch.strided and not sharded(tensor):
                    self._views.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)

    def _remember(self, thing: Any, made: Any) -> Any:
        self._kept.append(thing)
        self.memo[id(thing)] = made
        return made

    def copy(self, thing: Any, where: str = "") -> Any:
        """Return the copy of any object.

        Args:
            thing: what a module holds.
            where: its name, for messages.

        Returns:
            The copy; the object itself where it is constant or lies outside of the model.
        """
        if type(thing) not in weakref.ProxyTypes and isinstance(thing, nn.Module):
            return self._module(thing)
        if id(thing) in self.memo:
            return self.memo[id(thing)]
        if isinstance(thing, Tensor):
            return self._remember(thing, self._tensor(thing, where))
        if isinstance(thing, FunctionType):
            return self._function(thing, where)
        if isinstance(thing, MethodType):
            return MethodType(self.copy(thing.__func__, where), self.copy(thing.__self__, where))
        if isinstance(thing, functools.partial):
            words = {key: self.copy(value, where) for key, value in thing.keywords.items()}
            made = type(thing)(self.copy(thing.func, where), *[self.copy(a, where) for a in thing.args], **words)
            vars(made).update({key: self.copy(value, where) for key, value in vars(thing).items()})
            return made
        if isinstance(thing, _CACHED):
            made = functools.lru_cache(**thing.cache_parameters())(self.copy(thing.__wrapped__, where))
            return self._remember(thing, made)
        if type(thing) in weakref.ProxyTypes or isinstance(thing, weakref.ref):
            return self._weak(thing, where)
        if isinstance(thing, torch.Generator):
            made = torch.Generator(thing.device)
            made.set_state(thing.get_state())
            return self._remember(thing, made)
        if isinstance(thing, (*LEAVES, Enum)):
            return thing
        if isinstance(thing, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
            return None
        return self._container(thing, where)

    def _module(self, module: nn.Module) -> nn.Module:
        inner = _wrapped(module)
        if inner is not None:
            return self._module(inner)
        made = self.memo.get(id(module))
        name = self._names.get(id(module), type(module).__name__)
        if made is None and _copies_itself(module, name):
            for child in list(module.children()):
                self._module(child)  # whole before the module's own way of copying meets them
            return self._remember(module, module.__deepcopy__(self.memo))  # ty: ignore[not-callable]
        if made is None:
            made = self._remember(module, object.__new__(bare_class(module)))
        if any(made is copy for _, copy in self.pairs):
            return made
        self.pairs.append((module, made))
        kept = belonging(module, name, self._tree)
        state = {}
        for key, value in _state(module).items():
            path = f"{name}.{key}" if name else key
            if key in ("_parameters", "_buffers", "_modules"):
                state[key] = type(value)((k, self.copy(v, f"{name}.{k}" if name else k)) for k, v in value.items())
            elif key in kept:
                state[key] = type(value)((k, self.copy(value[k], path)) for k in kept[key])
            elif any(key in flags for flags in FORWARD.values()):
                registry = next(r for r, flags in FORWARD.items() if key in flags)
                state[key] = type(value)((k, v) for k, v in value.items() if k in kept[registry])
            else:
                state[key] = type(value)() if key in BACKWARD else self.copy(value, path)
        made.__setstate__(state)
        return made

    def _tensor(self, tensor: Tensor, where: str) -> Tensor:
        """Copy a tensor that is registered nowhere; a view of a registered one becomes the view of its copy."""
        if tensor.is_meta or tensor.layout != torch.strided or sharded(tensor):
            return _clone(tensor, where)
        owners = self._views.get(tensor.untyped_storage().data_ptr(), []) if tensor.numel() else []
        if not owners:
            made = _clone(tensor, where)
            return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
        low, high = _range(tensor)
        for owner in owners:
            begin, end = _range(owner)
            made = self.memo[id(owner)]
            if begin <= low and high <= end and made.dtype == tensor.dtype and made.stride() == owner.stride():
                start = made.storage_offset() + tensor.storage_offset() - owner.storage_offset()
                return made.detach().as_strided(tensor.shape, tensor.stride(), start)
        raise InputError(f"the model cannot be copied truly: {where!r} shares memory with its weights in an odd way")

    def _function(self, function: FunctionType, where: str) -> Any:
        compiled = vars(function).get("_torchdynamo_orig_callable")
        if compiled is not None:
            return self.copy(compiled, where)
        if not self._reaches(function):
            return function
        cells = tuple(CellType() for _ in function.__closure__ or ())
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self._remember(function, made)
        made.__defaults__ = self.copy(function.__defaults__, where)
        made.__kwdefaults__ = self.copy(function.__kwdefaults__, where)
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that was never filled
                value = old.cell_contents
                cell.cell_contents = self.copy(value, where) if self._reaches(value) else value
        vars(made).update({key: self.copy(value, where) for key, value in vars(function).items()})
        return made

    def _weak(self, reference: Any, where: str) -> Any:
        target = referent(reference)
        if target is None or not (id(target) in self._tree or id(target) in self.memo):
            return reference
        made = self.copy(target, where)
        return weakref.ref(made) if isinstance(reference, weakref.ref) else weakref.proxy(made)

    def _container(self, thing: Any, where: str) -> Any:
        kind = type(thing)
        if kind in (list, set, collections.deque):
            made = self._remember(thing, kind() if kind is not collections.deque else kind(maxlen=thing.maxlen))
            for value in thing:
                (made.add if kind is set else made.append)(self.copy(value, where))
            return made
        if kind in (dict, collections.OrderedDict, collections.defaultdict):
            made = self._remember(thing, kind() if kind is not collections.defaultdict else kind(thing.default_factory))
            made.update({self.copy(k, where): self.copy(v, f"{where}[{k!r}]") for k, v in thing.items()})
            return made
        if kind in (tuple, frozenset) or (isinstance(thing, tuple) and "_fields" in vars(kind)):
            parts = [self.copy(value, where) for value in thing]
            return kind(*parts) if "_fields" in vars(kind) else kind(parts)
        if _plain(kind):
            made = self._remember(thing, object.__new__(kind))
            for key, value in vars(thing).items():
                object.__setattr__(made, key, self.copy(value, f"{where}.{key}"))
            return made
        try:
            return deepcopy(thing, self.memo)
        except Exception as error:
            if self._reaches(thing):
                raise InputError(f"the model cannot be copied: {where!r} ({kind.__name__}): {error}") from error
            return thing

    def _reaches(self, thing: Any) -> bool:
        """Whether an object leads to a module or tensor of the model."""
        inside = lambda found: id(found) not in self._tree  # noqa: E731
        return any(id(found) in self._tree for _, found in walk(thing, through=inside))


def _state(module: nn.Module) -> dict[str, Any]:
    own = type(module).__getstate__ is not nn.Module.__getstate__ and not parametrize.is_parametrized(module)
    state = {k: v for k, v in (module.__getstate__() if own else vars(module)).items() if not is_mark(k)}
    state.pop("_compiled_call_impl", None)
    return state


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper of torch.compile or data parallelism, None for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return module.module
    return dict(module._modules.items()).get("_orig_mod")


def _copies_itself(module: nn.Module, name: str) -> bool:
    kind = bare_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(f"{name or 'the model'!r} is compiled by torch.jit; give the module it was scripted from")
    if any(base.__name__ == "FullyShardedDataParallel" for base in kind.__mro__):
        raise InputError(
            f"{name or 'the model'!r} is sharded by FSDP1 and cannot be copied; shard it with fully_shard (FSDP2)"
        )
    return "__deepcopy__" in dir(kind) and not parametrize.is_parametrized(module)


def _plain(kind: type) -> bool:
    """Whether objects of a class are their attributes and nothing else."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__")
    return (
        kind.__dictoffset__ != 0
        and all(base is object or base.__flags__ & _HEAP for base in kind.__mro__)
        and all(getattr(kind, way, None) is getattr(object, way, None) for way in ways)
        and not any("__slots__" in vars(base) for base in kind.__mro__)
        and not {"__deepcopy__", "__setstate__", "__getnewargs__", "__getnewargs_ex__"} & set(dir(kind))
    )


def _as(tensor: Tensor, data: Tensor) -> Tensor:
    """Return data as the kind of tensor that an original is: a parameter, a buffer, or a class of its own."""
    if not isinstance(tensor, nn.Parameter):
        return data.as_subclass(type(tensor)) if type(tensor) is not type(data) else data
    grad = tensor.requires_grad and (data.is_floating_point() or data.is_complex())
    if type(tensor) is nn.Parameter or type(data) is not Tensor:
        return nn.Parameter(data, grad)
    made = Tensor._make_subclass(type(tensor), data, grad)
    vars(made).update(vars(tensor))
    return made


def _clone(tensor: Tensor, name: str) -> Tensor:
    if tensor.is_meta or is_lazy(tensor):
        raise InputError(f"the model cannot be copied: {name!r} has no values yet; materialise it first")
    return tensor.detach().clone()


def _range(tensor: Tensor) -> tuple[int, int]:
    """First and last element of the storage that a tensor touches."""
    start = int(tensor.storage_offset())
    return start, start + sum((n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _refuse_leftovers(root: nn.Module, made: nn.Module) -> None:
    """Refuse a copy that still leads to the original's modules or tensors."""
    held = [*root.named_modules(), *root.named_parameters(), *root.named_buffers()]
    original = {id(thing): name or type(thing).__name__ for name, thing in held}
    for path, thing in _led_to(made):
        if id(thing) in original:
            raise InputError(
                f"the model cannot be copied truly: {path.lstrip('.')!r} leads back to the original's "
                f"{original[id(thing)]!r}, so the copy would compute with the original's weights; reach it through "
                "self in a method of the module"
            )


def _led_to(made: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from walk(made)
    for name, module in made.named_modules():
        forward = type(module).forward
        if isinstance(forward, FunctionType) and not type(module).__module__.startswith("torch."):
            yield from walk(forward, f"{name}.forward")
