"""FSDP2's reduce-scatter, read on the way: what each rank brings to the part of a gradient that this rank keeps.

Each rank of a shard group computes a gradient of its own samples, and FSDP adds them up before anybody can see one.
Here every rank also sends each other rank its own addends of that rank's part, so that the part is seen as if this
process had accumulated one chunk for each rank of the group. What FSDP itself reduces is left as it is.
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any, final
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from isobatch.errors import InputError

Deliver = Callable[[Tensor, list[Tensor], "Reading"], None]
Wanted = Callable[[Tensor], bool]


@final
class Reading:
    """The reduce-scatter of one call of fully_shard, which does what it did and shows what passes through.

    Args:
        group: torch's account of the parameters of that call.
        deliver: given a sharded parameter, what each rank adds to this rank's part of its gradient, and this reading.
        wanted: whether anybody looks at a parameter now.
    """

    def __init__(self, group: Any, deliver: Deliver, wanted: Wanted):
        self.forwards = 0
        self._group, self._deliver, self._wanted = group, deliver, wanted
        self._inner: Any = group._reduce_scatter_comm
        self._parameters: dict[int, Any] = {id(held.sharded_param): held for held in group.fsdp_params}
        self._alone = shard_group(group) is None
        self._pieces: Tensor | None = None
        self._offset = 0
        self._followed: set[int] = set()
        self._follow()
        group.modules[0].register_forward_pre_hook(self._count)
        group.modules[0].set_custom_reduce_scatter(self)

    @property
    def passes(self) -> int:
        """How many forward passes in training led to this reduction: more than one where FSDP was told not to sync."""
        same = [r.forwards for r in _READINGS.values() if r._group.comm_ctx is self._group.comm_ctx and r.forwards]
        return min(same, default=1)

    def counts(self, samples: float) -> list[float]:
        """Return what each rank of the group says its own pass holds; collective.

        Args:
            samples: of this rank.

        Returns:
            In the order of the delivered gradients.
        """
        ranks = shard_group(self._group)
        if ranks is None:
            return [samples]
        mine = torch.tensor([samples], dtype=torch.float64, device=self._group.device)
        found = [torch.empty_like(mine) for _ in range(ranks.size())]
        dist.all_gather(found, mine, group=ranks)
        return torch.cat(found).tolist()

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for FSDP.

        Args:
            size: of the tensor.
            dtype: of it.
            device: of it.

        Returns:
            What the communication in force gives. A group of one never calls it, so its input is remembered from here.
        """
        made = self._inner.allocate(size, dtype=dtype, device=device)
        if self._alone and self._pieces is None and self._looked_at():
            self._pieces = made.view(1, -1)
        return made

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        """Exchange what each rank adds, then reduce as ever.

        Args:
            output_tensor: the reduced part.
            input_tensor: this rank's own gradient, cut into the parts of all ranks.
            group: the ranks.
            op: how they are reduced.
            async_op: whether to return before it is done.

        Returns:
            What the communication in force returns.
        """
        if self._looked_at():
            found = torch.empty_like(input_tensor)
            dist.all_to_all_single(found, input_tensor, group=group)
            pieces = found.view(group.size(), -1)
            unheard = self._pieces is not None and self._pieces.shape == pieces.shape and self._offset == 0
            # HSDP without an all-reduce keeps its sum, and reduces it with a later pass
            self._pieces = pieces.add_(self._pieces) if unheard and self._pieces is not None else pieces
            self._offset = 0
        return self._inner(
            output_tensor=output_tensor, input_tensor=input_tensor, group=group, op=op, async_op=async_op
        )

    def _follow(self) -> None:
        """Hear of every parameter that trains; what is frozen has no gradient in the message, and may be unfrozen."""
        for place, held in self._parameters.items():
            if held.sharded_param.requires_grad and place not in self._followed:
                held.sharded_param.register_post_accumulate_grad_hook(self._arrived)
                self._followed.add(place)

    def _looked_at(self) -> bool:
        if not any(self._wanted(held.sharded_param) for held in self._group.fsdp_params):
            return False
        self._follow()
        return True

    def _count(self, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and module.training and torch._C._current_graph_task_id() == -1:
            self.forwards += 1

    def _arrived(self, parameter: Tensor) -> None:
        """Deliver the part of one parameter; FSDP comes by in the order in which they lie in the message."""
        pieces = self._pieces
        if pieces is None:
            self.forwards = 0
            return
        if pieces.is_cuda:
            pieces.record_stream(torch.cuda.current_stream())
        held = self._parameters[id(parameter)]
        here, stride = parameter._local_tensor.device, held.contiguous_sharded_stride  # ty: ignore[missing-attribute]
        starts = [row * pieces.shape[1] + self._offset for row in range(len(pieces))]
        found = [pieces.as_strided(held.sharded_size, stride, start).to(here) for start in starts]
        self._offset += held.padded_sharded_param_size.numel()
        if self._offset >= pieces.shape[1]:
            self._pieces, self._offset = None, 0
        if self._wanted(parameter):
            self._deliver(parameter, found, self)
        if self._pieces is None:
            self.forwards = 0


_READINGS: WeakValueDictionary[int, Reading] = WeakValueDictionary()  # FSDP holds them


def read_reductions(parameters: Iterable[Tensor], deliver: Deliver, wanted: Wanted) -> set[int]:
    """Read the reductions of FSDP2 from now on.

    Args:
        parameters: any; those that no call of fully_shard manages are left alone.
        deliver: as for `Reading`.
        wanted: as for `Reading`.

    Returns:
        Ids of the parameters whose reductions are read.

    Raises:
        InputError: a call of fully_shard whose reductions cannot be told apart.
    """
    groups = managing(parameters)
    for group in {id(group): group for group in groups.values()}.values():
        known = _READINGS.get(id(group))
        if known is not None and known._group is group:
            continue
        if "set_custom_reduce_scatter" not in vars(FSDPModule):
            raise InputError(f"torch {torch.__version__} lets nobody read what FSDP2 reduces; update it")
        try:
            _READINGS[id(group)] = Reading(group, deliver, wanted)
        except ValueError as error:
            raise InputError(
                "one fully_shard call puts its parameters on several meshes, whose reductions cannot be told apart; "
                "shard those modules by calls of their own"
            ) from error
    return set(groups)


def managing(parameters: Iterable[Tensor]) -> dict[int, Any]:
    """Return torch's account of each sharded parameter that a call of fully_shard manages.

    Args:
        parameters: any.

    Returns:
        By id of the parameter.

    Example:
        >>> managing([torch.zeros(1)])
        {}
    """
    wanted = {id(parameter) for parameter in parameters if isinstance(parameter, DTensor)}
    if not wanted:
        return {}
    known = {id(h.sharded_param): r._group for r in _READINGS.values() for h in r._group.fsdp_params}
    if wanted <= known.keys():
        return {place: known[place] for place in wanted}
    # type(), not isinstance: lazy proxies must not be woken
    groups = [thing for thing in gc.get_objects() if type(thing).__name__ == "FSDPParamGroup"]
    found = {id(held.sharded_param): group for group in groups for held in group.fsdp_params}
    return {place: group for place, group in found.items() if place in wanted}


def shard_group(group: Any) -> dist.ProcessGroup | None:
    """Return the ranks over which a call of fully_shard spreads its parameters.

    Args:
        group: torch's account of it.

    Returns:
        The group; None for one rank.
    """
    ranks = vars(group.mesh_info).get("shard_process_group")
    return ranks if ranks is not None and ranks.size() > 1 else None


def copies_group(group: Any) -> dist.ProcessGroup | None:
    """Return the ranks that hold copies of the same parts and train on other samples (the replicas of HSDP).

    Args:
        group: torch's account of a call of fully_shard.

    Returns:
        The group; None where there are none.
    """
    ranks = vars(group.mesh_info).get("replicate_process_group")
    return ranks if ranks is not None and ranks.size() > 1 else None
