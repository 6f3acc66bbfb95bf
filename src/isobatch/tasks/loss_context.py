"""What a loss may know beside model and batch: the average as teacher, the clock, and running means on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from isobatch.average import ObservedMean
from isobatch.errors import InputError


@dataclass(frozen=True)
class LossNeeds:
    """What a run's loss asks of the loop; with it the loss is called as loss(model, batch, context).

    Args:
        teacher: the mode in which the averaged weights are handed over ("train": batch norm by the teacher's own
            batch, as in BYOL; "eval": the student's running statistics); None: the loss takes the clock alone.
        means: running means of what the loss observes, by name; the loop commits them with every applied step and
            keeps them in the checkpoint.
    """

    teacher: Literal["eval", "train"] | None = None
    means: Mapping[str, ObservedMean] = field(default_factory=dict)


@dataclass(frozen=True)
class LossContext:
    """What the loop hands to a loss for one pass.

    Args:
        seen: samples of applied updates before this step.
        batch: global samples of this step.
        length: samples of the whole run.
        places: place of each sample of this pass in the stream of drawn samples, int64 on the CPU; random choices that
            are a function of it do not depend on micro-batches, ranks, resumes or batch changes.
        means: the running means; call add() on them, and read `value`.
        average: the averaged weights as a module without gradients; None where the loss asked for none.
    """

    seen: int
    batch: int
    length: int
    places: torch.Tensor
    means: Mapping[str, ObservedMean] = field(default_factory=dict)
    average: nn.Module | None = None

    @property
    def teacher(self) -> nn.Module:
        """The averaged weights after the previous step (post-step order), to be called under torch.no_grad()."""
        if self.average is None:
            raise InputError('this loss asked for no teacher; make its run with needs=LossNeeds(teacher="eval")')
        return self.average
