"""A user's loop made decentralized: an optimizer that averages with its neighbours alone."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isobatch.decentralized.bucket import Bucket
from isobatch.decentralized.methods import Method, find
from isobatch.decentralized.neighbourhood import Incident, Neighbourhood, OnLoss
from isobatch.decentralized.topology import Topology
from isobatch.errors import InputError, NonFiniteError

_COUNT = "decentralized_steps"
_NAME = "decentralized_method"


class Decentralized(torch.optim.Optimizer):
    """Decentralized SGD with momentum over the processes of torch.distributed, in place of the optimizer it wraps.

    Each process is a node (or a part of one, see `nodes`): it computes a gradient on its own samples, and averages with
    its neighbours in the topology. lr, momentum and weight decay are read from the wrapped optimizer's groups at every
    step; schedulers may be built on either. The global batch is the sum over nodes.

    Args:
        optimizer: torch.optim.SGD without Nesterov, dampening or maximize; its own step is not used.
        topology: who averages with whom, one node a rank unless `nodes` says otherwise.
        method: name of a method, or a method; a method given by name takes each group's momentum.
        nodes: ranks of each node where a node has several processes, not necessarily equally many: their gradients are
            averaged inside the node, and the first of them speaks for it.
        group: process group; None is the default one.
        timeout: seconds within which the neighbours of a step must deliver.
        patience: steps in a row that a neighbour may be late before it is lost.
        on_loss: "stop" raises PeerError, "continue" goes on with re-normalised weights.
        nonfinite: "stop" raises NonFiniteError on this node's own bad gradient, "skip" leaves its weights as they are
            for that step; the neighbours leave its values out either way.
        overlap: exchange a bucket as soon as its gradients are there, beside the rest of the backward pass; gradients
            may not be changed between backward and step then.
        bucket_bytes: most bytes of a bucket.

    Raises:
        InputError: another optimizer, a topology of another size, or a setting out of range.

    References:
        arXiv 2104.11981 (DecentLaM).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        method: str | Method = "decentlam",
        *,
        nodes: Sequence[Sequence[int]] | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: float = 60.0,
        patience: int = 0,
        on_loss: OnLoss = "stop",
        nonfinite: str = "stop",
        overlap: bool = False,
        bucket_bytes: int = 1 << 25,
    ):
        _check(optimizer, nonfinite)
        methods = [find(method, options["momentum"]) for options in optimizer.param_groups]
        for found in methods:
            found.check(topology)
        super().__init__([{**options} for options in optimizer.param_groups], optimizer.defaults)
        self.param_groups = optimizer.param_groups  # the same dicts: a scheduler on either is seen here
        for options in self.param_groups:
            options[_COUNT], options[_NAME] = 0, methods[0].name
        self.method, self.nonfinite = methods[0], nonfinite
        self.neighbourhood = Neighbourhood(
            topology, nodes=nodes, group=group, timeout=timeout, patience=patience, on_loss=on_loss
        )
        self.buckets = _buckets(self.param_groups, methods, bucket_bytes)
        self.skipped = 0
        self._held = False
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                dist.broadcast(parameter.data, self.neighbourhood.nodes[0][0], group=group)
        if overlap:
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(self._hook(bucket))

    @property
    def steps(self) -> int:
        """Steps taken, the skipped ones among them."""
        return self.param_groups[0][_COUNT]

    @property
    def incidents(self) -> list[Incident]:
        """What went wrong between this node and its neighbours, oldest first."""
        return self.neighbourhood.incidents

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Average with the neighbours and update; nothing is written unless the whole step succeeds.

        Args:
            closure: computes loss and gradients again, as in torch.

        Returns:
            What the closure returned.

        Raises:
            NonFiniteError: this node's gradient is not finite, and nonfinite is "stop".
            PeerError: a neighbour is lost, and on_loss is "stop" or none is left.
            InputError: a state of another method, or gradients changed after they were sent.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_state()
        try:
            with torch.no_grad():
                self._start(len(self.buckets))
                results = [bucket.finish(self.neighbourhood, self.steps) for bucket in self.buckets]
                bad = next((bucket for bucket in self.buckets if not bucket.finite), None)
                if bad is None:
                    for bucket, (x, values) in zip(self.buckets, results, strict=True):
                        bucket.write(x, values, self.state)
        finally:
            for bucket in self.buckets:
                bucket.abandon()
        if bad is not None and self.nonfinite == "stop":
            node, step = self.neighbourhood.node, self.steps
            raise NonFiniteError(f"step {step}: the gradient of node {node} is not finite; nothing was applied on it")
        self.skipped += bad is not None
        for options in self.param_groups:
            options[_COUNT] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the groups stay the dicts that the wrapped optimizer and its schedulers see.

        Args:
            state_dict: what `state_dict` gave.
        """
        groups = self.param_groups
        super().load_state_dict(state_dict)
        for mine, loaded in zip(groups, self.param_groups, strict=True):
            mine.update({key: value for key, value in loaded.items() if key != "params"})
        self.param_groups = groups

    @contextmanager
    def accumulate(self) -> Generator[None]:
        """Let the backward passes inside add up: with overlap, nothing is sent before the last one, outside the block.

        Yields:
            None.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def average(self) -> list[Tensor]:
        """Return the exact mean of all nodes' weights; every rank calls it at the same place.

        Returns:
            A tensor for each parameter, in the order of `parameters()`.
        """
        found = {}
        for bucket in self.buckets:
            mean = self.neighbourhood.mean(bucket.flat(), self.steps)
            found |= zip(bucket.parameters, bucket.layout.split(mean), strict=True)
        return [found[parameter] for parameter in self.parameters()]

    def parameters(self) -> list[Tensor]:
        """Return the trained parameters in the order of the groups."""
        return [p for options in self.param_groups for p in options["params"] if p.requires_grad]

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Give the model the exact average inside the block, such as to evaluate; every rank enters it.

        Yields:
            None.
        """
        means, own = self.average(), [parameter.detach().clone() for parameter in self.parameters()]
        try:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters(), means)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters(), own)

    def bias(self, reference: Sequence[Tensor]) -> float:
        """Return the nodes' mean relative squared distance to known weights; every rank calls it at the same place.

        Args:
            reference: x*, a tensor for each parameter in the order of `parameters()`.

        Returns:
            mean_i |x_i - x*|**2 / |x*|**2.
        """
        pairs = list(zip(self.parameters(), reference, strict=True))
        mine = sum(float((parameter.detach() - value).double().square().sum()) for parameter, value in pairs)
        size = sum(float(value.double().square().sum()) for _, value in pairs)
        device = self.parameters()[0].device
        return float(self.neighbourhood.mean(torch.tensor([mine], device=device), self.steps)) / size

    def metrics(self) -> dict[str, float]:
        """Return consensus distance and communication; every rank calls it at the same place.

        Returns:
            consensus (mean_i |x_i - xbar|**2 / |xbar|**2), bytes and messages sent by this rank, and its counts of
            late, lost, nonfinite and stale messages and of skipped steps.
        """
        consensus = self.bias(self.average())
        kinds = [incident.kind for incident in self.incidents]
        mail = self.neighbourhood.mail
        counts = {kind: float(kinds.count(kind)) for kind in ("late", "lost", "nonfinite")}
        sent = {"bytes": float(mail.bytes_sent), "messages": float(mail.messages_sent)}
        return {"consensus": consensus, **sent, **counts, "stale": float(mail.stale), "skipped": float(self.skipped)}

    def close(self) -> None:
        """Wait until the neighbours have read what was sent to them; call it before the process ends."""
        self.neighbourhood.mail.close(self.neighbourhood.timeout)

    def _start(self, upto: int) -> None:
        for bucket in self.buckets[:upto]:
            if not bucket.started:
                bucket.start(self.neighbourhood, self.state, self.steps)

    def _hook(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if self._held:
                return
            bucket.ready.add(id(parameter))
            with torch.no_grad():
                if self.method.early:
                    self._start(len(self.buckets))
                    return
                # every node sends its buckets in one order, as NCCL asks
                whole = [len(one.ready) == len(one.parameters) for one in self.buckets]
                self._start(whole.index(False) if False in whole else len(whole))

        return arrived

    def _check_state(self) -> None:
        for options in self.param_groups:
            if options[_NAME] != self.method.name:
                raise InputError(
                    f"the loaded state is of method {options[_NAME]!r}, this run uses {self.method.name!r}; load the "
                    "model alone to change the method"
                )


def _check(optimizer: torch.optim.Optimizer, nonfinite: str) -> None:
    if type(optimizer) is not torch.optim.SGD:
        raise InputError(f"{type(optimizer).__name__} cannot be decentralized here; give torch.optim.SGD")
    for options in optimizer.param_groups:
        for name in ("nesterov", "dampening", "maximize"):
            if options[name]:
                raise InputError(f"{name}={options[name]} is not part of these methods; build SGD without it")
    if nonfinite not in ("stop", "skip"):
        raise InputError(f'nonfinite={nonfinite!r} must be "stop" or "skip"')
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError("no process group; call torch.distributed.init_process_group, or use VirtualNodes")


def _buckets(groups: list[dict[str, Any]], methods: list[Method], limit: int) -> list[Bucket]:
    """Cut the parameters into buckets, last ones first: their gradients are there first."""
    parts: list[tuple[list[nn.Parameter], dict[str, Any], Method]] = []
    for options, method in reversed(list(zip(groups, methods, strict=True))):
        size, kind = math.inf, None
        for parameter in reversed(options["params"]):
            if not parameter.requires_grad:
                continue
            extent = parameter.numel() * parameter.element_size()
            if size + extent > limit or kind != (parameter.dtype, parameter.device):
                parts.append(([], options, method))
                size, kind = 0, (parameter.dtype, parameter.device)
            parts[-1][0].append(parameter)
            size += extent
    if not parts:
        raise InputError("the optimizer holds no parameter that needs a gradient")
    return [Bucket(found, options, method, place, len(parts)) for place, (found, options, method) in enumerate(parts)]
