"""The sum of one parameter's squared chunk gradients."""

from typing import Any

import torch
from torch import Tensor

from isobatch.gradients import RescaleCheck
from isobatch.optimizers.second_moment import NoiseForm, reduced_square


class Squares:
    """One watched parameter: the sum of its squared chunk gradients, and which step and chunk it last heard of.

    Args:
        parameter: a leaf tensor.
    """

    __slots__ = ("buffer", "calls", "check", "chunk", "parameter", "step")

    def __init__(self, parameter: Tensor):
        self.parameter = parameter
        self.check: RescaleCheck | None = None
        self.buffer: Tensor | None = None
        self.calls = 0
        self.step = -1
        self.chunk: Any = None

    def add(self, gradient: Tensor, weight: float, form: NoiseForm, *, first: bool | None = None) -> None:
        """Add the weighted square of one chunk's gradient; the first of a step overwrites, so nothing is zeroed.

        Args:
            gradient: c.
            weight: of its square.
            form: how squares are reduced.
            first: whether it is the step's first; None where `calls` says so.
        """
        begun = self.calls > 1 if first is None else not first
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()
        if form == "coordinate" and begun and self.buffer is not None:
            self.buffer.addcmul_(gradient, gradient, value=weight)
        elif form != "coordinate":
            squares = reduced_square(gradient, form)
            if begun and self.buffer is not None:
                self.buffer.add_(squares, alpha=weight)
            else:
                self.buffer = squares.mul_(weight)
        elif self.buffer is None:
            self.buffer = (gradient * gradient).mul_(weight)
        else:
            torch.mul(gradient, gradient, out=self.buffer)
            if weight != 1:
                self.buffer.mul_(weight)
