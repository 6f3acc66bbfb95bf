"""A Lightning module with its trainer's settings as a subject."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from isobatch.gradients import world_size
from isobatch.installed import need
from isobatch.split.accelerated import Rows
from isobatch.split.target import Steps, Subject


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
        import lightning
        import torch.distributed as dist

        rank = dist.get_rank() if world_size() > 1 else 0
        updates = []
        for rows in indices:
            mine = rows.tensor_split(world_size())[rank]
            data = Rows(self.samples, mine)
            size = -(-len(mine) // parts)
            updates.append([self.collate([data[i] for i in part.tolist()])
                            for part in _range(len(mine)).split(size)])  # fmt: skip
        given: dict[str, Any] = {
            "accelerator": "cpu", "devices": world_size(), "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        }  # fmt: skip
        trainer = lightning.Trainer(**given | self.settings, max_epochs=len(indices), accumulate_grad_batches=parts,
                                    callbacks=[*self.callbacks, _watcher(steps, self.reported)])  # fmt: skip
        trainer.fit(self.model, train_dataloaders=Epochs(updates))


def _nothing(batch: Any, parts: int) -> None:
    """No update of its own."""


def _range(count: int) -> Tensor:
    import torch

    return torch.arange(count)


def _watcher(steps: Any, reported: str) -> Any:
    """Return a callback that tells where updates begin and end."""
    need("lightning")
    from lightning import Callback

    class Watch(Callback):
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
