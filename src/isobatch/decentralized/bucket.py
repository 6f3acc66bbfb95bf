"""Buckets of parameters: one flat vector that is exchanged while the gradients of the next are still computed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from isobatch.decentralized.mail import Exchange
from isobatch.decentralized.methods import Method, PmSGDLars
from isobatch.decentralized.neighbourhood import Neighbourhood
from isobatch.decentralized.updates import Everyone, Step, lars_ratio
from isobatch.errors import InputError
from isobatch.gradients import made_in_inference_mode


class Layout:
    """Where each tensor of a list lies in a flat vector; a leading node axis is left as it is.

    Args:
        tensors: whose shapes are laid out in order.

    Example:
        >>> layout = Layout([torch.zeros(2, 3), torch.zeros(3)])
        >>> [part.shape for part in layout.split(torch.zeros(5, 9))]
        [torch.Size([5, 2, 3]), torch.Size([5, 3])]
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.shapes = [tensor.shape for tensor in tensors]
        self.sizes = [tensor.numel() for tensor in tensors]

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of the tensors in a flat vector [..., size].

        Args:
            flat: the vector, or one a node.

        Returns:
            Tensors [..., *shape].
        """
        lead = flat.shape[:-1]
        parts = flat.split(self.sizes, dim=-1)
        return [part.unflatten(-1, shape) if len(shape) else part.reshape(lead) for part, shape in self._pairs(parts)]

    def lars(self, trust: float, weight_decay: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return LARS's scale: ratio (g + wd x) on tensors of two and more dimensions, plain g on biases and norms.

        Args:
            trust: eta.
            weight_decay: wd.

        Returns:
            (x, g) -> scaled g, all flat.
        """

        def scale(x: Tensor, g: Tensor) -> Tensor:
            scaled = []
            pieces = zip(self.shapes, x.split(self.sizes, dim=-1), g.split(self.sizes, dim=-1), strict=True)
            for shape, mine, gradient in pieces:
                if len(shape) > 1:
                    norms = (part.norm(dim=-1, keepdim=True) for part in (mine, gradient))
                    gradient = lars_ratio(*norms, trust, weight_decay) * (gradient + weight_decay * mine)
                scaled.append(gradient)
            return torch.cat(scaled, dim=-1)

        return scale

    def _pairs(self, parts: Sequence[Tensor]) -> zip:
        return zip(parts, self.shapes, strict=True)


