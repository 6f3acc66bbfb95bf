"""What a trainer holds: optimizers, schedulers, averages and other state, found by walking from its attributes."""

import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from isobatch.gradients import bare_optimizer, canonical, unwrap

_DEEP, _MANY = 9, 50_000
_OPAQUE = (str, bytes, type, types.ModuleType, types.BuiltinFunctionType, types.GeneratorType, types.CodeType,
           torch.Generator, torch.device, torch.dtype, DataLoader, Dataset, Sampler,
           torch.distributed.ProcessGroup)  # fmt: skip
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
_STATE = (torch.optim.Optimizer, LRScheduler, GradScaler, nn.Module, Tensor, dict, list, *_RANDOM)


@dataclass
class Leaf:
    """One tensor or number of a trainer.

    Args:
        path: attributes, keys and places that lead to it.
        value: a tensor or a number.
        role: optimizer, scheduler, scaler, or empty.
        owners: paths of the objects around it, from the outside in.
    """

    path: str
    value: Any
    role: str
    owners: tuple[str, ...]


@dataclass
class Holdings:
    """What was found beside the model.

    Args:
        tensors: group -> path -> tensor; groups are optimizer, average, average buffers, other.
        numbers: group -> path -> number; groups are optimizer, scheduler, scaler, average, other.
        modules: path -> module that is not the model's.
        generators: path -> generator of random numbers of numpy or Python.
        rates: learning rates of the optimizers' groups.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


class Walk:
    """One walk over everything that some roots lead to, the model and the samples left out.

    Args:
        model: the model that is trained.
        roots: name -> object.
        skip: objects that are not entered.
    """

    def __init__(self, model: nn.Module, roots: Mapping[str, Any], skip: tuple[Any, ...] = ()):
        self.bare = unwrap(model)
        self.names = {id(p): canonical(n) for n, p in self.bare.named_parameters(remove_duplicate=False)}
        self.own = {id(m) for m in model.modules()} | {id(p) for p in self.bare.parameters()}
        self.own |= {id(b) for b in self.bare.buffers()}
        self.seen: dict[int, Any] = {id(one): one for one in skip}
        self.modules: dict[str, nn.Module] = {}
        self.generators: dict[str, Any] = {}
        self.busy: set[str] = set()
        self.rates: list[float] = []
        self.leaves = [leaf for name, root in roots.items() for leaf in self._enter(root, name, "", (), 0)]

    def _enter(self, value: Any, path: str, role: str, owners: tuple[str, ...], depth: int) -> Iterator[Leaf]:
        if isinstance(value, bool) or value is None or isinstance(value, _OPAQUE):
            return
        if isinstance(value, int | float | np.number):
            yield Leaf(path, float(value), role, owners)
            return
        if id(value) in self.own:
            return
        if id(value) in self.seen or depth > _DEEP or len(self.seen) > _MANY:
            return
        self.seen[id(value)] = value
        if isinstance(value, _RANDOM):
            self.generators[path] = value
        elif isinstance(value, Tensor):
            yield Leaf(path, value, role, owners)
        elif isinstance(value, np.ndarray):
            if value.dtype.kind in "fiu":
                yield Leaf(path, torch.as_tensor(value), role, owners)
        else:
            yield from self._inside(value, path, role, owners, depth)

    def _inside(self, value: Any, path: str, role: str, owners: tuple[str, ...], depth: int) -> Iterator[Leaf]:
        if isinstance(value, torch.optim.Optimizer):
            self.busy.update(owners)
            yield from self._optimizer(bare_optimizer(value), path, depth)
        elif isinstance(value, nn.Module):
            yield from self._module(value, path, role, owners, depth)
        elif isinstance(value, GradScaler):
            yield from self._items(value.state_dict(), path, "scaler", owners, depth)
        elif isinstance(value, LRScheduler):
            yield from self._items(vars(value), path, "scheduler", (*owners, path), depth)
        elif isinstance(value, Mapping):
            named = {self.names.get(id(key), key if isinstance(key, str) else f"#{i}"): one
                     for i, (key, one) in enumerate(value.items())}  # fmt: skip
            yield from self._items(named, path, role, owners, depth)
        elif isinstance(value, list | tuple | set | deque):
            if len(value) < 10_000:
                yield from self._items({str(i): one for i, one in enumerate(value)}, path, role, owners, depth)
        elif isinstance(value, types.MethodType):
            yield from self._enter(value.__self__, path, role, owners, depth)
            yield from self._enter(value.__func__, path, role, owners, depth)
        elif isinstance(value, types.FunctionType):
            yield from self._items(reached(value), path, role, owners, depth)
        else:
            held = getattr(value, "__dict__", None)
            if isinstance(held, dict):
                yield from self._items(held, path, role, (*owners, path), depth)

    def _items(self, items: Mapping[str, Any], path: str, role: str, owners: tuple[str, ...], depth: int) -> Any:
        for name, one in list(items.items()):
            yield from self._enter(one, f"{path}.{name}", role, owners, depth + 1)

    def _module(self, value: nn.Module, path: str, role: str, owners: tuple[str, ...], depth: int) -> Iterator[Leaf]:
        inside = {id(one) for one in value.modules()}
        if inside & {id(self.bare)}:  # a module around the model
            held = {**value._modules, **value._buffers}
            yield from self._items(held, path, role, (*owners, path), depth)
            return
        self.modules[path] = value
        owners = (*owners, path)
        for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
            yield from self._enter(tensor, f"{path}.{canonical(name)}", role, owners, depth + 1)
        for name, module in value.named_modules():
            self.seen[id(module)] = module
            plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
            if type(module).__module__.startswith("torch.nn.modules"):
                continue
            where = f"{path}.{name}" if name else path
            yield from self._items(plain, where, role, owners, depth)

    def _optimizer(self, optimizer: torch.optim.Optimizer, path: str, depth: int) -> Iterator[Leaf]:
        for place, group in enumerate(optimizer.param_groups):
            self.rates.append(float(group["lr"]) if "lr" in group else 0.0)
            for index, parameter in enumerate(group["params"]):
                name = self.names.get(id(parameter), f"{place}.{index}")
                state = optimizer.state.get(parameter) or {}
                yield from self._items(state, f"{path}.{name}", "optimizer", (), depth)
            extra = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
            yield from self._items(extra, f"{path}.group{place}", "optimizer", (), depth)


def reached(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function's closure, defaults and globals hold of a trainer's state.

    Args:
        function: any.

    Returns:
        Name -> object.
    """
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for place, value in enumerate(function.__defaults__ or ()):
        found[f"default{place}"] = value
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        beside = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if beside or isinstance(value, _STATE):
            found[name] = value
    return found


