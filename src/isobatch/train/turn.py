"""One way of a micro-batch through the model; a plain step takes one turn."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One way in which every micro-batch of a step goes through the model.

    Args:
        weight: of its mean loss in the loss of the step.
        batch: (samples, place of the first one in this rank's part) -> what the loss is asked for.
        around: context of the forward pass.
    """

    weight: float
    batch: Callable[[Any, int], Any]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


PLAIN = (Turn(1.0, lambda batch, _: batch),)
