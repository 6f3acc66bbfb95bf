"""What is checked: a trainer with an update that takes a batch and a number of parts."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isobatch.data import SampleOrder
from isobatch.errors import InputError, IsobatchError
from isobatch.gradients import mapped, world_size
from isobatch.plan import Recipe
from isobatch.tasks import Metric, Run, device_of
from isobatch.tasks.finding import told
from isobatch.train import Trainer

PLAIN = Recipe.parse(
    {
        "batch": {"size": 8},
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
        "schedule": {"length": "8000 samples", "warmup": "80 samples"},
        "ema": {"half_life": "80 samples"},
    }
)
"""Settings that a make is given where no recipe is."""
Metrics = Callable[[nn.Module], Mapping[str, float]]


class Steps(Protocol):
    """Who is told where an update begins and ends."""

    def begin(self) -> None:
        """Note that an update begins."""
        ...

    def end(self, reported: Any = None) -> None:
        """Note that an update is over.

        Args:
            reported: the loss that the trainer reports for it.
        """
        ...

    def report(self, loss: Any) -> None:
        """Note a loss that is reported after its update.

        Args:
            loss: a number or a tensor.
        """
        ...

    def watch(self, **roots: Any) -> None:
        """Add what comes into being late.

        Args:
            **roots: name -> object.
        """
        ...


class Subject:
    """A trainer to check: its model, its samples, and the update as it stands in your code.

    Args:
        model: what is trained, wrapped or bare.
        update: (batch, parts) -> the loss as your trainer reports it, or None. One optimizer step from `parts`
            micro-batches; sizes may differ where `parts` does not divide the batch.
        samples: tensors with a common first dimension in any nest (tuple, dict), or an object whose
            `samples[indices]` gives a batch.
        metrics: (model) -> held-out metrics by name, for `verify run`.
        declared: what kind each metric is, for `verify run`.
        **watched: what else is compared: optimizer, scheduler, scaler, average. What the update itself reaches
            (its closure, its object) is found without being named.

    Example:
        >>> x = torch.randn(16, 3)
        >>> net = nn.Linear(3, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> def update(batch, parts):
        ...     total = 0.0
        ...     for piece in pieces(batch, parts):
        ...         loss = net(piece).square().mean() * len(piece) / len(batch)
        ...         loss.backward()
        ...         total += loss.item()
        ...     sgd.step()
        ...     sgd.zero_grad()
        ...     return total
        >>> Subject(net, update, x).rows()
        16
    """

    clips = False
    """Whether the trainer clips gradients by the norm that a recipe states."""

    def __init__(
        self,
        model: nn.Module,
        update: Callable[..., Any],
        samples: Any,
        *,
        metrics: Metrics | None = None,
        declared: Mapping[str, Metric] | None = None,
        **watched: Any,
    ):
        self.model = model
        self.update = update
        self.samples = samples
        self.measure = metrics
        self.declared: Mapping[str, Metric] = declared or {}
        self.watched = watched

    @property
    def software(self) -> str:
        """What trains, with its version."""
        return f"{type(self).__name__} on torch {torch.__version__}"

    def prepare(self, recipe: Recipe, parts: int, *, seed: int, device: str) -> None:
        """Get ready for a whole run under a recipe.

        Args:
            recipe: its numbers.
            parts: micro-batches an update.
            seed: of the initial weights.
            device: "cpu" or "cuda".

        Raises:
            InputError: the model lies on another device.
        """
        lies = device_of(self.model).type
        if lies != device:
            raise InputError(f"the model lies on {lies} and --device is {device}; make decides where it lies")
        self.open([torch.arange(recipe.batch.size)], parts)

    def fit(self, updates: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Make all updates of a run.

        Args:
            updates: the samples of each.
            parts: micro-batches an update.
            steps: told where each begins and ends.
        """
        self.run(updates, parts, steps)

    def open(self, indices: Sequence[Tensor], parts: int) -> None:
        """Get ready for some updates, before anything is observed.

        Args:
            indices: the samples of each update.
            parts: how many parts an update has.
        """

    def roots(self) -> dict[str, Any]:
        """Return what is looked through for optimizers, averages and other state.

        Returns:
            Name -> object.
        """
        return {**self.watched, "update": self.update}

    def rows(self) -> int:
        """Return how many samples there are.

        Returns:
            A count.
        """
        return _rows(self.samples)

    def batch(self, indices: Tensor) -> Any:
        """Return the batch of some samples.

        Args:
            indices: int64.

        Returns:
            A nest of the samples' form.
        """
        return _taken(self.samples, indices)

    def convert(self, function: Callable[[Tensor], Tensor]) -> None:
        """Change the samples, such as to another dtype.

        Args:
            function: of a tensor.
        """
        self.samples = _changed(self.samples, function)

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Make the updates.

        Args:
            indices: the samples of each update.
            parts: micro-batches an update.
            steps: told where each begins and ends.
        """
        for rows in indices:
            batch = self.batch(_mine(rows))
            steps.begin()
            steps.end(self.update(batch, parts))


class Loop(Subject):
    """A plain loop over a loader, as it stands in your code: `train(loader, parts)`, one epoch being one update.

    Args:
        model: what is trained.
        train: (loader, parts) -> the loss as it is reported, or None. The loader yields the micro-batches of one
            update; `parts` is your accumulation number.
        samples: as in Subject, or a sequence of samples beside `collate`.
        collate: (list of samples) -> batch, for a sequence of samples; None keeps tensors as they are.
        **more: metrics, declared and what else is compared, as in Subject.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[list[Any], int], Any],
        samples: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        **more: Any,
    ):
        super().__init__(model, train, samples, **more)
        self.collate = collate

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Make the updates, each an epoch of the loop.

        Args:
            indices: the samples of each update.
            parts: micro-batches an update.
            steps: told where each begins and ends.
        """
        for whole in indices:
            rows = _mine(whole)
            size = -(-len(rows) // parts)
            if self.collate is None:
                loader = [self.batch(one) for one in rows.split(size)]
            else:
                loader = [self.collate([self.samples[int(i)] for i in one]) for one in rows.split(size)]
            steps.begin()
            steps.end(self.update(loader, parts))


class TaskLoop(Subject):
    """A task's run in the loop of this package, under a recipe.

    Args:
        run: data, model and loss.
        recipe: optimizer, average, clipping and what else its numbers say; the batch is the check's.

    Raises:
        InputError: a recipe that counts tokens.
    """

    def __init__(self, run: Run, recipe: Recipe):
        super().__init__(run.model, run.step, run.samples)
        if recipe.batch.unit != "samples":
            raise InputError(f"batch.unit={recipe.batch.unit!r}: the same samples are compared; count samples")
        self.task, self.recipe = run, recipe

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Make the updates, each a step of the loop.

        Args:
            indices: the samples of each update.
            parts: micro-batches an update.
            steps: told where each begins and ends.
        """
        size = len(indices[0])
        micro = -(-size // (parts * world_size()))
        batch = self.recipe.batch.model_copy(
            update={"size": size, "micro": micro, "devices": 1, "schedule": None, "adaptive": None}
        )
        task = replace(self.task, samples=_InOrder(self.samples, torch.cat(list(indices))))
        trainer = Trainer(task, self.recipe.model_copy(update={"batch": batch}))
        steps.watch(optimizer=trainer.optimizer, average=trainer.average, clock=trainer.clock)
        for _ in indices:
            steps.begin()
            steps.end(trainer.step().loss)


class _InOrder:
    """Samples as the loop's own order of them gives the rows that are wanted, one after the other."""

    def __init__(self, samples: Any, rows: Tensor):
        self.samples = samples
        self.place = torch.empty_like(rows)
        self.place[SampleOrder(len(rows), 0).indices(0, len(rows))] = rows

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, indices: Tensor) -> Any:
        return self.samples[self.place[indices]]


