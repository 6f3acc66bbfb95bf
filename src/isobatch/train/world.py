"""The processes of a job: one by default, torch.distributed's where it is initialised."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.average import ObservedMean


@dataclass(frozen=True)
class World:
    """Rank and size of the job.

    Args:
        rank: of this process.
        size: processes.
        ranks: the group they form, where it is not that of the whole job.
    """

    rank: int = 0
    size: int = 1
    ranks: dist.ProcessGroup | None = None

    @classmethod
    def current(cls) -> "World":
        """Return the world of the default process group, or a world of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group over which gradients are averaged, None for one process."""
        return (self.ranks or dist.group.WORLD) if self.size > 1 else None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped for data-parallel training, or itself in a world of one."""
        return DistributedDataParallel(model, process_group=self.group) if self.size > 1 else model

    @property
    def place(self) -> torch.device:
        """Where the group sends numbers from: NCCL knows tensors of its device alone."""
        on_gpu = self.size > 1 and dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def total(self, values: list[float]) -> list[float]:
        """Return sums over all ranks.

        Args:
            values: this rank's.

        Returns:
            The sums, the same on every rank.
        """
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.place)
        dist.all_reduce(tensor, group=self.group)
        return tensor.tolist()

    def pool(self, mean: ObservedMean) -> None:
        """Let a running mean count what every rank observed.

        Args:
            mean: with what this rank collected; ranks that collected nothing take part.
        """
        if self.size == 1:
            return
        own = torch.zeros(mean.value.numel() + 1, dtype=torch.float64, device=mean.value.device)
        if mean.total is not None:
            own[:-1], own[-1] = mean.total.flatten(), mean.count
        dist.all_reduce(own, group=self.group)
        mean.total, mean.count = own[:-1].view(mean.value.shape), float(own[-1])
