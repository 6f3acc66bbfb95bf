"""The running mean of something that a loss observes, such as DINO's centre, on the sample clock."""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from isobatch.average.weights import plain
from isobatch.errors import InputError
from isobatch.units import finite


@final
class ObservedMean:
    r"""Exponential moving average of what a loss observes, with its half-life in samples.

    c <- 2**(-B/H) c + (1 - 2**(-B/H)) mean over the B samples of the step. add() collects during the step, commit()
    moves c after it, discard() forgets a step that the guard refused; so c obeys the EMA rule, and accumulation over
    micro-batches is one batch.

    Args:
        start: c before the first step; its shape and dtype are kept.
        half_life: H in samples, from 0 (the last batch alone) to infinity (frozen).

    Raises:
        InputError: a half-life outside its range.

    Example:
        >>> centre = ObservedMean(torch.zeros(1), half_life=4)
        >>> centre.add(torch.tensor([[1.0], [3.0]]))
        >>> centre.add(torch.tensor([[2.0], [2.0]]))
        >>> centre.commit(samples=4)
        >>> centre.value.item()
        1.0

    References:
        arXiv 2104.14294 (DINO's centre), arXiv 2307.13813 (the rule).
    """

    def __init__(self, start: Tensor, half_life: float):
        self.value = start.detach().clone()
        self.half_life = math.inf if half_life == math.inf else finite("half_life", half_life, 0)
        self.discard()

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Collect what one pass observed; every row counts the same.

        Args:
            values: of shape [n, *value.shape].
        """
        if values.shape[1:] != self.value.shape:
            raise InputError(f"observed {list(values.shape)}; the mean takes [n, *{list(self.value.shape)}]")
        part = values.detach().to(torch.float64).sum(0)
        self.total = part if self.total is None else self.total + part
        self.count += len(values)

    def discard(self) -> None:
        """Forget what was collected since the last commit."""
        self.total: Tensor | None = None
        self.count = 0.0

    @torch.no_grad()
    def commit(self, *, samples: float) -> None:
        """Move the mean by what was collected; nothing collected moves nothing.

        Args:
            samples: global samples of the step.
        """
        if self.total is not None and self.count:
            span = math.inf if self.half_life == 0 else samples / self.half_life
            mean = (self.total / self.count).to(self.value.dtype)
            self.value.lerp_(mean, plain(span))
        self.discard()

    def to(self, device: torch.device) -> None:
        """Move the mean to a device.

        Args:
            device: where the loss runs.
        """
        self.value = self.value.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean by name; the half-life is the recipe's."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a mean.

        Args:
            state: what state_dict() returned.
        """
        if state["value"].shape != self.value.shape:
            raise InputError(f"mean of shape {list(state['value'].shape)} stored, {list(self.value.shape)} here")
        self.value.copy_(state["value"])
        self.discard()
