"""Where a job runs: its processes (one by default), its device and precision; nothing of it is in the recipe."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from isobatch.average import ObservedMean
from isobatch.errors import InputError
from isobatch.gradients import mapped
from isobatch.tasks import Run, TensorSamples
from isobatch.units import whole

_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class World:
    """Rank and size of the job.

    Args:
        rank: of this process.
        size: processes.
        ranks: the group they form, where it is not that of the whole job.
        shards: whether each rank holds a part of the weights (FSDP2) in place of a copy.
    """

    rank: int = 0
    size: int = 1
    ranks: dist.ProcessGroup | None = None
    shards: bool = False

    @classmethod
    def current(cls, *, shards: bool = False) -> "World":
        """Return the world of the default process group, or a world of one.

        Args:
            shards: whether the weights are sharded over it; a world of one has nothing to shard.

        Returns:
            The world.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), shards=shards and dist.get_world_size() > 1)
        return cls()

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group over which gradients are averaged, None for one process."""
        return (self.ranks or dist.group.WORLD) if self.size > 1 else None

    def shard(self, model: nn.Module, device: str = "cpu") -> None:
        """Shard a model over the ranks where this world does: the parts of its lists one by one, then the rest.

        Args:
            model: on its device, before its optimizer is made.
            device: where the group sends tensors from.
        """
        if not self.shards:
            return
        mesh = init_device_mesh(torch.device(device).type, (self.size,))
        holders: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
        for owner in reversed([m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]):
            for part in owner:
                own = list(part.parameters())
                whole = not isinstance(part, nn.Sequential | nn.ModuleList)  # a list has no forward of its own
                if whole and own and all(holders[id(parameter)] == 1 for parameter in own):
                    fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped for data-parallel training, or itself where it is sharded or alone."""
        alone = self.size == 1 or self.shards
        return model if alone else DistributedDataParallel(model, process_group=self.group)

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

    def largest(self, number: int) -> int:
        """Return the largest number of any rank.

        Args:
            number: this rank's.

        Returns:
            The same on every rank.
        """
        if self.size == 1:
            return number
        tensor = torch.tensor([number], device=self.place)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return int(tensor)

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


WORDS = ("bf16", "channels-last", "compile")


@dataclass(frozen=True)
class Device:
    """A device and how it is used.

    Args:
        name: such as "cpu", "cuda" or "cuda:1".
        bf16: run the loss under bfloat16 autocast; weights, optimizer and average stay as they are.
        channels_last: lay out images and convolutions channels-last.
        compile: compile the forward pass of student and teacher (torch.compile).
        most: samples of one forward pass that memory allows, None for no limit; a larger batch is accumulated.

    Example:
        >>> Device.parse("cpu,bf16").bf16
        True
    """

    name: str = "cpu"
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    most: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Device":
        """Read a device and its options from one word, such as "cuda,bf16,channels-last,compile,most=4096".

        Args:
            text: device, then options, with commas between.

        Returns:
            The device.

        Raises:
            InputError: an unknown option, or a device that is not there.
        """
        name, *options = (part.strip() for part in text.split(","))
        limits = [option.removeprefix("most=") for option in options if option.startswith("most=")]
        unknown = [option for option in options if option not in WORDS and not option.startswith("most=")]
        if unknown:
            raise InputError(f"device option {unknown[0]!r} must be one of {', '.join(WORDS)}, most=4096")
        if limits and not limits[-1].isdecimal():
            raise InputError(f"device option most={limits[-1]} must be a whole number of samples")
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device={name!r} cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
        most = whole("device option most", int(limits[-1])) if limits else None
        return cls(name, *(word in options for word in WORDS), most=most)

    def place(self, run: Run) -> None:
        """Move a run's model, its samples where they are tensors, and its running means to the device.

        Args:
            run: before its first step; changed in place.
        """
        target = torch.device(self.name)
        run.model.to(target)
        if self.channels_last:
            run.model.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        if isinstance(run.samples, TensorSamples):
            run.samples.to(target)
        for mean in run.needs.means.values() if run.needs is not None else ():
            mean.to(target)
        if self.compile:
            run.model.compile()

    def holds(self, samples: object) -> bool:
        """Return whether batches of these samples are on the device already.

        Args:
            samples: of a run.

        Returns:
            Whether they are tensors that lie there.
        """
        return type(samples) is TensorSamples and all(t.device == self._target for t in samples.tensors)

    def batch(self, batch: Any) -> Any:
        """Return a batch on the device; tensors are found in tuples, lists, mappings and dataclasses.

        Args:
            batch: what the samples gave.

        Returns:
            The same structure.
        """
        return mapped(
            batch,
            lambda tensor: tensor.to(self._target, non_blocking=True),
            packed=lambda sequence: sequence.to(self._target, non_blocking=True),  # ty: ignore[invalid-argument-type]
        )

    @cached_property
    def _target(self) -> torch.device:
        return torch.device(self.name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a loss runs."""
        if not self.bf16:
            return _NOTHING
        return torch.autocast(torch.device(self.name).type, dtype=torch.bfloat16)

    def teacher(self, module: nn.Module) -> nn.Module:
        """Return a teacher, compiled where the student is.

        Args:
            module: the averaged weights as a module.

        Returns:
            The same module.
        """
        if self.compile and module._compiled_call_impl is None:
            module.compile()
        return module
