"""What every task is: a function make(settings, seed) -> Run."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from isobatch.errors import InputError, IsobatchError
from isobatch.plan import Recipe
from isobatch.renamed import OldAttribute, old_arguments
from isobatch.tasks.asked import Asked
from isobatch.tasks.finding import WHOLE, MakeError, find, told
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.metric import Metric


class Samples(Sized, Protocol):
    """Training samples: `len(samples)` and a batch for a tensor of indices."""

    def __getitem__(self, indices: torch.Tensor, /) -> Any:
        """Return the batch of the samples at `indices`, a tensor of int64."""
        ...


@old_arguments(teaching="needs")
@dataclass
class Run:
    """One training run before its first step: data, model, loss and metric.

    Args:
        model: the weights to train, initialised from the seed.
        samples: the training samples.
        loss: (model, batch) -> mean loss over the batch, a scalar tensor with gradient; (model, batch, context) with
            `needs`.
        metrics: (model) -> held-out metrics by name.
        facts: what belongs beside every result, such as the hash of a corpus.
        needs: what the loss asks of the loop (the average as teacher, the clock), None for a plain loss.
        counts: (batch) -> how many terms the mean of its loss runs over, where these are not its samples: unmasked
            tokens of ragged text. Micro-batches are weighted by it, so that any split gives the batch's own mean.
        lengths: tokens of each sample, for recipes whose clock counts tokens (batch.unit); the loss is then the mean
            over them, unless `counts` says otherwise. None where a sample has batch.sequence of them.
        reads: names of [curves] and [spans] of the recipe that the task itself follows; the loop refuses others.
        declared: what kind each metric is and which one is judged; a verdict needs it, training does not.

    Example:
        >>> x = torch.arange(6.0)
        >>> data = TensorSamples(x[:, None])
        >>> run = Run(nn.Linear(1, 1), data, lambda net, b: net(b[0]).square().mean(), lambda net: {"loss": 1.0})
        >>> run.step(run.samples[torch.tensor([0])]).item() >= 0
        True
    """

    model: nn.Module
    samples: Samples
    loss: Callable[..., torch.Tensor]
    metrics: Callable[[nn.Module], Mapping[str, float]]
    facts: dict[str, str] = field(default_factory=dict)
    needs: LossNeeds | None = None
    counts: Callable[[Any], float] | None = None
    declared: Mapping[str, Metric] = field(default_factory=dict)
    lengths: Sequence[int] | torch.Tensor | None = None
    reads: tuple[str, ...] = ()

    def step(self, batch: Any, context: LossContext | None = None) -> torch.Tensor:
        """Return the mean loss of one (micro-)batch, ready for backward.

        Args:
            batch: what `samples[indices]` gave.
            context: teacher and clock, for a run with `needs`.

        Returns:
            A scalar tensor.

        Raises:
            InputError: the loss needs a context and there is none.
        """
        if self.needs is None:
            return self.loss(self.model, batch)
        if context is None:
            raise InputError("this task's loss needs a teacher or the clock; train it with isobatch.train.Trainer")
        return self.loss(self.model, batch, context)

    def evaluate(self) -> dict[str, float]:
        """Return the held-out metrics of the model's present weights.

        Returns:
            Metrics by name; the loop asks once with the raw and once with the averaged weights in place.

        Raises:
            InputError: something else than numbers by name.
        """
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return _numbers(self.metrics(self.model))
        finally:
            self.model.train(training)

    teaching = OldAttribute("needs")


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, Mapping):
        raise InputError(f'the task\'s metrics are {type(found).__name__}; they must be a dict such as {{"loss": 0.7}}')
    made: dict[str, float] = {}
    for name, value in found.items():
        if not isinstance(name, str):
            raise InputError(f"the task names a metric {name!r}; names must be text")
        try:
            made[name] = float(value)
        except OverflowError:  # a whole number that no float holds
            made[name] = math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"metric {name!r} is {type(value).__name__}, {value!r:.40}; it must be one number"
            ) from None
    return made


Make = Callable[[Recipe, int], Run]
"""A task: recipe and seed of the initial weights -> a run."""


class TensorSamples:
    """Samples held as tensors with a common first dimension.

    Args:
        *tensors: one tensor a field, all of the same length.

    Raises:
        InputError: no tensors, or lengths that differ.

    Example:
        >>> TensorSamples(torch.arange(4), torch.arange(4))[torch.tensor([1, 3])]
        (tensor([1, 3]), tensor([1, 3]))
    """

    def __init__(self, *tensors: torch.Tensor):
        if len({len(tensor) for tensor in tensors}) != 1:
            raise InputError(f"tensors of lengths {[len(t) for t in tensors]} must share one first dimension")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)

    def to(self, device: torch.device) -> None:
        """Move the tensors to a device.

        Args:
            device: where batches are wanted.
        """
        self.tensors = tuple(tensor.to(device) for tensor in self.tensors)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter lies, for the held-out data of a metric.

    Args:
        model: with parameters.

    Returns:
        The device.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    return next(model.parameters()).device


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Give the block its own random numbers, and leave everybody else's alone.

    Args:
        seed: of torch's generator inside the block.

    Yields:
        None.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_run(settings: Recipe, seed: int) -> Run:
    """Make a recipe's run: same seed, same initial weights.

    Args:
        settings: the recipe; its task, data_size and options are read.
        seed: of the initial weights.

    Returns:
        The run before its first step.

    Raises:
        InputError: no task in the recipe, one that cannot be imported or fails, an option that it does not read, or
            another data size than the recipe's.
    """
    return checked_run(make_any(settings, seed), settings)


def checked_run(run: Any, settings: Recipe) -> Run:
    """Return what a task made, where it is a run of the recipe's data.

    Args:
        run: what the task's function returned.
        settings: the recipe.

    Returns:
        The run.

    Raises:
        InputError: something else, or another data size than the recipe's.
    """
    if not isinstance(run, Run):
        raise InputError(f"task={settings.task!r} returned {type(run).__name__}; it must return isobatch.tasks.Run")
    held, unit = _epoch(run, settings), settings.batch.unit
    if settings.data_size is not None and held not in (None, settings.data_size):
        raise InputError(
            f"data_size={settings.data_size} but task {settings.task!r} has {held} {unit}; correct it in the recipe"
        )
    return run


def make_any(settings: Recipe, seed: int) -> Any:
    """Return what a recipe's task makes: a run, or a trainer of its own.

    Args:
        settings: the recipe; its task, data_size and options are read.
        seed: of the initial weights.

    Returns:
        What the task's function returned.

    Raises:
        InputError: no task in the recipe, one that cannot be imported or fails, or an option that it does not read.
    """
    if settings.task is None:
        raise InputError('the recipe names no task; add task = "digits" or task = "my_pkg.mod:make"')
    options = Asked(settings.options)
    found = _made(settings.task, settings.model_copy(update={"options": options}), seed)
    options.refuse_unread(settings.task)
    return found


def _epoch(run: Run, settings: Recipe) -> int | None:
    """Return what an epoch counts on the recipe's clock, None where nobody says it."""
    if settings.batch.unit == "samples":
        return len(run.samples)
    if run.lengths is not None:
        return int(torch.as_tensor(run.lengths).sum())
    return None if settings.batch.sequence is None else len(run.samples) * settings.batch.sequence


def _made(task: str, settings: Recipe, seed: int) -> Any:
    make = find(task)
    if ":" not in task:
        return make(settings, seed)
    try:
        return make(settings, seed)
    except IsobatchError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function does
        raise MakeError(f"task={task!r} failed to make its run: {told(error)}; {WHOLE}") from error