def holdings(model: nn.Module, roots: Mapping[str, Any], skip: tuple[Any, ...] = ()) -> Holdings:
    """Return what a trainer holds beside its model, by role.

    A tensor belongs to an average where it mirrors one of the model's: the end of its path is the name of a parameter
    of that shape, or it stands in a sequence of tensors of the parameters' shapes.

    Args:
        model: the model that is trained.
        roots: name -> object to start from.
        skip: objects that are not entered.

    Returns:
        Tensors and numbers by group.
    """
    walk = Walk(model, roots, skip)
    mirrored = _mirrors(walk.bare, [leaf for leaf in walk.leaves if isinstance(leaf.value, Tensor) and not leaf.role])
    owning = {owner for leaf in walk.leaves if leaf.path in mirrored for owner in leaf.owners} - walk.busy
    result = Holdings(modules=walk.modules, generators=walk.generators, rates=walk.rates)
    for leaf in walk.leaves:
        counted = not isinstance(leaf.value, Tensor)
        if isinstance(leaf.value, Tensor) and leaf.value.numel() == 1 and not leaf.value.is_floating_point():
            leaf.value, counted = float(leaf.value), leaf.path not in mirrored
        group = (
            leaf.role or mirrored.get(leaf.path) or ("average" if counted and owning & set(leaf.owners) else "other")
        )
        if counted or not isinstance(leaf.value, Tensor):
            if group != "average buffers":
                result.numbers.setdefault(group, {})[leaf.path] = float(leaf.value)
        else:
            result.tensors.setdefault(group, {})[leaf.path] = leaf.value
    return result


def _mirrors(bare: nn.Module, leaves: list[Leaf]) -> dict[str, str]:
    """Return path -> "average" or "average buffers" of the tensors that mirror the model's."""
    parameters = {canonical(n): p.shape for n, p in bare.named_parameters(remove_duplicate=False)}
    buffers = {canonical(n): b.shape for n, b in bare.named_buffers(remove_duplicate=False)}
    found: dict[str, str] = {}
    for names, group in ((parameters, "average"), (buffers, "average buffers")):
        for leaf in leaves:
            words = leaf.path.split(".")
            ends = (".".join(words[i:]) for i in range(1, len(words)))
            if any(end in names and names[end] == leaf.value.shape for end in ends):
                found.setdefault(leaf.path, group)
    rows: dict[tuple[str, ...], list[Leaf]] = {}  # one place in many paths: a list of tensors, or of objects with one
    for leaf in leaves:
        words = leaf.path.split(".")
        places = [i for i, word in enumerate(words) if word.lstrip("#").isdigit()]
        if places and leaf.path not in found:
            rows.setdefault((*words[: places[-1]], "", *words[places[-1] + 1 :]), []).append(leaf)
    shapes = list(parameters.values())
    trainable = [p.shape for p in bare.parameters() if p.requires_grad]
    for row in rows.values():
        for wanted in (shapes, trainable):
            start = 0
            while wanted and start + len(wanted) <= len(row):  # a list may hold several copies, one after the other
                run = row[start : start + len(wanted)]
                if sorted(leaf.value.shape for leaf in run) != sorted(wanted) or run[0].path in found:
                    start += 1
                    continue
                left = list(enumerate(wanted))
                for digit, leaf in enumerate(run):
                    chosen = next(one for one in left if one[1] == leaf.value.shape)
                    left.remove(chosen)
                    leaf.path += f".{chosen[0]}" if len(row) != len(wanted) or chosen[0] != digit else ""
                    found[leaf.path] = "average"
                start += len(wanted)
    return found
