"""A hook on a layer that looks on: nothing of it is left in a copy, and it breaks no compiled graph."""

from collections.abc import Callable
from typing import Any, final

import torch


@final
class LayerHook:
    """A hook on a layer that does nothing where torch.compile traces it, and nothing on a copy of the layer.

    So a compiled graph is never broken by it, and a model that is copied while it is looked at drags nothing along.

    Args:
        act: what the hook does in eager mode; None for nothing.
        traced: what it does where torch.compile traces it: plain Python that writes attributes, which the compiled
            code then does at each run; None for nothing.
    """

    def __init__(self, act: Callable[..., None] | None = None, traced: Callable[..., None] | None = None):
        self.act, self.traced = act, traced

    def __call__(self, *arguments: Any) -> None:
        """Act.

        Args:
            *arguments: as torch hands them to a hook.
        """
        if torch.compiler.is_compiling():
            if self.traced is not None:
                self.traced(*arguments)
        elif self.act is not None:
            self.act(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerHook":
        return LayerHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerHook, ()
