"""A Hugging Face Trainer, with its collator, and those of TRL, as a subject."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Subset

from isobatch.gradients import world_size
from isobatch.installed import need
from isobatch.split.target import Steps, Subject

PLENTY = 1 << 30


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
        from accelerate.state import AcceleratorState, GradientState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
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
        self.trainer.add_callback(_watcher(steps))
        self.trainer.train()
        self.folder.cleanup()


def _nothing(batch: Any, parts: int) -> None:
    """No update of its own."""


def _watcher(steps: Any) -> Any:
    """Return a callback that tells where updates begin and end."""
    need("transformers")
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
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
