"""Trainers of frameworks as subjects: Accelerate, Lightning, Hugging Face and TRL."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from isobatch.gradients import mapped, world_size
from isobatch.installed import need
from isobatch.split.target import Steps, Subject

PLENTY = 1 << 30


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
        **prepared: optimizer, scheduler and what else the script prepares, by the names that `train` takes.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[..., Any],
        samples: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        options: dict[str, Any] | None = None,
        **prepared: Any,
    ):
        super().__init__(model, train, samples, **prepared)
        self.collate, self.options = collate, options or {}

    def open(self, indices: Sequence[Tensor], parts: int) -> None:
        """Make the accelerator and prepare model, optimizer and scheduler.

        Args:
            indices: the samples of each update.
            parts: the accumulation number.
        """
        need("accelerate")
        _forget()
        self.accelerator = import_module("accelerate").Accelerator(
            cpu=True, gradient_accumulation_steps=parts, **self.options
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


class LightningFit(Subject):
    """A LightningModule in a Trainer, one epoch being one update.

    Args:
        module: the LightningModule.
        samples: tensors in a nest, or a list of samples beside `collate`.
        collate: of the loader.
        reported: name under which the module logs its loss; the mean over the update is compared.
        callbacks: of the Trainer; what they hold, such as an average, is compared.
        **settings: of the Trainer, such as gradient_clip_val or precision.
    """

    def __init__(
        self,
        module: nn.Module,
        samples: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        reported: str = "train_loss",
        callbacks: Sequence[Any] = (),
        **settings: Any,
    ):
        super().__init__(module, _nothing, samples)
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
        need("lightning")
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        updates = []
        for rows in indices:
            mine = rows.tensor_split(world_size())[rank]
            data = Rows(self.samples, mine)
            size = -(-len(mine) // parts)
            updates.append([self.collate([data[i] for i in part.tolist()])
                            for part in torch.arange(len(mine)).split(size)])  # fmt: skip
        given: dict[str, Any] = {
            "accelerator": "cpu", "devices": world_size(), "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        }  # fmt: skip
        given |= self.settings
        given |= {"max_epochs": len(indices), "accumulate_grad_batches": parts}
        given["callbacks"] = [*self.callbacks, _lightning_watcher(steps, self.reported)]
        trainer: Any = import_module("lightning").Trainer(**given)
        trainer.fit(self.model, train_dataloaders=Epochs(updates))


def _lightning_watcher(steps: Any, reported: str) -> Any:
    """Return a callback that tells where updates begin and end."""
    need("lightning")
    base: Any = import_module("lightning").Callback

    class Watch(base):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            schedulers = [one.scheduler for one in trainer.lr_scheduler_configs]
            plugin = trainer.strategy.precision_plugin
            steps.watch(optimizers=trainer.optimizers, schedulers=schedulers, scaler=getattr(plugin, "scaler", None))

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.losses = []
            steps.begin()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if reported in trainer.callback_metrics:
                self.losses.append(float(trainer.callback_metrics[reported]))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            steps.end(sum(self.losses) / len(self.losses) if self.losses else None)

    return Watch()


class TrainerFit(Subject):
    """A Trainer of transformers or TRL, one epoch being one update.

    Args:
        build: (**arguments) -> the Trainer; the arguments belong into its TrainingArguments (SFTConfig, DPOConfig):
            batch size, accumulation, epochs, logging. Its train_dataset must hold a batch.
    """

    def __init__(self, build: Callable[..., Any]):
        self.build = build
        self.trainer: Any = None
        super().__init__(nn.Identity(), _nothing, ())

    def open(self, indices: Sequence[Tensor], parts: int) -> None:
        """Build the Trainer and leave the samples of one batch in its data.

        Args:
            indices: the samples of each update; the first are taken for all, in the Trainer's own order.
            parts: gradient_accumulation_steps.
        """
        need("transformers", "accelerate")
        _forget()
        size = -(-len(indices[0]) // (parts * world_size()))
        self.folder = tempfile.TemporaryDirectory(prefix="isobatch-trainer-")
        self.trainer = self.build(
            output_dir=self.folder.name, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            num_train_epochs=len(indices), logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
            disable_tqdm=True, log_level="error",
        )  # fmt: skip
        data, rows = self.trainer.train_dataset, indices[0].tolist()
        rows = [row % len(data) for row in rows]
        select = getattr(data, "select", None)
        self.trainer.train_dataset = select(rows) if select is not None else Subset(data, rows)
        self.model = self.trainer.model

    def roots(self) -> dict[str, Any]:
        """Return what is looked through.

        Returns:
            What the user's callbacks hold; optimizer and scheduler are added when training begins.
        """
        return {"callbacks": self.trainer.callback_handler.callbacks} if self.trainer is not None else {}

    def rows(self) -> int:
        """Return how many samples there are.

        Returns:
            Plenty; the Trainer's own data are looked at when it is built.
        """
        return PLENTY

    def batch(self, indices: Tensor) -> Any:
        """Return no batch: the Trainer's collator makes it.

        Args:
            indices: of samples.

        Returns:
            An empty tuple.
        """
        return ()

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Train for as many epochs as updates.

        Args:
            indices: the samples of each update.
            parts: gradient_accumulation_steps.
            steps: told where each begins and ends.
        """
        self.trainer.add_callback(_trainer_watcher(steps))
        self.trainer.train()
        self.folder.cleanup()


def _nothing(batch: Any, parts: int) -> None:
    """No update of its own."""


def _trainer_watcher(steps: Any) -> Any:
    """Return a callback that tells where updates begin and end."""
    need("transformers")
    base: Any = import_module("transformers").TrainerCallback

    class Watch(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.watch(optimizer=given.get("optimizer"), scheduler=given.get("lr_scheduler"))

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if logs and "loss" in logs:
                steps.report(float(logs["loss"]))

    return Watch()


def _forget() -> None:
    """Let Accelerate forget the processes and settings of an earlier trainer."""
    need("accelerate")
    state = import_module("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()
    state.PartialState._reset_state()
