"""A user's loop made decentralized: an optimizer that averages with its neighbours alone."""

import math
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isobatch.decentralized.bucket import Bucket, check_parameter
from isobatch.decentralized.methods import Method, find
from isobatch.decentralized.neighbourhood import Incident, Neighbourhood, OnLoss
from isobatch.decentralized.topology import Topology
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import bare_optimizer, process_group_of
from isobatch.optimizers.settings import assign

_COUNT = "decentralized_steps"
_NAME = "decentralized_method"


class Decentralized(torch.optim.Optimizer):
    """Decentralized SGD with momentum over the processes of torch.distributed, in place of the optimizer it wraps.

    Each process is a node (or a part of one, see `nodes`): it computes a gradient on its own samples, and averages with
    its neighbours in the topology. lr, momentum and weight decay are read from the wrapped optimizer's groups at every
    step; schedulers may be built on either. The global batch is the sum over nodes.

    Which parameters are trained is fixed when it is built: those that need a gradient then. After freezing, unfreezing
    or adding to the wrapped optimizer's groups, `step` asks for `rebind()`; `add_param_group` does that itself. A
    gradient scaler may hand over its steps (`scaler.step(optimizer)`): a node whose gradients overflow keeps its
    weights for that step, and its neighbours leave it out.

    Args:
        optimizer: torch.optim.SGD without Nesterov, dampening or maximize; its own step is not used. Not one that
            Accelerate has wrapped (wrap this one with it), and no parameters of a DistributedDataParallel.
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
        InputError: another optimizer, a topology of another size, parameters that are not plain floating-point tensors
            or are averaged by DistributedDataParallel already, or a setting out of range.

    References:
        arXiv 2104.11981 (DecentLaM).
    """

    _step_supports_amp_scaling = True  # a scaler then calls step() on every node, also where it found an overflow

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
        methods = _methods(method, optimizer.param_groups, topology)
        super().__init__([{**options} for options in optimizer.param_groups], optimizer.defaults)
        self.param_groups = optimizer.param_groups  # the same dicts: a scheduler on either is seen here
        for options in self.param_groups:
            options[_COUNT], options[_NAME] = 0, methods[0].name
        self.method, self.nonfinite, self._given = methods[0], nonfinite, method
        self.neighbourhood = Neighbourhood(
            topology, nodes=nodes, group=group, timeout=timeout, patience=patience, on_loss=on_loss
        )
        self._group, self._overlap, self._limit = group, overlap, bucket_bytes
        self.skipped = 0
        self._held = self._stepped = False
        self._known: set[int] = set()
        self._hooks: list[RemovableHandle] = []
        self.buckets: list[Bucket] = []
        self.rebind()

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
            InputError: a state of another method, parameters that were frozen, unfrozen or added since they were bound,
                or gradients changed after they were sent.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_state()
        overflow = self._unscale()
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
        if bad is not None and self.nonfinite == "stop" and not overflow:
            node, step = self.neighbourhood.node, self.steps
            raise NonFiniteError(
                f"step {step}: the gradient of node {node}, or the exact mean that it was given, is not finite; "
                "nothing was applied on it"
            )
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
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise InputError(f"{error}; build the same groups as the run that saved it") from error
        for mine, loaded in zip(groups, self.param_groups, strict=True):
            for key in loaded.keys() - {"params"}:
                assign(mine, key, loaded[key])
        self.param_groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters and bind them; every rank calls it at the same place.

        Args:
            param_group: parameters with options, as in torch.

        Raises:
            InputError: parameters that are in another group, or as at construction; nothing was added.
        """
        if "_known" not in vars(self):  # torch's own constructor
            super().add_param_group(param_group)
            return
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            raise InputError(f"{error}; give each parameter to one group") from error
        try:
            self.rebind()
        except BaseException:
            self.param_groups.pop()
            raise

    def rebind(self) -> None:
        """Take in which parameters need a gradient now, and which groups there are; every rank calls it together.

        Parameters that stay keep their state, also through a time in which they are frozen; new ones begin with the
        first node's weights and a fresh state.

        Raises:
            InputError: between a backward pass and its step with overlap, ranks that disagree about the parameters, or
                as at construction; nothing was changed.
        """
        if any(bucket.started for bucket in self.buckets):
            raise InputError("gradients of this step are on their way; call rebind() after step()")
        problem: InputError | None = None
        methods, buckets = [], []
        try:
            _check_groups(self.param_groups)
            methods = _methods(self._given, self.param_groups, self.neighbourhood.topology)
            buckets = _buckets(self.param_groups, methods, self._limit)
        except InputError as error:  # told to the others first: each of them waits for a word from here
            problem = error
        self._agree(buckets, problem)
        for hook in self._hooks:
            hook.remove()
        self.buckets = buckets
        self._bound = _trainable(self.param_groups)
        for options in self.param_groups:
            options[_COUNT], options[_NAME] = self.steps, methods[0].name
        for parameter in self._bound:
            if id(parameter) not in self._known:
                dist.broadcast(parameter.data, self.neighbourhood.nodes[0][0], group=self._group)
        self._known |= {id(parameter) for parameter in self._bound}
        pairs = [(bucket, parameter) for bucket in self.buckets for parameter in bucket.parameters]
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(b)) for b, p in pairs] if self._overlap else []

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
        """Return the parameters that are trained, as they were bound, in the order of the groups."""
        return list(self._bound)

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
            if options.get(_NAME, self.method.name) != self.method.name:
                raise InputError(
                    f"the loaded state is of method {options[_NAME]!r}, this run uses {self.method.name!r}; load the "
                    "model alone to change the method"
                )
        now = _trainable(self.param_groups)
        if len(now) != len(self._bound) or any(a is not b for a, b in zip(now, self._bound, strict=True)):
            bound, wanted = ({id(p) for p in some} for some in (self._bound, now))
            raise InputError(
                f"{len(wanted - bound)} parameters were unfrozen or added, and {len(bound - wanted)} frozen, since "
                "they were bound; call rebind() on every rank after such a change"
            )
        if not self._stepped:  # DDP may have come after this optimizer
            _check_parallel(self._bound)
            self._stepped = True

    def _unscale(self) -> bool:
        """Undo a gradient scaler's factor where it left that to this step; return whether it found an overflow."""
        scale, found = (vars(self).get(name) for name in ("grad_scale", "found_inf"))
        if scale is not None:
            if self._overlap:
                for bucket in self.buckets:
                    bucket.abandon()
                raise InputError("scaled gradients were sent as they were; give overlap=False beside a gradient scaler")
            with torch.no_grad():
                for parameter in self._bound:
                    if parameter.grad is not None:
                        parameter.grad.div_(scale.to(parameter.grad.device))
        return found is not None and bool(found.item())

    def _agree(self, buckets: list[Bucket], problem: InputError | None) -> None:
        """Raise on every rank where one has a problem, or where they would train different parameters."""
        kinds = [(tuple(p.shape), str(p.dtype)) for bucket in buckets for p in bucket.parameters]
        code = -1 if problem is not None else zlib.crc32(repr(kinds).encode())
        place = buckets[0].parameters[0].device if buckets else self.param_groups[0]["params"][0].device
        ends = torch.tensor([code, -code], dtype=torch.int64, device=place if place.type == "cuda" else "cpu")
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self._group)
        if problem is not None:
            raise problem
        if int(ends[0]) != -int(ends[1]):
            raise InputError(
                "the ranks do not train the same parameters, or one of them refused its own; freeze and add alike on "
                "every rank"
            )


