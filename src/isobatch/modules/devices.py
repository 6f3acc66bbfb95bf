"""A model's tensors on another device: copies that are kept there and made anew when they are read."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from isobatch.errors import InputError


def apart(tensor: Tensor, device: torch.device | None) -> bool:
    """Whether a device is another one than a tensor's.

    Args:
        tensor: the model's.
        device: to look for; None for the tensor's own, whichever it is.

    Returns:
        True where it must be copied over.

    Example:
        >>> apart(torch.zeros(1), None), apart(torch.zeros(1), torch.device("cpu"))
        (False, False)
    """
    return device is not None and tensor.device != device


@final
class Transfer:
    """Copies that were ordered and are not waited for.

    They are ordered on the stream on which the model computes. So they hold what was in the tensors when they were
    ordered: whatever that stream writes later, such as the next optimizer step, comes after them. On a CPU, and from
    devices without such streams, they are complete at once.

    Args:
        pairs: (tensor, copy of it).

    Example:
        >>> here, there = torch.ones(1), torch.zeros(1)
        >>> Transfer([(here, there)]).wait()
        >>> there.item()
        1.0
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]):
        self._events: list[torch.cuda.Event] = []
        if not pairs:  # most averages lie beside their weights
            return
        with torch.no_grad():
            for tensor, copy in pairs:
                alike = copy.stride() == tensor.stride()  # otherwise torch copies by way of memory that is not pinned
                copy.copy_(tensor, non_blocking=tensor.is_cuda and alike)
        devices = {tensor.device for tensor, _ in pairs if tensor.is_cuda}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def wait(self) -> None:
        """Return when the copies hold their values; what was ordered on the device afterwards is not waited for."""
        for event in self._events:
            event.synchronize()


@final
class DeviceCopies:
    """A model's weights where something else lies that reads them: themselves, or copies that read() makes anew.

    Args:
        device: of the reader; None where the weights are.

    Example:
        >>> weight = torch.zeros(2)
        >>> DeviceCopies(torch.device("cpu")).bind({"weight": weight}, spread=False)["weight"] is weight
        True
    """

    def __init__(self, device: torch.device | None):
        self._device = device
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def bind(self, live: Mapping[str, Tensor], *, spread: bool) -> dict[str, Tensor]:
        """Return what is to be read for these tensors, up to date.

        Args:
            live: the model's tensors by name, as this rank holds them.
            spread: whether they are parts of a sharded model.

        Returns:
            By name.

        Raises:
            InputError: another device for a sharded model.
        """
        away = [name for name, tensor in live.items() if apart(tensor, self._device)]
        if away and spread:
            raise InputError(
                f"device={str(self._device)!r} is not that of the sharded {away[0]!r}; leave device out: each rank "
                "averages its own part beside it, which is a fraction of the model already"
            )
        made = {name: self._like(live[name]) for name in away}
        self._pairs = [(live[name].detach(), made[name]) for name in away]
        self.read()
        return {name: made.get(name, tensor) for name, tensor in live.items()}

    def _like(self, tensor: Tensor) -> Tensor:
        pinned = tensor.is_cuda and self._device is not None and self._device.type == "cpu"
        return torch.empty_like(tensor, device=self._device, pin_memory=pinned, requires_grad=False)

    def start(self) -> Transfer:
        """Begin to bring the copies up to date; until the transfer was waited for they must not be read.

        Returns:
            What to wait for.
        """
        return Transfer(self._pairs)

    def read(self) -> None:
        """Bring the copies up to date, and wait for them."""
        self.start().wait()