def pieces(batch: Any, parts: int) -> list[Any]:
    """Return a batch in parts, the first ones a row larger where it does not divide.

    Args:
        batch: tensors with a common first dimension, in any nest.
        parts: how many.

    Returns:
        Batches of the same form.

    Example:
        >>> [len(piece) for piece in pieces(torch.zeros(8, 2), 3)]
        [3, 3, 2]
    """
    rows = torch.arange(_rows(batch)).tensor_split(parts)
    return [_taken(batch, one) for one in rows]


def made(make: Callable[..., Any], seed: int) -> Subject:
    """Return a fresh trainer.

    Args:
        make: of no argument, of (seed), or of (settings, seed) as a task's; settings are PLAIN.
        seed: of the random numbers while it is made.

    Returns:
        The subject; an object with `model`, `samples` and `update(batch, parts)` becomes one, and so does a task's run
        without an update, in this package's own loop.

    Raises:
        InputError: make raised, or returned something else.
    """
    takes = _takes(make)
    torch.manual_seed(seed)
    try:
        given = make(*((), (seed,), (PLAIN, seed))[takes])
    except IsobatchError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"make raised {told(error)}") from error
    if isinstance(given, Subject):
        return given
    if isinstance(given, Run) and not callable(getattr(given, "update", None)):
        return TaskLoop(given, PLAIN)
    model, update, samples = (getattr(given, name, None) for name in ("model", "update", "samples"))
    if not isinstance(model, nn.Module) or not callable(update) or samples is None:
        raise InputError(
            f"make returned {type(given).__name__}; it must return isobatch.split.Subject, a wrapper, or an object "
            "with model, samples and update(batch, parts)"
        )
    return Subject(model, update, samples)


def _takes(make: Callable[..., Any]) -> int:
    try:
        wanted = [p for p in inspect.signature(make).parameters.values()
                  if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    except (TypeError, ValueError):
        return 0
    if len(wanted) > 2:
        raise InputError(f"make takes {len(wanted)} arguments; it must take none, (seed), or (settings, seed)")
    return len(wanted)


def _mine(rows: Tensor) -> Tensor:
    """Return this process's part of the samples of an update."""
    if world_size() == 1:
        return rows
    return rows.tensor_split(world_size())[torch.distributed.get_rank()]


def _rows(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    found: list[int] = []
    mapped(batch, lambda tensor: found.append(len(tensor)) or tensor)
    if found and len(set(found)) == 1:
        return found[0]
    if not found:
        try:
            return len(batch)
        except TypeError:
            pass
    raise InputError(f"samples of lengths {sorted(set(found))} must share one first dimension")


def _taken(samples: Any, indices: Tensor) -> Any:
    if isinstance(samples, Tensor | tuple | list | Mapping) or not callable(getattr(samples, "__getitem__", None)):
        return mapped(samples, lambda tensor: tensor[indices])
    return samples[indices]


def _changed(samples: Any, function: Callable[[Tensor], Tensor]) -> Any:
    tensors = getattr(samples, "tensors", None)
    if isinstance(tensors, tuple):  # as TensorSamples and TensorDataset hold them
        samples = copy(samples)  # what outlives the trainer stays as it is
        samples.tensors = tuple(function(tensor) for tensor in tensors)
        return samples
    return mapped(samples, function)
