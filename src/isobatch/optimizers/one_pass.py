"""The step of torch's fused Adam and AdamW: the kernel on lists that are kept, without what is looked up around it."""

from collections.abc import Mapping
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as hooked

_KEYS = ("exp_avg", "exp_avg_sq", "step")
_KEPT = itemgetter(*_KEYS)
_KERNELS = ("_fused_adam_", "_fused_adamw_")
_PLAIN = ("amsgrad", "maximize", "capturable", "differentiable")


class _Group(NamedTuple):
    """What the kernel gets of one parameter group: all that have a gradient; counts of steps lie in one tensor."""

    group: dict[str, Any]
    everything: list[Tensor]
    others: list[Tensor]
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counts: Tensor


@final
class OnePassStep:
    """Make an optimizer's steps; where they are those of torch's fused Adam or AdamW, by the kernel alone.

    On a small model torch's own step() takes three times as long around the kernel as in it. The result is the same bit
    for bit. Before each step it is checked that groups, state tensors and gradients are those that the lists were made
    of; hooks, a replaced step(), a profiler, a scaler's numbers or anything else than plain dense tensors go through
    step() as ever, which also makes the lists anew.

    Args:
        optimizer: any; its groups and state may change at any time.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([weight], lr=0.1, fused=True)
        >>> one_pass = OnePassStep(optimizer)
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(2)
        ...     one_pass.step()
        >>> one_pass.kept, int(optimizer.state[weight]["step"])
        (True, 2)
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._known = type(optimizer) in (Adam, AdamW) and vars(torch).keys() >= set(_KERNELS)
        self._groups: list[_Group] = []
        self._entries: list[dict[str, Any]] = []
        self._tensors: list[Tensor] = []

    @property
    def kept(self) -> bool:
        """Whether the next step may go to the kernel at once."""
        return bool(self._groups)

    def step(self) -> None:
        """Make one step, as `optimizer.step()` would."""
        gradients = self._gradients() if self._groups and self._plain() and self._same() else None
        if gradients is None:
            self._optimizer.step()
            self._groups = self._collected() if self._known and self._plain() else []
            return
        with torch.no_grad():
            for held, found in zip(self._groups, gradients, strict=True):
                if found:
                    self._move(held, found)

    def _move(self, held: _Group, gradients: list[Tensor]) -> None:
        group = held.group
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        held.counts.add_(1)
        kernel(
            held.parameters,
            gradients,
            held.means,
            held.squares,
            [],
            held.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _plain(self) -> bool:
        """Whether nobody wants to know of the step or has another one in its place."""
        own = self._optimizer
        return not (
            own._optimizer_step_pre_hooks
            or own._optimizer_step_post_hooks
            or hooked._global_optimizer_pre_hooks
            or hooked._global_optimizer_post_hooks
            or not vars(own).keys().isdisjoint(("step", "grad_scale", "found_inf"))
            or torch.autograd._profiler_enabled()
        )

    def _same(self) -> bool:
        """Whether groups and state are the objects of the last step, with numbers that the kernel takes."""
        groups, state = self._optimizer.param_groups, self._optimizer.state
        return (
            len(groups) == len(self._groups)
            and len(state) == len(self._entries)
            and all(map(is_, state.values(), self._entries))
            and all(map(is_, chain.from_iterable(map(_KEPT, self._entries)), self._tensors))
            and all(
                group is held.group
                and len(group["params"]) == len(held.everything)
                and all(map(is_, group["params"], held.everything))
                and _takes(group)
                for group, held in zip(groups, self._groups, strict=True)
            )
        )

    def _gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients by group; None where another set of parameters has one, or one is sparse."""
        given = []
        for held in self._groups:
            found = [g for p in held.parameters if (g := p.grad) is not None and g.layout is torch.strided]
            if len(found) < len(held.parameters) or any(p.grad is not None for p in held.others):
                return None
            given.append(found)
        return given

    def _collected(self) -> list[_Group]:
        """Return the lists for the next step; none where one tensor or number is not plain."""
        state = self._optimizer.state
        if not all(set(_KEYS) <= entry.keys() for entry in state.values()):
            return []
        groups = []
        for group in self._optimizer.param_groups:
            everything = list(group["params"])
            held = [p for p in everything if p.grad is not None]
            if not _takes(group) or not _alike(held, state):
                return []
            means, squares, steps = ([state[p][key] for p in held] for key in _KEYS)
            counts = torch.stack(steps) if steps else torch.zeros(0)
            for place, p in enumerate(held):
                state[p]["step"] = steps[place] = counts[place]
            others = [p for p in everything if p.grad is None]
            groups.append(_Group(group, everything, others, held, means, squares, steps, counts))
        self._entries = list(state.values())
        self._tensors = list(chain.from_iterable(map(_KEPT, self._entries)))
        return groups


def _takes(group: dict[str, Any]) -> bool:
    """Whether the numbers of a group are those of the plain kernel."""
    numbers = (group["lr"], *group["betas"])
    known = bool(group["fused"]) and "decoupled_weight_decay" in group
    return known and not any(map(group.get, _PLAIN)) and all(type(n) is float for n in numbers)


def _alike(parameters: list[Any], state: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Whether all lie on one device in one dtype, as plain tensors with dense gradients and a state of their own."""
    for p in parameters:
        if p not in state or type(p) not in (torch.nn.Parameter, Tensor) or p.grad.layout is not torch.strided:
            return False
        tensors = [p.grad, *_KEPT(state[p])]
        if any(type(t) is not Tensor or t.device != parameters[0].device for t in tensors):
            return False
        if any(t.dtype != parameters[0].dtype for t in (p, *tensors[:3])):
            return False
    return True
