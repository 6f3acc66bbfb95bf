"""The guard: one verdict per step, reached before anything moves, obeyed by everything that would move."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from isobatch.gradients import all_finite, own_gradient


class StepVerdict(StrEnum):
    """What happens to a step."""

    APPLY = "apply"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason.

    Args:
        verdict: apply, skip or stop.
        reason: empty for apply.
        parameter: first parameter whose gradient is not finite.
    """

    verdict: StepVerdict
    reason: str = ""
    parameter: str | None = None


_APPLY = Judgement(StepVerdict.APPLY)


class Guard:
    """Judge each step by its loss and its gradients.

    Args:
        patience: steps in a row that may be skipped before the run stops; 0 stops at the first.

    Example:
        >>> Guard().judge(float("nan"), nn.Linear(1, 1), skipped=0).verdict
        <StepVerdict.STOP: 'stop'>
    """

    def __init__(self, patience: int = 0):
        self.patience = patience

    def judge(
        self, loss: float, model: nn.Module, skipped: int, parameters: Sequence[nn.Parameter] | None = None
    ) -> Judgement:
        """Return the verdict on a step whose gradients are complete.

        Args:
            loss: mean loss of the step.
            model: holds the gradients.
            skipped: steps skipped in a row just before this one.
            parameters: the model's, where the caller holds them; walking a small model costs as much as its norms.

        Returns:
            The judgement.
        """
        trained = parameters or list(model.parameters())
        gradients = [g for p in trained if (g := p.grad) is not None]
        if not set(map(type, gradients)) <= {Tensor}:  # shards
            gradients = [g for p in trained if (g := own_gradient(p)) is not None]
        if math.isfinite(loss) and all_finite(gradients):
            return _APPLY
        bad = first_bad_gradient(model)
        what = f"loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
        return self.refuse(f"{what}; first bad gradient: {bad}" if bad else what, skipped, bad)

    def refuse(self, reason: str, skipped: int, parameter: str | None = None) -> Judgement:
        """Return SKIP while patience lasts, STOP afterwards.

        Args:
            reason: what was wrong.
            skipped: steps skipped in a row just before this one.
            parameter: first parameter with a bad gradient.

        Returns:
            The judgement.
        """
        return Judgement(StepVerdict.SKIP if skipped < self.patience else StepVerdict.STOP, reason, parameter)


def first_bad_gradient(model: nn.Module) -> str | None:
    """Return the name of the first parameter whose gradient is not finite.

    Args:
        model: holds the gradients.

    Returns:
        The name, None when all are finite.
    """
    for name, parameter in model.named_parameters():
        gradient = own_gradient(parameter)
        if gradient is not None and not all_finite([gradient]):
            return name
    return None
