"""Trainers of frameworks as subjects: Accelerate and Lightning."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from isobatch.gradients import mapped, world_size
from isobatch.installed import need
from isobatch.plan import Recipe
from isobatch.split.target import Metrics, Steps, Subject
from isobatch.tasks import Metric


class Rows(Dataset[Any]):
    """Samples one by one, out of tensors with a common first dimension or of a sequence.

    Args:
        samples: tensors in a nest, or a sequence of samples.
        rows: which, in order.
    """

    def __init__(self, samples: Any, rows: Tensor):
        self.samples, self.rows = samples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = int(self.rows[index])
        if isinstance(self.samples, list | Dataset):
            return self.samples[row]
        return mapped(self.samples, lambda tensor: tensor[row])


class AccelerateLoop(Subject):
    """A training loop on Accelerate, one epoch being one update.

    Args:
        model: bare; it is prepared as the user's script does it.
        train: (accelerator, loader, model=, optimizer=, ...) -> the loss as it is reported, or None: the loop as it
            stands, with everything prepared.
        samples: tensors in a nest, or a list of samples beside `collate`.
        collate: of the loader.
        options: more arguments of Accelerator.
        metrics: (model) -> held-out metrics by name, for `verify run`.
        declared: what kind each metric is, for `verify run`.
        **prepared: optimizer, scheduler and what else the script prepares, by the names that `train` takes.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[..., Any],
        samples: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        options: dict[str, Any] | None = None,
        *,
        metrics: Metrics | None = None,
        declared: Mapping[str, Metric] | None = None,
        **prepared: Any,
    ):
        super().__init__(model, train, samples, metrics=metrics, declared=declared, **prepared)
        self.collate, self.options, self.device = collate, options or {}, "cpu"

    @property
    def software(self) -> str:
        """What trains, with its version."""
        return f"accelerate {version('accelerate')}"

    def prepare(self, recipe: Recipe, parts: int, *, seed: int, device: str) -> None:
        """Get ready for a whole run under a recipe.

        Args:
            recipe: its numbers.
            parts: micro-batches an update.
            seed: of the initial weights.
            device: "cpu" or "cuda".
        """
        self.device = device
        self.open([torch.arange(recipe.batch.size)], parts)

    def open(self, indices: Sequence[Tensor], parts: int) -> None:
        """Make the accelerator and prepare model, optimizer and scheduler.

        Args:
            indices: the samples of each update.
            parts: the accumulation number.
        """
        need("accelerate")
        forget()
        self.accelerator = import_module("accelerate").Accelerator(
            cpu=self.device == "cpu", gradient_accumulation_steps=parts, **self.options
        )
        names = ["model", *self.watched]
        found = self.accelerator.prepare(self.model, *self.watched.values())
        self.prepared = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    def roots(self) -> dict[str, Any]:
        """Return what is looked through.

        Returns:
            What was given, bare, and the scaler.
        """
        return {**self.watched, "scaler": self.accelerator.scaler}

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Make the updates, each an epoch over a prepared loader.

        Args:
            indices: the samples of each update.
            parts: micro-batches an update.
            steps: told where each begins and ends.
        """
        for rows in indices:
            size = -(-len(rows) // (parts * world_size()))
            loader = self.accelerator.prepare(
                DataLoader(Rows(self.samples, rows), batch_size=size, collate_fn=self.collate)
            )
            steps.begin()
            steps.end(self.update(self.accelerator, loader, **self.prepared))


class Epochs:
    """The micro-batches of one update after the other: every epoch gives the next one.

    Args:
        updates: micro-batches of each update.
    """

    def __init__(self, updates: list[list[Any]]):
        self.updates, self.place = updates, -1

    def __len__(self) -> int:
        return len(self.updates[0])

    def __iter__(self) -> Iterator[Any]:
        self.place += 1
        return iter(self.updates[min(self.place, len(self.updates) - 1)])


class Stream:
    """The micro-batches of all updates of a run as one epoch, made when they are wanted.

    Args:
        updates: rows of each update.
        parts: micro-batches an update.
        batch: rows -> micro-batch.
    """

    def __init__(self, updates: Sequence[Tensor], parts: int, batch: Callable[[Tensor], Any]):
        self.updates, self.parts, self.batch = updates, parts, batch

    def __len__(self) -> int:
        return len(self.updates) * self.parts

    def __iter__(self) -> Iterator[Any]:
        for rows in self.updates:
            for part in rows.tensor_split(self.parts):
                yield self.batch(part)


class LightningFit(Subject):
    """A LightningModule in a Trainer, one epoch being one update.

    Args:
        module: the LightningModule.
        samples: tensors in a nest, or a list of samples beside `collate`.
        collate: of the loader.
        reported: name under which the module logs its loss; the mean over the update is compared.
        callbacks: of the Trainer; what they hold, such as an average, is compared.
        metrics: (module) -> held-out metrics by name, for `verify run`.
        declared: what kind each metric is, for `verify run`.
        **settings: of the Trainer, such as gradient_clip_val or precision.
    """

    clips = True

    def __init__(
        self,
        module: nn.Module,
        samples: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        reported: str = "train_loss",
        callbacks: Sequence[Any] = (),
        *,
        metrics: Metrics | None = None,
        declared: Mapping[str, Metric] | None = None,
        **settings: Any,
    ):
        super().__init__(module, nothing, samples, metrics=metrics, declared=declared)
        self.collate, self.reported = collate or default_collate, reported
        self.callbacks, self.settings = list(callbacks), settings

    def roots(self) -> dict[str, Any]:
        """Return what is looked through.

        Returns:
            The callbacks; optimizers and schedulers are added when the fit begins.
        """
        return {"callbacks": self.callbacks}

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Fit for as many epochs as updates.

        Args:
            indices: the samples of each update.
            parts: accumulate_grad_batches.
            steps: told where each begins and ends.
        """
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        updates = []
        for rows in indices:
            mine = rows.tensor_split(world_size())[rank]
            data = Rows(self.samples, mine)
            size = -(-len(mine) // parts)
            updates.append([self.collate([data[i] for i in part.tolist()])
                            for part in torch.arange(len(mine)).split(size)])  # fmt: skip
        self._trained(Epochs(updates), steps, {"max_epochs": len(indices), "accumulate_grad_batches": parts})

    def _trained(self, loader: Any, steps: Steps, forced: dict[str, Any], *, long: bool = False) -> None:
        need("lightning")
        given: dict[str, Any] = {
            "accelerator": "cpu", "devices": world_size(), "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        }  # fmt: skip
        given |= self.settings
        given |= forced
        given["callbacks"] = [*self.callbacks, _lightning_watcher(steps, self.reported, long)]
        with _hushed("lightning"):
            trainer: Any = import_module("lightning").Trainer(**given)
            trainer.fit(self.model, train_dataloaders=loader)

    @property
    def software(self) -> str:
        """What trains, with its version."""
        return f"lightning {version('lightning')}"

    def prepare(self, recipe: Recipe, parts: int, *, seed: int, device: str) -> None:
        """Take the numbers that belong to the Trainer: clipping and device.

        Args:
            recipe: its numbers.
            parts: micro-batches an update.
            seed: of the initial weights.
            device: "cpu" or "cuda".
        """
        o = recipe.optimizer
        self.settings |= {"accelerator": "cpu" if device == "cpu" else "gpu", "devices": 1}
        self.settings |= {"gradient_clip_val": o.clip, "gradient_clip_algorithm": o.clip_by if o.clip else None}

    def fit(self, updates: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Fit for one epoch that holds all updates.

        Args:
            updates: the samples of each.
            parts: accumulate_grad_batches.
            steps: told where each begins and ends.
        """
        data = self.samples
        loader = Stream(
            updates, parts, lambda rows: self.collate([*map(Rows(data, rows).__getitem__, range(len(rows)))])
        )
        self._trained(loader, steps, {"max_epochs": 1, "accumulate_grad_batches": parts}, long=True)


@contextmanager
def _hushed(package: str) -> Generator[None]:
    """Keep a package's tips and greetings, told once a run, off stderr."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(package)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _lightning_watcher(steps: Any, reported: str, long: bool) -> Any:
    """Return a callback that tells where updates begin and end: at epochs, or in one long epoch at optimizer steps."""
    need("lightning")
    base: Any = import_module("lightning").Callback

    class Watch(base):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            schedulers = [one.scheduler for one in trainer.lr_scheduler_configs]
            plugin = trainer.strategy.precision_plugin
            steps.watch(optimizers=trainer.optimizers, schedulers=schedulers, scaler=getattr(plugin, "scaler", None))

        def begun(self) -> None:
            self.losses = []
            steps.begin()

        def ended(self) -> None:
            steps.end(sum(self.losses) / len(self.losses) if self.losses else None)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if not long:
                self.begun()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if long and batch_idx % trainer.accumulate_grad_batches == 0:
                self.begun()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if reported in trainer.callback_metrics:
                self.losses.append(float(trainer.callback_metrics[reported]))
            if long and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                self.ended()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not long:
                self.ended()

    return Watch()


def nothing(batch: Any, parts: int) -> None:
    """Make no update: the framework does.

    Args:
        batch: of samples.
        parts: micro-batches.
    """


def forget() -> None:
    """Let Accelerate forget the processes and settings of an earlier trainer."""
    need("accelerate")
    state = import_module("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()
    state.PartialState._reset_state()
