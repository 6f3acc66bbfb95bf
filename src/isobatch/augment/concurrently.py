"""Who makes what lies ahead: this process at once, another process, or another stream of the same device."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.renamed import old_names

Pending = Callable[[], Tensor]
Segment = tuple[int, int]
_STOP = 0

__getattr__ = old_names(__name__, {"Maker": "isobatch.augment.concurrently.DirectionProvider"})


class DirectionProvider(ABC):
    """Makes a tensor for a global batch that lies ahead, by the weights that the model has when it is asked."""

    @abstractmethod
    def __call__(self, segment: Segment) -> Pending:
        """Begin to make it.

        Args:
            segment: first position and samples of the global batch.

        Returns:
            A function that waits for the tensor and returns it.
        """

    @abstractmethod
    def settle(self) -> None:
        """Return once nobody reads the present weights any more: they are about to change."""


class OtherStream(DirectionProvider):
    """Make it on a CUDA stream of its own, beside the passes of the update; weights are shared, not copied.

    Args:
        make: segment -> the tensor, with the model's present weights.
        device: of the model.

    Raises:
        InputError: a device that has no streams.
    """

    def __init__(self, make: Callable[[Segment], Tensor], device: torch.device | str):
        if torch.device(device).type != "cuda":
            raise InputError(f"device={str(device)!r} has no streams; use a CUDA device, or another process")
        self.make, self.device = make, torch.device(device)
        self.stream = torch.cuda.Stream(self.device)

    def __call__(self, segment: Segment) -> Pending:
        """Begin to make it.

        Args:
            segment: first position and samples of the global batch.

        Returns:
            A function that makes the present stream wait, and returns the tensor.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            made = self.make(segment)
        done = self.stream.record_event()

        def wait() -> Tensor:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(done)
            made.record_stream(now)
            return made

        return wait

    def settle(self) -> None:
        """Make the present stream wait for this one, which reads the weights."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


class _Travel:
    """What is on its way, and the memory that it needs; gloo lets nobody wait for the same message twice."""

    def __init__(self, works: Sequence[dist.Work | None], tensors: Sequence[Tensor]):
        self.works, self.tensors, self.done = works, tensors, False

    def wait(self) -> None:
        if not self.done:
            for work in self.works:
                if work is not None:
                    work.wait()
        self.done = True


class OtherProcess(DirectionProvider):
    """Have it made by a process that runs `serve`; the weights travel there, the tensor travels back.

    A request costs 4 bytes a weight one way, and the tensor's bytes the other way (one a number for signs).
    Answers come in the order of the requests.

    Args:
        model: whose parameters are sent.
        peer: rank of the other process in the default group.
        like: a tensor of the right type and row shape, such as the directions of one sample.
        rows: segment -> rows of the answer.
        most: samples of one pass there, or a function that gives them.

    Raises:
        InputError: parameters of several types.
    """

    def __init__(
        self,
        model: nn.Module,
        peer: int,
        like: Tensor,
        rows: Callable[[Segment], int],
        most: Callable[[], int],
    ):
        self.parameters, self.peer, self.like, self.rows, self.most = list(model.parameters()), peer, like, rows, most
        one_type(self.parameters)
        self.sent = self.received = self.requests = 0
        self._travelling: deque[_Travel] = deque()

    def __call__(self, segment: Segment) -> Pending:
        """Send the present weights, and go on.

        Args:
            segment: first position and samples of the global batch.

        Returns:
            A function that waits for the answer.
        """
        header = torch.tensor([*segment, self.most()], dtype=torch.int64)
        weights = flat(self.parameters)
        answer = torch.empty(self.rows(segment), *self.like.shape[1:], dtype=self.like.dtype)
        while self._travelling and self._travelling[0].done:
            self._travelling.popleft()
        works = [dist.isend(header, self.peer), dist.isend(weights, self.peer), dist.irecv(answer, self.peer)]
        travel = _Travel(works, [header, weights, answer])
        self._travelling.append(travel)
        self.requests += 1
        self.sent += header.nbytes + weights.nbytes
        self.received += answer.nbytes

        def wait() -> Tensor:
            travel.wait()
            return answer

        return wait

    def settle(self) -> None:
        """Nothing to wait for: a copy of the weights is on its way."""

    def drain(self) -> None:
        """Wait until everything asked for has arrived."""
        while self._travelling:
            self._travelling.popleft().wait()

    def close(self) -> None:
        """Let the other process return from `serve`, after its last answer."""
        self.drain()
        dist.send(torch.tensor([0, _STOP, 0], dtype=torch.int64), self.peer)


def serve(model: nn.Module, peer: int, make: Callable[[Segment, int], Tensor]) -> int:
    """Answer the requests of an `OtherProcess` until it closes.

    Args:
        model: of the same shape; its weights are overwritten by those that arrive.
        peer: rank of the process that asks, in the default group.
        make: (segment, samples of one pass) -> the tensor, with the model's present weights.

    Returns:
        Requests answered.
    """
    parameters, answered = list(model.parameters()), 0
    one_type(parameters)
    weights, header = flat(parameters), torch.zeros(3, dtype=torch.int64)
    while True:
        dist.recv(header, peer)
        first, size, most = header.tolist()
        if size == _STOP:
            return answered
        dist.recv(weights, peer)
        place = 0
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(weights[place : place + parameter.numel()].view_as(parameter))
                place += parameter.numel()
        dist.send(make((first, size), most).contiguous(), peer)
        answered += 1


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """Return a copy of all weights as one row on the CPU, where gloo sends from.

    Args:
        parameters: of one type.

    Returns:
        One dimension.
    """
    return torch.cat([p.detach().flatten() for p in parameters]).cpu()


def one_type(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters of several types.

    Args:
        parameters: of a model.

    Raises:
        InputError: more than one type.
    """
    types = sorted({str(p.dtype) for p in parameters})
    if len(types) != 1:
        raise InputError(f"parameters of types {', '.join(types)} cannot travel as one; use one type")
