"""The part of a module that one of several optimizers trains."""

from collections.abc import Sequence

import torch
from torch import nn


def part_of(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], number: int) -> nn.Module:
    """Return what an optimizer trains as a module: the largest submodules that are wholly its own, and single weights.

    Args:
        module: the whole.
        optimizers: all of them.
        number: which one.

    Returns:
        The whole module where there is one optimizer.

    Example:
        >>> pair = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
        >>> both = [torch.optim.SGD(part.parameters(), 0.1) for part in pair.values()]
        >>> [name for name, _ in part_of(pair, both, 1).named_parameters()]
        ['b.weight', 'b.bias']
    """
    if len(optimizers) == 1:
        return module
    mine = {id(p) for group in optimizers[number].param_groups for p in group["params"]}
    part = nn.Module()
    _collect(module, "", mine, part)
    return part


def _collect(module: nn.Module, prefix: str, mine: set[int], part: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) in mine:
            part.register_parameter(f"{prefix}{name}", parameter)
    for name, child in module.named_children():
        inside = [id(parameter) for parameter in child.parameters()]
        if inside and all(one in mine for one in inside):
            part.add_module(f"{prefix}{name}", child)
        elif inside:
            _collect(child, f"{prefix}{name}_", mine, part)
