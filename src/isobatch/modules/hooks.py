"""Which hooks belong to a model: those that are part of what it computes, not those of somebody who looks on."""

import dis
import functools
import itertools
from collections.abc import Collection
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.modules.reach import LEAVES, global_values, walk

# Registries of hooks that run in a forward pass, each with the registries of their flags.
FORWARD = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}
STATE = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
BACKWARD = ("_backward_hooks", "_backward_pre_hooks")
# Calls whose result says that something was put away, not that an output is replaced.
_RECORDING = {"append", "appendleft", "add", "extend", "update", "setdefault", "put", "write", "__setitem__"}
# Whose hooks compute: torch's own layers, and tensor parallelism.
_OWN = ("torch.nn.utils.", "torch.nn.modules.", "torch.distributed.tensor.")
_OUTWARD = ("STORE_DEREF", "STORE_GLOBAL")


def belonging(module: nn.Module, name: str, tree: Collection[int]) -> dict[str, list[int]]:
    """Return which hooks of a module belong to the model it is part of.

    Hooks of torch.nn.utils (weight norm, spectral norm, pruning), methods of the model's own modules, and functions
    whose state is fixed belong to it. Those that keep something outside of the model and give nothing back only look
    on, and do not. Hooks of backward passes never do, because a copy has none.

    Args:
        module: whose hooks.
        name: of the module, for the message.
        tree: ids of the model's modules and tensors.

    Returns:
        Ids of the hooks to keep, by registry.

    Raises:
        InputError: a hook that keeps something outside of the model and may change what the layer computes.

    Example:
        >>> layer, seen = nn.Linear(1, 1), []
        >>> _ = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        >>> belonging(layer, "layer", {id(layer)})["_forward_hooks"]
        []
    """
    found: dict[str, list[int]] = {}
    for registry in FORWARD:
        hooks = vars(module).get(registry, {})
        kept = {key: hook for key, hook in hooks.items() if not _shards(hook)}
        found[registry] = [key for key, hook in kept.items() if _computes(hook, name, tree, registry)]
    for registry in STATE:
        hooks = vars(module).get(registry, {})
        found[registry] = [key for key, hook in hooks.items() if _own(getattr(hook, "hook", hook), tree)]
    return found


def leaves_weights_alone(model: nn.Module) -> bool:
    """Whether a forward pass surely writes into no parameter, because all of its code is that of torch's own layers.

    Args:
        model: bare.

    Returns:
        False where a module is of another origin, has a hook or a forward of its own, or renormalises embeddings.

    Example:
        >>> leaves_weights_alone(nn.Linear(1, 1)), leaves_weights_alone(nn.Embedding(3, 2, max_norm=1.0))
        (True, False)
    """
    return not any(
        not type(m).__module__.startswith("torch.nn.modules.")
        or "forward" in vars(m)
        or any(vars(m)[registry] for registry in FORWARD)
        or vars(m).get("max_norm") is not None
        for m in model.modules()
    )


def _computes(hook: Any, name: str, tree: Collection[int], registry: str) -> bool:
    if _own(hook, tree) or _fixed(hook, tree):
        return True
    code = _code(hook)
    if code is not None and _looks_on(code) and (registry == "_forward_hooks" or not _writes(code, hook)):
        return False
    word = getattr(hook, "__qualname__", type(hook).__qualname__)
    raise InputError(
        f"the model cannot be copied truly: the hook {word!r} of layer {name!r} keeps something outside of the model "
        "and may change what the layer computes; make it a method of the layer, or remove it first"
    )


def _own(hook: Any, tree: Collection[int]) -> bool:
    """Whether a hook is torch's own, or a method of a module of the model."""
    inner = hook
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, MethodType) and id(inner.__self__) in tree:
        return True
    origin = inner if isinstance(inner, FunctionType | MethodType) else type(inner)
    bases = [origin.__module__ or ""] + [c.__module__ for c in getattr(origin, "__mro__", ())]
    return any(base.startswith(_OWN) for base in bases)


def _shards(hook: Any) -> bool:
    """Whether a hook is FSDP's, which a copy gets anew when it is sharded."""
    inner = hook.__func__ if isinstance(hook, MethodType) else hook
    return (getattr(inner, "__module__", None) or "").startswith("torch.distributed.fsdp.")


def _fixed(hook: Any, tree: Collection[int]) -> bool:
    """Whether all that a hook holds outside of the model are constants, tensors, modules and functions of such."""
    outside = lambda thing: not (id(thing) in tree or isinstance(thing, nn.Module))  # noqa: E731
    held = [thing for _, thing in walk(hook, through=outside)]
    functions = [thing for thing in held if isinstance(thing, FunctionType)]
    spaces = {id(space) for f in functions for space in (f.__dict__, f.__kwdefaults__)}
    if not isinstance(hook, FunctionType | MethodType | functools.partial):
        spaces |= {id(hook), id(vars(hook))}
    plain = (*LEAVES, Tensor, nn.Module, FunctionType, MethodType, functools.partial, torch.autocast, tuple, frozenset)
    return all(isinstance(t, plain) or id(t) in spaces for t in held) and not any(map(_remembers, functions))


def _remembers(function: FunctionType) -> bool:
    """Whether a function writes variables outside of itself, or uses a global that is no constant."""
    shared = [v for _, v in global_values(function) if not isinstance(v, (*LEAVES, FunctionType, Tensor, nn.Module))]
    return bool(shared) or any(s.opname in _OUTWARD for s in dis.get_instructions(function.__code__))


def _code(hook: Any) -> CodeType | None:
    while isinstance(hook, functools.partial):
        hook = hook.func
    called = hook if isinstance(hook, FunctionType | MethodType) else getattr(type(hook), "__call__", None)  # noqa: B004
    function = getattr(called, "__func__", called)
    return function.__code__ if isinstance(function, FunctionType) else None


def _writes(code: CodeType, hook: Any) -> bool:
    """Whether code may set an attribute of the layer; methods write their own object's."""
    own = None if isinstance(hook, FunctionType | functools.partial) else code.co_varnames[0]
    steps = list(dis.get_instructions(code))
    kept = [before.argval for before, step in itertools.pairwise(steps) if step.opname == "STORE_ATTR"]
    return any(name != own for name in kept) or any(step.argval == "setattr" for step in steps)


def _looks_on(code: CodeType) -> bool:
    """Whether code gives nothing new back."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("NOP", "CACHE", "RESUME", "PRECALL")]
    attributes = [s.argval for s in steps if s.opname in ("LOAD_METHOD", "LOAD_ATTR")]
    written = {s.argval for s in steps if s.opname == "STORE_FAST"}
    for before, step in itertools.pairwise(steps):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return False
        if step.opname != "RETURN_VALUE":
            continue
        nothing = before.opname == "LOAD_CONST" and before.argval is None
        unchanged = before.opname.startswith("LOAD_FAST") and before.argval not in written
        recorded = before.opname.startswith("CALL") and bool(attributes) and attributes[0] in _RECORDING
        if not (nothing or unchanged or recorded):
            return False
    return True
