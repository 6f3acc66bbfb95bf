"""What a trainer's last run left, by which the next one of the same callback knows whether it goes on with it."""

from typing import final

import torch
from torch import Tensor, nn

from isobatch.gradients import local
from isobatch.train import SampleClock

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
class LastRun:
    """The model of a run, its clock, and a sum over the bits of its weights.

    A second fit of the same module goes on: its average and its count of samples are taken up. Another module, or
    weights that were loaded, drawn or copied in between, have another past, so average and count begin anew.

    Example:
        >>> net, last = nn.Linear(1, 1), LastRun()
        >>> last.keep(net, SampleClock())
        >>> last.take(net) is None, last.take(net) is None
        (False, True)
        >>> last.keep(net, SampleClock())
        >>> _ = nn.init.ones_(net.weight)
        >>> last.take(net) is None
        True
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let the next run begin anew."""
        self._left: tuple[nn.Module, SampleClock, list[int]] | None = None

    def keep(self, model: nn.Module, clock: SampleClock) -> None:
        """Remember a run at its end.

        Args:
            model: with the weights that it is left with.
            clock: of the run.
        """
        if not any(parameter.is_meta for parameter in model.parameters()):
            self._left = model, clock, bits(model)

    def take(self, model: nn.Module) -> SampleClock | None:
        """Return the clock that goes on, and let go of it: its noise scales watch the model while they live.

        Args:
            model: of the next run.

        Returns:
            None where that run begins anew.
        """
        left, self._left = self._left, None
        return left[1] if left is not None and left[0] is model and left[2] == bits(model) else None


@torch.no_grad()
def bits(model: nn.Module) -> list[int]:
    """Return a sum over the bits of each parameter, the same on every device and in every order of addition.

    Args:
        model: any.

    Returns:
        One whole number a parameter.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> bits(one) == bits(one), bits(one) == bits(other)
        (True, False)
    """
    return [_sum(local(parameter.detach())) for parameter in model.parameters()]


def _sum(tensor: Tensor) -> int:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return int(plain.contiguous().view(_WORDS[plain.element_size()]).sum(dtype=torch.int64))
