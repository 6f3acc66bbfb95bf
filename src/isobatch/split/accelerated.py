"""A loop on Accelerate as a subject."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isobatch.gradients import mapped, world_size
from isobatch.installed import need
from isobatch.split.target import Steps, Subject


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

    def __getitem__(self, place: int) -> Any:
        index = int(self.rows[place])
        if isinstance(self.samples, list | Dataset):
            return self.samples[index]
        return mapped(self.samples, lambda tensor: tensor[index])


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
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts, **self.options)
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
