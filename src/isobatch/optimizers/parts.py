"""The state of a sharded parameter, as this rank computes with it: its parts in, DTensors out."""

from collections.abc import Iterator, MutableMapping
from typing import Any, final

from torch import Tensor

from isobatch.gradients import dressed, local


@final
class Parts(MutableMapping[str, Any]):
    """A parameter's state whose tensors are this rank's parts; what is written there is spread as the parameter is.

    Args:
        state: the optimizer's own.
        parameter: whose state it is; sharded.

    Example:
        >>> import torch
        >>> parts = Parts({"step": 1}, torch.zeros(2))
        >>> parts["step"]
        1
    """

    def __init__(self, state: dict[str, Any], parameter: Tensor):
        self._state, self._parameter = state, parameter

    def __getitem__(self, key: str) -> Any:
        value = self._state[key]
        return local(value) if isinstance(value, Tensor) else value

    def __setitem__(self, key: str, value: Any) -> None:
        self._state[key] = dressed(value, self._parameter) if isinstance(value, Tensor) else value

    def __delitem__(self, key: str) -> None:
        del self._state[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
