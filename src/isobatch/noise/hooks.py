"""Gradients of single backward passes, seen before they are accumulated into `.grad`."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle


class Receiver(Protocol):
    """Takes gradients of backward passes."""

    def receive(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take what one backward pass adds to a parameter's `.grad`."""
        ...


class Watched:
    """Hooks on leaf tensors that die with their receiver, and that `remove` takes away.

    Under DDP the gradient is this rank's own, before any reduction. Tensor hooks of this kind never fire for the
    sharded parameters of FSDP2.

    Args:
        parameters: leaf tensors that need gradients.
        receiver: told of each pass; held weakly.
    """

    def __init__(self, parameters: Iterable[Tensor], receiver: Receiver):
        self._handles: list[RemovableHandle] = []
        # The node must stay alive, or the engine makes another one without the hook.
        self._nodes: list[Any] = []
        told = weakref.ref(receiver)
        for parameter in parameters:
            node = get_gradient_edge(parameter).node
            self._handles.append(node.register_prehook(_hook(told, weakref.ref(parameter))))
            self._nodes.append(node)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()


def _hook(receiver: "weakref.ref[Receiver]", parameter: "weakref.ref[Tensor]") -> Callable[[tuple[Tensor, ...]], None]:
    def before_accumulation(gradients: tuple[Tensor, ...]) -> None:
        target, leaf = receiver(), parameter()
        if target is not None and leaf is not None and gradients[0] is not None:
            target.receive(leaf, gradients[0])

    return before_accumulation
