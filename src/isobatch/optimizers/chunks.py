"""Squares of chunk gradients, taken while the backward passes run: one buffer beside the gradients, no second pass."""

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from isobatch.errors import InputError
from isobatch.optimizers.second_moment import NoiseForm, reduced_square
from isobatch.units import finite


class Chunks:
    """The chunk gradients of one optimizer step: how many, how many samples, and the sum of their squares.

    A hook before each parameter's accumulation sees the gradient of one backward pass alone, adds its square, and lets
    `.grad` accumulate as ever. The loss is scaled as usual, so that `.grad` ends as the mean gradient: the gradient
    that a chunk of n of W samples adds is c = (n/W) g, and the buffer is the sum of c^2/n.

    Args:
        default_samples: samples of a backward pass outside `chunk`.
        form: "coordinate" keeps a buffer of the parameter's shape, "row" and "tensor" only sums of it.
    """

    def __init__(self, default_samples: float, form: NoiseForm):
        self.form: NoiseForm = form
        self.default_samples = default_samples
        self.enabled = True
        self.count = 0
        self.samples = 0.0
        self.factor = 1.0
        self.rescaled = False
        self._unit = 0.0
        self._declared: float | None = None
        self._any_declared = False
        self._by_hand = False
        self._in_chunk: set[Tensor] = set()
        self._calls: dict[Tensor, int] = {}
        self._squares: dict[Tensor, Tensor] = {}
        self._nodes: dict[Tensor, Any] = {}

    def attach(self, parameters: Iterable[Tensor]) -> None:
        """Watch parameters that need gradients; those that are watched already are left alone.

        Args:
            parameters: leaf tensors.
        """
        for parameter in parameters:
            if parameter.requires_grad and parameter not in self._nodes:
                node = get_gradient_edge(parameter).node
                node.register_prehook(_hook(weakref.ref(self), weakref.ref(parameter)))
                self._nodes[parameter] = node

    @contextmanager
    def chunk(self, samples: float) -> Generator[None]:
        """Declare that the one backward pass inside is a chunk of so many samples (or tokens).

        Args:
            samples: n, at least 0; a chunk of 0 (everything masked) is not counted.

        Yields:
            Nothing.

        Raises:
            InputError: inside another chunk, or after backward passes that no chunk declared.
        """
        if self._declared is not None:
            raise InputError(f"chunk(samples={samples}) inside another chunk; close that one first")
        if self.count and not self._any_declared:
            raise InputError(
                f"chunk(samples={samples}) after {self.count} backward passes outside any chunk; "
                "put every backward of the step inside one, or none"
            )
        self._declared = finite("samples", samples, 0)
        self._any_declared = True
        try:
            yield
            self._close(self._declared)
        finally:
            self._declared = None
            self._in_chunk.clear()

    def add(self, parameter: Tensor, gradient: Tensor, samples: float) -> None:
        """Count one chunk's contribution to a parameter's gradient and, while `enabled`, add its square.

        Args:
            parameter: whose gradient it is.
            gradient: c, what this chunk adds to `.grad`.
            samples: n, positive.

        Raises:
            InputError: a sparse gradient.
        """
        if gradient.is_sparse:
            raise InputError(
                f"a parameter of shape {tuple(parameter.shape)} got a sparse gradient, which has no square here; "
                "build its nn.Embedding with sparse=False"
            )
        called = self._calls.get(parameter, 0)
        self._calls[parameter] = called + 1
        if not self.enabled:
            return
        self._unit = self._unit or samples
        weight = self._unit / samples
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()
        buffer = self._squares.get(parameter)
        if buffer is None or (called == 0 and self.form != "coordinate"):
            self._squares[parameter] = reduced_square(gradient, self.form)
            if weight != 1:
                self._squares[parameter].mul_(weight)
        elif called == 0:
            torch.mul(gradient, gradient, out=buffer)
            if weight != 1:
                buffer.mul_(weight)
        elif self.form == "coordinate":
            buffer.addcmul_(gradient, gradient, value=weight)
        else:
            buffer.add_(reduced_square(gradient, self.form), alpha=weight)

    def add_squares(self, parameter: Tensor, squares: Tensor, samples: float) -> None:
        """Add sum c^2 over chunks of equally many samples, per coordinate.

        Args:
            parameter: whose gradient it is.
            squares: the sum, of the parameter's shape.
            samples: n of each chunk, positive.
        """
        self._unit = self._unit or samples
        scaled = squares * (self._unit / samples)
        if parameter in self._calls:
            self._squares[parameter].add_(scaled)
        else:
            self._squares[parameter] = scaled
        self._calls[parameter] = self._calls.get(parameter, 0) + 1

    @contextmanager
    def from_layers(self, sizes: Sequence[float]) -> Generator[None]:
        """Declare that the one backward pass inside holds several chunks, whose gradients are given to `add`.

        Args:
            sizes: samples of each chunk.

        Yields:
            Nothing.
        """
        with self.chunk(sum(sizes)):
            self._by_hand = True
            try:
                yield
            finally:
                self._by_hand = False
        self.count += len(sizes) - 1

    def squares(self, parameter: Tensor) -> Tensor | None:
        """Return the sum of c^2/n times `unit`, None where this step took none; its memory is used again.

        Args:
            parameter: a watched parameter.

        Returns:
            The buffer itself, to be used up by the step.
        """
        return self._squares.get(parameter) if parameter in self._calls and self.enabled else None

    @property
    def unit(self) -> float:
        """Samples of the first chunk: the common weight that was left out of the squares."""
        return self._unit

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers hold now."""
        return sum(squares.nbytes for squares in self._squares.values())

    def scaled(self, factor: float) -> None:
        """Say that every `.grad` was multiplied by a factor outside (gradient clip, loss scale), so the squares follow.

        Args:
            factor: at least 0.
        """
        self.factor *= finite("factor", factor, 0)
        self.rescaled = True

    def discard(self) -> None:
        """Forget what this step collected; buffers are kept for the next one."""
        self.count = 0
        self.samples = 0.0
        self.factor = 1.0
        self.rescaled = False
        self._unit = 0.0
        self._any_declared = False
        self._calls.clear()
        self._in_chunk.clear()

    def release(self) -> None:
        """Free the buffers (they come back when needed)."""
        self._squares.clear()

    def _close(self, samples: float) -> None:
        if samples > 0:
            self.count += 1
            self.samples += samples

    def receive(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take one backward pass's gradient of a parameter, before it is accumulated.

        Args:
            parameter: a watched parameter.
            gradient: what the pass adds to `.grad`.

        Raises:
            InputError: a second pass in one chunk, a pass outside when others were declared, or cleared gradients.
        """
        if self._by_hand:
            return
        called = self._calls.get(parameter, 0)
        if called and parameter.grad is None:
            raise InputError("gradients were cleared but their squares were not; use optimizer.zero_grad()")
        if self._declared is None and self._any_declared:
            raise InputError("a backward pass outside optimizer.chunk() follows one inside; declare every pass")
        if parameter in self._in_chunk:
            raise InputError(
                "two backward passes in one chunk; add the losses and call backward once "
                "(with activation checkpointing: use_reentrant=False)"
            )
        samples = self.default_samples
        if self._declared is not None:
            self._in_chunk.add(parameter)
            samples = self._declared
        elif called == self.count:
            self._close(samples)
        if samples > 0:
            with torch.no_grad():
                self.add(parameter, gradient.detach(), samples)


def _hook(chunks: "weakref.ref[Chunks]", parameter: "weakref.ref[Tensor]") -> Callable[[tuple[Tensor, ...]], None]:
    """Return a hook that dies with its collector, so that a dropped optimizer leaves the model as it was."""

    def before_accumulation(gradients: tuple[Tensor, ...]) -> None:
        collector, leaf = chunks(), parameter()
        if collector is not None and leaf is not None and gradients[0] is not None:
            collector.receive(leaf, gradients[0])

    return before_accumulation
