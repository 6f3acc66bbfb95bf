"""Columns: the whole model first, then the layers or parameter groups that estimates are asked for."""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.gradients import (
    Shards,
    canonical,
    process_group_of,
    refuse_stranger,
    refuse_unwatchable,
    settle,
    sharded,
    unwrap,
)

Groups = Literal["layer", "parameter", "optimizer"] | Callable[[str], str] | None
WHOLE = "model"


@final
class Columns:
    """Which parameters count towards which estimate, by name.

    Args:
        model: wrapped or bare.
        groups: None for the whole model alone; "layer" by owning module, "parameter" each, "optimizer" by parameter
            group; or a function from a parameter's name to its group's.
        optimizer: whose groups "optimizer" means.

    Raises:
        InputError: no parameter at all, "optimizer" without one, or the optimizer of another model.

    Example:
        >>> Columns(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "layer").names
        ['model', '0', '1']
    """

    def __init__(self, model: nn.Module, groups: Groups = None, optimizer: torch.optim.Optimizer | None = None):
        if not isinstance(model, nn.Module):
            raise InputError(f"model={type(model).__name__} must be the torch.nn.Module that is trained")
        self.model = unwrap(model)
        self._wrapped = any("_orig_mod" in module._modules for module in model.modules())
        self._groups, self._optimizer = groups, optimizer
        self.refresh()
        if optimizer is not None:
            way = 'or none: geometry="adam" and groups="optimizer" alone need it'
            refuse_stranger(optimizer, self._name_of, type(self.model).__name__, way)

    def refresh(self) -> None:
        """Take in the parameters that the model has now.

        Raises:
            InputError: no parameter at all, or "optimizer" without one.
        """
        settle(self.model)
        self._name_of: dict[Tensor, str] = {p: canonical(name) for name, p in self.model.named_parameters()}
        if not self._name_of:
            raise InputError("the model has no parameters; there is no gradient to measure")
        labels = {p: _label(name, p, self._groups, self._optimizer) for p, name in self._name_of.items()}
        self.names = [WHOLE, *dict.fromkeys(label for label in labels.values() if label is not None)]
        place = {name: i for i, name in enumerate(self.names) if i}
        self._column: dict[Tensor, int] = {p: place[label] for p, label in labels.items() if label is not None}
        self._indices: dict[tuple[int, ...], Tensor] = {}
        spread = [p for p in self._name_of if sharded(p)]
        copies = process_group_of(spread) if spread else None
        self.shards = Shards(spread, [] if copies is None else [copies])

    def __len__(self) -> int:
        return len(self.names)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that need gradients now, each once; ones that came in addition are taken in.

        Returns:
            The parameters.

        Raises:
            InputError: parameters in place of others that were there at the start.
        """
        if self.shards:
            settle(self.model)
        found = [p for p in self.model.parameters() if p.requires_grad]
        if not all(p in self._name_of for p in found):
            here = set(self.model.parameters())
            if not all(p in here for p in self._name_of):
                raise InputError("the model has other parameters than at the start; build the measurement anew")
            self.refresh()
        return found

    @property
    def compiled(self) -> bool:
        """Whether torch.compile or TorchScript runs the model, past the hooks of its layers."""
        scripted = isinstance(self.model, torch.jit.ScriptModule)
        return self._wrapped or scripted or self.model._compiled_call_impl is not None

    def refuse_unmeasurable(self) -> None:
        """Refuse a model without a gradient to measure, or whose gradients cannot be seen.

        Raises:
            InputError: everything frozen, or parameters of FSDP1, complex, lazy, on the meta device or float8.
        """
        trainable = self.trainable()
        if not trainable:
            raise InputError("the model has no parameter that needs a gradient; unfreeze what is to be measured")
        for parameter in trainable:
            refuse_unwatchable(f"parameter {self.name_of(parameter)!r}", parameter)

    def refuse_shards(self) -> None:
        """Refuse a sharded model where gradients of whole weights are taken beside the training loop.

        Raises:
            InputError: naming the way out.
        """
        if any(map(sharded, self._name_of)):
            raise InputError(
                "the model is sharded, and this takes gradients of whole weights; measure an unsharded copy, or let "
                "NoiseScale measure the sharded model as it trains"
            )

    def name_of(self, parameter: Tensor) -> str:
        """Return a parameter's canonical name.

        Args:
            parameter: of the model.

        Returns:
            Its name in the bare model.
        """
        return self._name_of[parameter]

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._name_of

    def members(self, column: int, parameters: Sequence[Tensor]) -> list[int]:
        """Return which of some parameters count towards a column.

        Args:
            column: 0 for the whole model.
            parameters: in any order.

        Returns:
            Their places in `parameters`.
        """
        return [i for i, p in enumerate(parameters) if column == 0 or self._column[p] == column]

    def add_up(self, parameters: list[Tensor], lengths: Tensor) -> Tensor:
        """Add lengths of parameters into columns.

        Args:
            parameters: one for each entry of axis 0.
            lengths: shape (parameters,) or (parameters, k).

        Returns:
            Shape (columns,) or (columns, k), the whole first.
        """
        out = lengths.new_zeros(len(self), *lengths.shape[1:])
        if len(self) > 1:
            out.index_add_(0, self._index(parameters, lengths.device), lengths)
        out[0] = lengths.sum(0)
        return out

    def _index(self, parameters: list[Tensor], device: torch.device) -> Tensor:
        """Return the columns of parameters on the device; kept, because sending them there would stall it."""
        key = tuple(self._column[p] for p in parameters)
        if key not in self._indices:
            self._indices[key] = torch.tensor(key, device=device)
        return self._indices[key]


def _label(name: str, parameter: Tensor, groups: Groups, optimizer: torch.optim.Optimizer | None) -> str | None:
    """Return the group of a parameter, None where only the whole model counts."""
    if groups is None:
        return None
    if groups == "parameter":
        return name
    if groups == "layer":
        return name.rpartition(".")[0] or WHOLE + " itself"
    if groups == "optimizer":
        if optimizer is None:
            raise InputError('groups="optimizer" needs the optimizer; give optimizer=')
        for i, group in enumerate(optimizer.param_groups):
            if any(p is parameter for p in group["params"]):
                return str(group.get("name", f"group {i}"))
        return "not optimized"
    if not callable(groups):
        raise InputError(f'groups={groups!r} must be "layer", "parameter", "optimizer" or a function of a name')
    return str(groups(name))