def _check(optimizer: torch.optim.Optimizer, nonfinite: str) -> None:
    if isinstance(optimizer, torch.optim.Optimizer) and bare_optimizer(optimizer) is not optimizer:
        raise InputError(
            f"{type(optimizer).__name__} decides itself when to step; wrap the other way round, such as "
            "accelerator.prepare_optimizer(Decentralized(optimizer, ...))"
        )
    if type(optimizer) is not torch.optim.SGD:
        raise InputError(f"{type(optimizer).__name__} cannot be decentralized here; give torch.optim.SGD")
    _check_groups(optimizer.param_groups)
    if nonfinite not in ("stop", "skip"):
        raise InputError(f'nonfinite={nonfinite!r} must be "stop" or "skip"')
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError("no process group; call torch.distributed.init_process_group, or use VirtualNodes")


def _check_groups(groups: list[dict[str, Any]]) -> None:
    for options in groups:
        for name in ("nesterov", "dampening", "maximize"):
            if options.get(name):
                raise InputError(f"{name}={options[name]} is not part of these methods; build SGD without it")
        for parameter in options["params"]:
            if parameter.requires_grad:
                check_parameter(parameter)


def _check_parallel(parameters: list[Tensor]) -> None:
    """Refuse parameters whose gradients somebody else averages over ranks."""
    if process_group_of(parameters, guess=False) is not None:
        raise InputError(
            "the parameters are averaged over ranks already (DistributedDataParallel, or sharded); give the bare model "
            "to the loop, nodes=[[...], ...] averages inside a node"
        )


def _trainable(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [p for options in groups for p in options["params"] if p.requires_grad]


def _methods(method: str | Method, groups: list[dict[str, Any]], topology: Topology) -> list[Method]:
    methods = [find(method, options["momentum"]) for options in groups]
    for found in methods:
        found.check(topology)
    return methods


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
