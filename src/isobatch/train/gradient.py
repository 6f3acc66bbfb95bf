"""The gradient of one global batch: micro-batches weighted by their samples, smaller ones when memory runs out."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.data import Drawing, SampleOrder
from isobatch.errors import InputError
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.plan import Recipe
from isobatch.tasks import LossContext, Run
from isobatch.train.noise_monitor import NoiseMonitor
from isobatch.train.sample_clock import SampleClock
from isobatch.train.world import Device, World

_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class ForwardPass:
    """One way in which every micro-batch of a step goes through the model.

    Args:
        weight: of its mean loss in the loss of the step.
        batch: (samples, place of the first one in this rank's part) -> what the loss is asked for.
        around: context of the forward pass.
    """

    weight: float
    batch: Callable[[Any, int], Any]
    around: Callable[[], AbstractContextManager[None]] = lambda: _NOTHING


PLAIN = (ForwardPass(1.0, lambda batch, _: batch),)
"""A plain step takes one pass."""


class Accumulator:
    """Run the backward passes of a batch, so that `.grad` ends as the gradient of the batch's mean loss.

    Each pass weighs its mean loss by n/B, times the world size where DDP divides by it; gradients travel with the last
    pass only. A pass that runs out of memory is halved and repeated, for good: the global batch stays. Ranks must run
    out of memory together, or the others would wait in the exchange: each larger size of a pass is tried on every rank,
    without exchange, before its first use.

    Args:
        run: the task, its model wrapped for the world.
        optimizer: whose gradients are cleared first; an invariant one is told of every chunk.
        world: the processes of the job.
        device: where passes run, the CPU unless given.
        monitor: says how a measured step is cut.
        clock: told of every pass; one that drives nothing unless given.
        drawing: says what samples count, where that is their tokens: sizes are then in tokens, and passes weigh by
            them.
    """

    def __init__(
        self,
        run: Run,
        optimizer: torch.optim.Optimizer,
        world: World,
        device: Device | None = None,
        monitor: NoiseMonitor | None = None,
        clock: SampleClock | None = None,
        drawing: Drawing | None = None,
    ):
        self.tokens = drawing if drawing is not None and drawing.tokens is not None else None
        self.clock = clock or SampleClock(noise=monitor, optimizer=optimizer, world=world)
        self.run_, self.optimizer, self.world, self.monitor = run, optimizer, world, monitor
        self.device = device or Device()
        if run.counts is not None and (isinstance(optimizer, InvariantOptimizer) or monitor is not None):
            raise InputError(
                "Run(counts=...): counts weighs micro-batches by something else than samples, which an invariant "
                "optimizer and the noise scale need; use an optimizer that is not invariant, and no [noise] or "
                "batch.adaptive"
            )
        bare = run.model.module if isinstance(run.model, DistributedDataParallel) else run.model
        self.alone = replace(run, model=bare)
        self.limit: int | None = None
        self._placed = self.device.holds(run.samples)
        # samples of a pass that every rank has had memory for; shards are exchanged in every pass, so none can be tried
        self.fits = 0 if world.size > 1 and not world.shards else math.inf
        self.passes: Sequence[ForwardPass] = PLAIN
        self.factor = 1.0  # times the gradient, not the loss

    def run(
        self,
        indices: torch.Tensor,
        size: int,
        most: int,
        statistics: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
        context: LossContext | None = None,
    ) -> float:
        """Accumulate the gradient of this rank's part of a batch.

        Args:
            indices: samples of this rank.
            size: samples of the global batch.
            most: samples of one pass; `limit` after memory ran out.
            statistics: buffers that a pass moves, each with its value before; put back where a pass is repeated.
            context: teacher and clock, with the places of these samples.

        Returns:
            Mean loss of the global batch.

        Raises:
            InputError: one sample alone does not fit into memory.
        """
        most = min(most, -(-size // self.world.size))
        while True:
            chunk = most if self.limit is None else min(most, self.limit)
            trial, state = chunk > self.fits, torch.get_rng_state()
            loss = self._fitting(self._first(indices, chunk) if trial else indices, size, chunk, context, trial)
            if loss is not None and not trial:
                return loss
            self.clock.discard()
            torch.set_rng_state(state)
            for buffer, before in statistics:
                buffer.copy_(before)
            if loss is not None:
                self.fits = chunk
            elif chunk > 1:
                self.limit = chunk // 2
            else:
                raise InputError("one sample does not fit into memory; use a smaller model or device")

    def _fitting(
        self, indices: torch.Tensor, size: int, most: int, context: LossContext | None, trial: bool
    ) -> float | None:
        """Return the loss, None where memory ran out: on this rank, or in a trial on any rank."""
        loss, devices = None, [self.device.name] if self.device.name.startswith("cuda") else []
        try:
            if trial:
                with torch.random.fork_rng(devices):
                    loss = self._passes(self.alone, indices, size, most, context)
            else:
                loss = self.world.total([self._passes(self.run_, indices, size, most, context)])[0]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error) or (self.world.size > 1 and not trial):
                raise
        return None if trial and self.world.total([float(loss is None)])[0] else loss

    def _parts(self, run: Run, indices: torch.Tensor, size: int, most: int) -> list[tuple[int, torch.Tensor, float]]:
        """Return this rank's micro-batches: first place, samples, and their share of the global batch's mean."""
        parts = list(self._cut(indices, most))
        if run.counts is None:
            found = [(start, part, self._count(part) / size) for start, part in parts]
        else:
            own = [float(run.counts(run.samples[part])) for _, part in parts]
            total = self.world.total([sum(own)])[0]
            # a mean over nothing is not a number, whatever it is multiplied with
            found = [(*place, count / total) for place, count in zip(parts, own, strict=True) if count]
        if self.world.shards:  # every pass is an exchange, so every rank makes as many
            found += [(0, _stand_in(run), 0.0)] * (self.world.largest(len(found)) - len(found))
        # a rank without samples still takes part in the exchange, with weight 0
        return found if found or self.world.size == 1 else [(0, _stand_in(run), 0.0)]

    def _cut(self, indices: torch.Tensor, most: int) -> Iterator[tuple[int, torch.Tensor]]:
        if self.tokens is not None:
            return self.tokens.passes(indices, most)
        if 0 < len(indices) <= most:
            return iter([(0, indices)])
        return ((place * most, part) for place, part in enumerate(indices.split(most)) if len(part))

    def _first(self, indices: torch.Tensor, most: int) -> torch.Tensor:
        """Return the first pass, the largest that a trial asks for."""
        return next((part for _, part in self._cut(indices, most)), indices)

    def _sizes(self, part: torch.Tensor) -> list[int]:
        return [1] * len(part) if self.tokens is None else self.tokens.sizes(part)

    def _count(self, part: torch.Tensor) -> int:
        return len(part) if self.tokens is None else sum(self.tokens.sizes(part))

    def _passes(self, run: Run, indices: torch.Tensor, size: int, most: int, context: LossContext | None) -> float:
        if self.monitor is not None:
            most = self.monitor.passes(self._count(indices), most)
        clear_gradients(self.optimizer)
        total = 0.0
        _forget(context)
        parts = self._parts(run, indices, size, most)
        passes = [(*part, one) for one in self.passes for part in parts]
        for number, (start, part, whole, one) in enumerate(passes):
            here = context
            if context is not None and whole:
                here = replace(context, places=context.places[start:][: len(part)])
            share, held = one.weight * whole, self._sizes(part) if whole else []
            with self._quiet(run.model, number + 1 < len(passes)), _NOTHING if whole else _statistics_held(run.model):
                with self.device.autocast(), one.around():
                    batch = run.samples[part]
                    if not self._placed:
                        batch = self.device.batch(batch)
                    loss = run.step(one.batch(batch, start), here)
                weight = share * self.world.size * self.factor
                with self.clock.micro(len(held), self._weights(held)):
                    (loss if weight == 1 else loss * weight).backward()
            total += loss.item() * share
        if not any(whole for _, _, whole in parts):
            _forget(context)
        return total

    def _weights(self, held: list[int]) -> int | list[int]:
        """Return what a pass weighs: its samples, or the tokens of each of them."""
        return len(held) if self.tokens is None or not held else held

    def _quiet(self, model: nn.Module, more: bool) -> AbstractContextManager[None]:
        return model.no_sync() if more and isinstance(model, DistributedDataParallel) else _NOTHING


def make_drawing(run: Run, recipe: Recipe, order: SampleOrder) -> Drawing:
    """Return the stream of a run's samples on the recipe's clock.

    Args:
        run: where the clock counts tokens, its lengths say those of each sample; batch.sequence for all otherwise.
        recipe: its batch.
        order: of the samples.

    Returns:
        The stream.

    Raises:
        InputError: samples whose tokens nobody says, another number of lengths than of samples, or a batch below the
            longest sample.
    """
    batch, count = recipe.batch, len(run.samples)
    if batch.unit == "samples":
        return Drawing(order)
    if run.lengths is None and batch.sequence is None:
        raise InputError(
            f"batch.unit = 'tokens', and nobody says how many tokens a sample of task {recipe.task!r} has; give "
            "batch.sequence, or Run(lengths=...) in the task"
        )
    lengths = torch.full((count,), batch.sequence or 1) if run.lengths is None else torch.as_tensor(run.lengths)
    if lengths.shape != (count,):
        raise InputError(f"Run(lengths=...) has shape {tuple(lengths.shape)}; give one for each of {count} samples")
    drawing = Drawing(order, lengths.to(torch.int64))
    if drawing.longest > batch.size:
        raise InputError(
            f"batch.size={batch.size} tokens is below the longest sample of task {recipe.task!r}, {drawing.longest}; "
            "raise it, or cut the samples"
        )
    return drawing


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Let go of all gradients, as `optimizer.zero_grad()`, which is called where it is another than torch's own.

    Args:
        optimizer: whose parameters end without `.grad`.
    """
    own = vars(optimizer).get("zero_grad") or type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad
    if own:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:  # without the profiler's record and the tables of the other way to clear
        for parameter in group["params"]:
            parameter.grad = None


def _stand_in(run: Run) -> torch.Tensor:
    """Return a sample whose loss is a number."""
    places = (torch.tensor([place]) for place in range(len(run.samples)))
    return next((place for place in places if run.counts is None or run.counts(run.samples[place])), torch.tensor([0]))


@contextmanager
def _statistics_held(model: nn.Module) -> Generator[None]:
    """Keep a stand-in's one sample out of statistics over the batch, which it does not have.

    Synchronised norms take part as they are, or the other ranks would wait.

    Args:
        model: of the run.

    Yields:
        None.
    """
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    norms = [m for m in model.modules() if isinstance(m, kinds) and not isinstance(m, nn.SyncBatchNorm)]
    held = [norm for norm in norms if norm.training]
    bare = [norm for norm in norms if norm.running_mean is None and isinstance(norm, kinds[0])]
    example = next(model.parameters())
    for norm in held:
        norm.training = False
    for norm in bare:
        norm.running_mean, norm.running_var = example.new_zeros(norm.num_features), example.new_ones(norm.num_features)
    try:
        yield
    finally:
        for norm in held:
            norm.training = True
        for norm in bare:
            norm.running_mean = norm.running_var = None


def _forget(context: LossContext | None) -> None:
    for mean in context.means.values() if context is not None else ():
        mean.discard()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU.

    Args:
        error: what was raised.

    Returns:
        Whether a smaller pass could help.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
