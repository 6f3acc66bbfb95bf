"""Do the calls of update() match the optimizer's steps? The cheap evidence, collected as training goes."""

import warnings
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def overflowed(optimizer: Optimizer) -> bool:
    """Whether the step that an optimizer just made was none, because a gradient scaler told it of an overflow.

    A scaler does not call a plain optimizer then; one that it hands its scale to, such as a fused one, it does.

    Args:
        optimizer: inside one of its step hooks.

    Returns:
        True where nothing was applied.

    Example:
        >>> import torch
        >>> overflowed(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        False
    """
    found = vars(optimizer).get("found_inf")
    return isinstance(found, Tensor) and bool(found.item())


# Unchanged weights are reported once they are this share of the calls, and this many.
SUSPICIOUS = 0.45
ENOUGH = 16


@final
class Watch:
    """Counts updates that found the weights unchanged, and optimizer steps where an optimizer is watched."""

    def __init__(self) -> None:
        self.calls = self.changed = self.unchanged = 0
        self.steps = self.mismatched = 0
        self._watched = self._told = False
        self._since = 0
        self._versions: list[int] = []

    def optimizer(self, optimizer: Optimizer) -> RemovableHandle:
        """Count the steps of an optimizer.

        Args:
            optimizer: the one whose steps the average follows.

        Returns:
            The hook's handle; remove() ends the count.
        """
        self._watched = True

        def count(*_: Any) -> None:
            if not overflowed(optimizer):
                self.steps += 1
                self._since += 1

        return optimizer.register_step_post_hook(count)

    def note(self, probes: Sequence[Tensor]) -> None:
        """Take note of one update.

        Args:
            probes: a few trained tensors; an optimizer that writes in place moves their version.
        """
        versions = [p._version for p in probes]
        if self._versions:
            same = versions == self._versions
            self.unchanged += same
            self.changed += not same
        self.calls += 1
        self._versions = versions
        if self._watched:
            self.mismatched += self._since != 1
            self._since = 0
        if not self._told and self.suspicious():
            self._told = True
            warnings.warn(self.messages()[0], stacklevel=5)

    def suspicious(self) -> bool:
        """Whether calls and steps clearly do not match."""
        if self._watched:
            return self.mismatched >= ENOUGH and self.mismatched >= SUSPICIOUS * self.calls
        return self.changed > 0 and self.unchanged >= ENOUGH and self.unchanged >= SUSPICIOUS * self.calls

    def messages(self) -> list[str]:
        """Return what is wrong, if anything."""
        found = []
        if self._watched and self.mismatched:
            found.append(
                f"{self.mismatched} of {self.calls} updates did not follow exactly one optimizer step "
                f"({self.steps} steps); call update() once after each optimizer.step(), not after each micro-batch"
            )
        elif not self._watched and self.suspicious():
            found.append(
                f"{self.unchanged} of {self.calls} updates found the weights unchanged since the update before; call "
                "update() once after each optimizer.step(), not after each micro-batch or skipped step"
            )
        return found
