"""What can be reached from an object: through containers, attributes, bound methods, closures and weak references."""

import dis
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement

# Looked at no further: they hold no module of a user.
LEAVES: tuple[type, ...] = (
    type(None), bool, int, float, complex, str, bytes, type, CodeType, ModuleType, BuiltinFunctionType, range,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator, DeviceMesh, Placement,
)  # fmt: skip
MOST = 200_000


def referent(reference: Any) -> Any:
    """Return what a weak reference or proxy stands for.

    Args:
        reference: weakref.ref, or a proxy.

    Returns:
        The object, None where it is gone.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> referent(weakref.proxy(layer)) is layer
        True
    """
    if isinstance(reference, weakref.ref):
        return reference()
    try:
        return reference.__repr__.__self__
    except ReferenceError:
        return None


def neighbours(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, each with the word that names it in a message.

    Args:
        thing: anything but a leaf.

    Yields:
        (".name", "[key]" or " closing over name"; the object).
    """
    if type(thing) in weakref.ProxyTypes or isinstance(thing, weakref.ref):
        yield "", referent(thing)
    elif isinstance(thing, FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, MethodType):
        yield ".__self__", thing.__self__
        yield "", thing.__func__
    elif isinstance(thing, functools.partial):
        yield "", thing.func
        yield from ((f"({i})", value) for i, value in enumerate(thing.args))
        yield from ((f"({key}=)", value) for key, value in thing.keywords.items())
    elif isinstance(thing, nn.Module):
        for key, value in vars(thing).items():
            named = isinstance(value, dict) and key in ("_parameters", "_buffers", "_modules")
            yield from ((f".{k}", v) for k, v in value.items()) if named else ((f".{key}", value),)
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", value) for key, value in list(thing.items()))
        yield from ((" key", key) for key in list(thing))
    elif isinstance(thing, list | tuple):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    else:
        names = {id(value): f".{key}" for key, value in _attributes(thing).items()}
        yield from ((names.get(id(value), ""), value) for value in gc.get_referents(thing))


def walk(
    thing: Any, name: str = "", *, through: Callable[[Any], bool] = lambda thing: True
) -> Iterator[tuple[str, Any]]:
    """Yield every object that can be reached, breadth first, each once.

    Args:
        thing: where to begin.
        name: of it, for messages.
        through: whether to look inside an object.

    Yields:
        (path from the start, the object), the start included.
    """
    seen, todo, keep = {id(thing)}, [(name, thing)], [thing]
    while todo and len(seen) < MOST:
        now, todo = todo, []
        for path, found in now:
            yield path, found
            if isinstance(found, (*LEAVES, Tensor)) or not through(found):
                continue
            for word, value in neighbours(found):
                if id(value) not in seen:
                    seen.add(id(value))
                    keep.append(value)
                    todo.append((path + word, value))


def global_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function looks up among its globals, nested functions included.

    Args:
        function: any Python function.

    Yields:
        (name, value) of those that exist.
    """
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL" and step.argval in function.__globals__:
                yield step.argval, function.__globals__[step.argval]


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" closing over {variable}", cell.cell_contents
        except ValueError:
            continue
    yield " default", function.__defaults__
    yield " default", function.__kwdefaults__
    yield "", function.__dict__
    for name, value in global_values(function):
        held = isinstance(value, nn.Module | Tensor | MethodType | functools.partial | list | dict | tuple)
        if held or function.__module__ in (getattr(value, "__module__", None), type(value).__module__):
            yield f" reading the global {name}", value


def _attributes(thing: Any) -> dict[str, Any]:
    try:
        return dict(object.__getattribute__(thing, "__dict__"))
    except AttributeError:
        return {}
