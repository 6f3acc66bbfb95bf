"""The norm of every gradient at the end of a backward pass, compared with what the optimizer sees.

A few coordinates give the factor by which gradients were rescaled (`RescaleCheck`); the norms show that it is
everybody's: whoever clips some layers, masks some rows or adds to some gradients changes the norm of one otherwise.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import final

import torch
from torch import Tensor

# DistributedDataParallel averages in callbacks of its own, at most two deep, after the pass.
_AFTER = 3
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


@final
class PassNorms:
    """Norms as the last backward pass of a step left them; a step of fewer passes than the one before has none.

    Args:
        parameters: whose.
        expected: backward passes of a step, so that norms are taken at the end of the last one alone; 0 where that is
            not known yet.
        watch: times what norms cost, outside of all hooks; may be entered again.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] = (),
        *,
        expected: int = 0,
        watch: AbstractContextManager[object] | None = None,
    ):
        self.parameters = list(parameters)
        self._task = -1
        self._passes, self._expected = 0, expected
        self._watch = nullcontext() if watch is None else watch
        self._norms: dict[Tensor, Tensor] = {}

    @property
    def passes(self) -> int:
        """Backward passes so far in this step."""
        return self._passes

    def arrive(self) -> None:
        """Say, in a hook of a backward pass, that one is running; norms are taken when it ends."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        self._passes += 1
        if self._passes >= self._expected:
            _queue(partial(self._end, _AFTER))

    def forget(self) -> None:
        """Drop what was taken, and expect as many passes in the next step as there were in this one."""
        if self._passes:
            self._expected = self._passes
        self._passes, self._norms = 0, {}

    def explained(self, parameters: Sequence[Tensor], factors: Tensor) -> Tensor:
        """Whether each gradient has the norm that a factor gives it.

        Args:
            parameters: whose gradients; those without one are passed by.
            factors: by which they should have been multiplied since: one, or one each.

        Returns:
            A boolean scalar; True where no norms were taken, or something is not finite.
        """
        device = factors.device
        found = {p: p.grad for p in parameters if p.grad is not None}
        if not self._norms or not found:
            return torch.ones((), dtype=torch.bool, device=device)
        some = list(found)
        zero = torch.zeros((), device=device)
        now = _row(torch._foreach_norm(list(found.values())), device)
        then = _row([self._norms.get(p, zero) for p in some], device)
        asked = [i for i, p in enumerate(parameters) if p in found]
        then = then * (factors if factors.ndim == 0 else factors[asked]).abs()
        slack = torch.tensor([_TOLERANCE.get(p.dtype, 0.05) for p in some], dtype=torch.float64, device=device)
        alike = (now - then).abs() <= slack * torch.maximum(now, then)
        return alike.all() | ~torch.isfinite(now).all() | ~torch.isfinite(then).all()

    def _end(self, left: int) -> None:
        if left:
            _queue(partial(self._end, left - 1))
            return
        some = {p: p.grad for p in self.parameters if p.grad is not None and p.grad.layout is torch.strided}
        with self._watch, torch.no_grad():
            norms = torch._foreach_norm(list(some.values())) if some else ()
        self._norms = dict(zip(some, norms, strict=True))


def _queue(act: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(act)


def _row(numbers: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.stack([number.to(device, torch.float64) for number in numbers])