class Bucket:
    """Parameters of one group that are updated and exchanged together.

    Args:
        parameters: of one dtype and device.
        group: their options: lr, momentum, weight_decay.
        method: its update.
        place: number of this bucket.
        count: number of buckets.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dict[str, Any], method: Method, place: int, count: int
    ):
        self.parameters: list[Tensor] = list(parameters)
        self.group, self.method = group, method
        self.layout = Layout([p.detach() for p in parameters])
        self.ready: set[int] = set()
        self.finite = True
        self._slots = max(1, method.exchanges)
        self._place, self._exchanges = place, count * self._slots
        self._installed: dict[str, Tensor] = {}
        self._step: Step | None = None
        self._message: Any = None
        self._sent: Exchange | None = None
        self._began: tuple[Any, ...] = ()
        self._used = 0

    @property
    def started(self) -> bool:
        """Whether this step's first message is on its way."""
        return self._step is not None

    def start(self, around: Neighbourhood, state: Mapping[Tensor, Any], count: int) -> None:
        """Begin the step: gather gradient and state, and send the first message.

        Args:
            around: the neighbours.
            state: the optimizer's, by parameter.
            count: steps before this one.

        Raises:
            InputError: a learning rate of 0 for a method that divides by it.
        """
        gamma = float(self.group["lr"])
        if self.method.divides and not gamma > 0:
            raise InputError(f"lr={gamma} must be above 0: {self.method.name} divides by it")
        x, self._used = _flat([p.detach() for p in self.parameters]), 0
        self._gradient = torch.empty_like(x)
        if not self.method.early:
            self._gather(x, around)
        scale, decay = None, self.group["weight_decay"]
        if isinstance(self.method, PmSGDLars):
            scale = self.layout.lars(self.method.trust, decay)
        self._x, self._lr = x, gamma
        self._step = self.method.step(x, self._state(x, state), self._gradient, gamma, count, scale)
        self._post(around, count, next(self._step))

    def finish(self, around: Neighbourhood, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """End the step.

        Args:
            around: the neighbours.
            count: steps before this one.

        Returns:
            New weights and state, flat; nothing is written yet.

        Raises:
            InputError: gradients or learning rate changed after they were sent.
            PeerError: a neighbour is lost.
        """
        step = self._step
        assert step is not None
        if self.method.early:
            self._gather(self._x, around)
        elif [_version(p) for p in self.parameters] != self._versions or self._lr != float(self.group["lr"]):
            raise InputError(
                "gradients or lr changed between backward and step, after they were sent; to clip or unscale "
                "gradients give overlap=False"
            )
        while True:
            if isinstance(self._message, Everyone):
                answer = around.mean(self._message.value, count)
                self.finite = self.finite and bool(torch.isfinite(answer).all())  # one bad node spoils everybody's mean
            else:
                answer = around.receive(self._message, self._sent, count)
            try:
                self._post(around, count, step.send(answer))
            except StopIteration as end:
                return end.value

    def abandon(self) -> None:
        """Forget the step that was begun."""
        self._step, self._message, self._sent = None, None, None
        self.ready.clear()

    def write(self, x: Tensor, values: Mapping[str, Tensor], state: dict[Tensor, Any]) -> None:
        """Write the result of a step into the parameters and the optimizer's state.

        Args:
            x: weights, flat.
            values: state by slot, flat.
            state: the optimizer's, by parameter.
        """
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.layout.split(x))
        self._installed = dict(values)
        views = {slot: self.layout.split(value) for slot, value in values.items()}
        for place, parameter in enumerate(self.parameters):
            state[parameter] = {slot: parts[place] for slot, parts in views.items()}

    def flat(self) -> Tensor:
        """Return the present weights as one vector."""
        return _flat([p.detach() for p in self.parameters])

    def _post(self, around: Neighbourhood, count: int, message: Any) -> None:
        self._message = message
        if not isinstance(message, Everyone):
            slot = self._place * self._slots + self._used
            self._sent = around.send(message, count, slot, self._exchanges)
            self._used += 1

    def _gather(self, x: Tensor, around: Neighbourhood) -> None:
        """Fill in the gradient of the node, decay included; LARS adds its own."""
        self._versions = [_version(p) for p in self.parameters]
        grads = [torch.zeros_like(p) if p.grad is None else _dense(p.grad.detach()) for p in self.parameters]
        torch._foreach_copy_(self.layout.split(self._gradient), grads)
        self.finite = bool(torch.isfinite(self._gradient).all())
        around.within(self._gradient)
        if self.group["weight_decay"] and not isinstance(self.method, PmSGDLars):
            self._gradient.add_(x, alpha=self.group["weight_decay"])

    def _state(self, x: Tensor, state: Mapping[Tensor, Any]) -> dict[str, Tensor]:
        """Return the state by slot; flattened again where somebody loaded another one or parameters have joined."""
        slots = self.method.slots
        kept = [state.get(p) or {} for p in self.parameters]
        whole = [all(slot in entry for slot in slots) for entry in kept]
        if not any(whole):
            return self.method.start(x)
        kept = [
            entry if known else self.method.start(p.detach())
            for p, entry, known in zip(self.parameters, kept, whole, strict=True)
        ]
        return {slot: self._flattened(slot, [entry[slot] for entry in kept], x) for slot in slots}

    def _flattened(self, slot: str, parts: list[Tensor], x: Tensor) -> Tensor:
        installed = self._installed.get(slot)
        if installed is not None:
            views = self.layout.split(installed)
            if all(view.data_ptr() == part.data_ptr() for view, part in zip(views, parts, strict=True)):
                return installed
        return _flat([part.to(x) for part in parts])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _version(parameter: Tensor) -> tuple[int, int]:
    grad = parameter.grad
    return (0, 0) if grad is None else (id(grad), grad._version)


def check_parameter(parameter: Tensor) -> None:
    """Refuse a parameter that nodes cannot exchange.

    Args:
        parameter: to be trained.

    Raises:
        InputError: lazy, sharded, sparse, on the meta device, made in inference mode, or no floating-point numbers.
    """
    problem = ""
    if isinstance(parameter, (nn.UninitializedParameter, DTensor)):
        problem = f"is {type(parameter).__name__}, lazy or sharded"
    elif parameter.is_meta or parameter.layout != torch.strided:
        problem = f"is {parameter.layout} on {parameter.device}"
    elif not parameter.is_floating_point() or parameter.element_size() < 2:
        problem = f"has dtype {parameter.dtype}"
    elif made_in_inference_mode(parameter):
        problem = "was made in inference mode"
    if problem:
        raise InputError(
            f"a parameter {problem}; nodes exchange dense weights of 16 to 64 bits: convert it first, or freeze it"
        )
