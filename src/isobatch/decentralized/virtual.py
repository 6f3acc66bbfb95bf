"""Virtual nodes: the parameters of all nodes stacked along one axis in one process, trained by the same updates."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from isobatch.decentralized.bucket import Layout, check_parameter
from isobatch.decentralized.methods import Method, PmSGDLars, find
from isobatch.decentralized.nodes_mean import consensus_distance, relative_error
from isobatch.decentralized.topology import Topology
from isobatch.decentralized.updates import advance
from isobatch.errors import InputError
from isobatch.units import finite

# what torch.func says of a forward pass that it cannot run for all nodes at once
_NO_NODE_AXIS = ("vmap", "captured Tensor", "Batching rule", "functorch")


class VirtualNodes:
    """n nodes of decentralized training in one process, exact and deterministic.

    Every node has its own weights and its own batch; gradients come from one vmapped call, exchanges are products with
    the mixing matrix. All nodes start at the model's weights. What needs no gradient at a step is frozen on every node:
    neither trained, decayed nor mixed, and its momentum waits.

    Args:
        model: gives the architecture, the first weights and, at every step, which parameters need a gradient; it is not
            trained itself. No batch norm, nor anything else that writes to buffers in its forward pass: they have no
            node axis. Several models of one architecture are independent replicas of the whole
            graph, stacked along the node axis: node i of replica r has place r * nodes + i in every batch.
        loss: (net, batch) -> mean loss of a node's batch, a scalar tensor.
        topology: who averages with whom.
        method: name of a method, or a method.
        lr: gamma.
        momentum: beta, where the method is given by name.
        weight_decay: coupled L2, added to the gradient.

    Raises:
        InputError: no such method, a topology that it cannot use, a setting out of range, batch norm, parameters that
            are not plain floating-point tensors of one dtype, or models of several architectures.

    Example:
        >>> from isobatch.decentralized import ring
        >>> nodes = VirtualNodes(nn.Linear(2, 1), lambda net, x: net(x).square().mean(), ring(4), lr=0.1)
        >>> nodes.step(torch.ones(4, 3, 2)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        loss: Callable[[Any, Any], Tensor],
        topology: Topology,
        method: str | Method = "decentlam",
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        starts = [model] if isinstance(model, nn.Module) else list(model)
        _check_models(starts)
        self.topology, self.lr = topology, finite("lr", lr, 0)
        self.weight_decay = finite("weight_decay", weight_decay, 0)
        self.method = find(method, momentum)
        self.method.check(topology)
        self._model, self._loss, self.replicas = starts[0], loss, len(starts)
        self._names = [name for name, _ in starts[0].named_parameters()]
        self.layout = Layout(list(starts[0].parameters()))
        first = [torch.cat([value.detach().reshape(-1) for value in one.parameters()]) for one in starts]
        self.weights = torch.stack(first).repeat_interleave(topology.size, 0)
        self.state = self.method.start(self.weights)
        self.steps = 0
        self._matrices = {}
        self._scale = None
        if isinstance(self.method, PmSGDLars):
            self._scale = self.layout.lars(self.method.trust, self.weight_decay)

    @property
    def size(self) -> int:
        """Number of nodes of a replica."""
        return self.topology.size

    def step(self, batch: Any, lr: float | None = None) -> Tensor:
        """Take one step on every node.

        Args:
            batch: tensors (or a tuple of them) [nodes, samples, ...]; the global batch is the sum over nodes.
            lr: gamma of this step; the one given at the start otherwise.

        Returns:
            Each node's loss before the step [nodes].

        Raises:
            InputError: a learning rate of 0 for a method that divides by it, or a model whose parameters are others
                than at the start.
        """
        gamma = self.lr if lr is None else finite("lr", lr, 0)
        frozen = self._frozen()
        if self.method.divides and not gamma > 0:
            raise InputError(f"lr={gamma} must be above 0: {self.method.name} divides by it")
        g, losses = self.gradient(batch)
        if self.weight_decay and self._scale is None:
            g = g + self.weight_decay * self.weights
        step = self.method.step(self.weights, self.state, g, gamma, self.steps, self._scale)
        before = self.weights, self.state
        self.weights, self.state = advance(step, self.mix, self._mean)
        if frozen is not None:
            self.weights = torch.where(frozen, before[0], self.weights)
            self.state = {slot: torch.where(frozen, before[1][slot], value) for slot, value in self.state.items()}
        self.steps += 1
        return losses

    def gradient(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return every node's gradient at its own weights.

        Args:
            batch: as in `step`.

        Returns:
            Gradients [nodes, size] and losses [nodes].
        """

        def of_node(parameters: dict[str, Tensor], part: Any) -> Tensor:
            return self._loss(lambda *inputs: functional_call(self._model, parameters, inputs), part)

        stacked = dict(zip(self._names, self.layout.split(self.weights), strict=True))
        try:
            gradients, losses = vmap(grad_and_value(of_node), randomness="different")(stacked, batch)
        except RuntimeError as error:
            if not any(word in str(error) for word in _NO_NODE_AXIS):
                raise
            raise InputError(
                f"this model cannot hold a node axis ({str(error).splitlines()[0][:120]}); leave out what writes to "
                "buffers or reads numbers off tensors in its forward pass, or use real processes"
            ) from error
        flat = [gradients[name].reshape(len(losses), gradients[name][0].numel()) for name in self._names]
        return torch.cat(flat, dim=1), losses

    def mix(self, z: Tensor) -> Tensor:
        """Return W z for the present step.

        Args:
            z: values [nodes, size].

        Returns:
            Averages over neighbours [nodes, size].
        """
        place = self.steps % self.topology.period
        if place not in self._matrices:
            self._matrices[place] = torch.tensor(self.topology.at(place).dense(), dtype=z.dtype, device=z.device)
        return (self._matrices[place] @ self._by_replica(z)).flatten(0, 1)

    def average(self, replica: int = 0) -> Tensor:
        """Return the exact mean of the nodes' weights.

        Args:
            replica: of which graph.

        Returns:
            Weights [size].
        """
        return self._by_replica(self.weights)[replica].mean(0)

    def consensus_distance(self, replica: int = 0) -> float:
        """Return `consensus_distance` of the nodes' weights.

        Args:
            replica: of which graph.

        Returns:
            mean_i |x_i - xbar|**2 / |xbar|**2.
        """
        return consensus_distance(self._by_replica(self.weights)[replica])

    def bias(self, reference: Tensor, replica: int = 0) -> float:
        """Return the nodes' relative squared distance to a known solution.

        Args:
            reference: x* [size].
            replica: of which graph.

        Returns:
            mean_i |x_i - x*|**2 / |x*|**2.
        """
        return relative_error(self._by_replica(self.weights)[replica], reference)

    @contextmanager
    def applied(self, node: int | None = None, replica: int = 0) -> Generator[nn.Module]:
        """Give the model the exact average, or one node's weights, inside the block.

        Args:
            node: whose weights; None for the average.
            replica: of which graph.

        Yields:
            nn.Module: The model; its own weights come back afterwards.
        """
        parameters = list(self._model.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        chosen = self.layout.split(
            self.average(replica) if node is None else self._by_replica(self.weights)[replica, node]
        )
        try:
            _copy(parameters, chosen)
            yield self._model
        finally:
            _copy(parameters, before)

    def _frozen(self) -> Tensor | None:
        """Return which numbers of a node's weights need no gradient now [size], None where all of them do."""
        now = dict(self._model.named_parameters())
        if list(now) != self._names:
            raise InputError(
                f"the model's parameters are {list(now)} now and were {self._names}; build VirtualNodes anew"
            )
        if all(parameter.requires_grad for parameter in now.values()):
            return None
        parts = [torch.full((p.numel(),), not p.requires_grad, device=self.weights.device) for p in now.values()]
        return torch.cat(parts)

    def _by_replica(self, z: Tensor) -> Tensor:
        return z.unflatten(0, (self.replicas, self.size))

    def _mean(self, z: Tensor) -> Tensor:
        return self._by_replica(z).mean(1, keepdim=True).expand(-1, self.size, -1).flatten(0, 1)


def _check_models(models: list[nn.Module]) -> None:
    if not models:
        raise InputError("model=[] holds none; give one, or several of one architecture")
    for module in (module for one in models for module in one.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError("virtual nodes cannot hold a scripted module; give the module that it was made of")
        tracks = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if tracks or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"virtual nodes cannot hold batch norm or other running statistics ({type(module).__name__}); use "
                "group or layer norm, or real processes"
            )
    for one in models:
        for parameter in one.parameters():
            check_parameter(parameter)
    kinds = [[(name, tuple(p.shape), p.dtype, p.device) for name, p in one.named_parameters()] for one in models]
    if not kinds[0] or any(other != kinds[0] for other in kinds[1:]):
        raise InputError("the models have no parameters, or other ones each; give models of one architecture")
    if len({(dtype, device) for _, _, dtype, device in kinds[0]}) > 1:
        found = sorted({f"{dtype} on {device}" for _, _, dtype, device in kinds[0]})
        raise InputError(f"parameters are {', '.join(found)}; virtual nodes stack weights of one dtype: convert them")


def _copy(to: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(to, values, strict=True):
            parameter.copy_(value)
